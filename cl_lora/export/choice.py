"""Which row of a run is exported: its arm or baseline, its stage and its seed."""

from __future__ import annotations

from dataclasses import dataclass

from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord
from cl_lora.support.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Choice:
    """What is exported of a run.

    Attributes:
        run: the run.
        row: name of an arm or a baseline.
        stage: the stage.
        seed: the seed.
    """

    run: RunFolder
    row: str
    stage: StageRecord
    seed: int

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """What was measured: name of an experience -> metric -> value."""
        found: dict[str, dict[str, float]] = {}
        for score in self.run.scores:
            if (score.arm, score.seed, score.stage) == (self.row, self.seed, self.stage.index):
                name = self.run.experiences[score.evaluated]
                found.setdefault(name, {})[score.metric] = score.value
        return found


def choose(run: RunFolder, row: str, stage: str | None = None, seed: int | None = None) -> Choice:
    """Return what is asked for.

    Args:
        run: the run, finished or not.
        row: name of an arm or a baseline.
        stage: index or name of a stage at which it was scored; None for the last.
        seed: a seed of the run; None for the first.

    Raises:
        UserError: for an unknown row, stage or seed, or one that was not scored.
    """
    stopped = run.config.get("stopped") or {}
    if row in stopped:
        raise UserError(
            f"Arm {row!r} was stopped and serves nothing ({stopped[row].get('reason', '')}); "
            "choose another arm"
        )
    rows = (*run.arms, *run.references)
    if row not in rows:
        raise unknown_name("arm", row, rows)
    if seed is None:
        seed = run.seeds[0]
    elif seed not in run.seeds:
        raise unknown_name("seed", seed, map(str, run.seeds))
    indices = {s.stage for s in run.scores if s.arm == row and s.seed == seed}
    stages = [s for s in run.stream.trained_stages if s.index in indices]
    if not stages:
        raise UserError(
            f"{row!r} of seed {seed} has no scores in {run.path}; "
            + (run.missing_parts or "run the same command again to finish it")
        )
    return Choice(run, row, stages[-1] if stage is None else _stage(stages, stage, row), seed)


def _stage(stages: list[StageRecord], wanted: str, row: str) -> StageRecord:
    for stage in stages:
        if str(stage.index) == wanted:
            return stage
    named = [stage for stage in stages if stage.name == wanted]
    if len(named) > 1:
        raise UserError(
            f"{len(named)} stages of {row!r} are called {wanted!r}: give --stage one of their "
            f"indices, {', '.join(str(stage.index) for stage in named)}"
        )
    if not named:
        known = dict.fromkeys(str(v) for stage in stages for v in (stage.index, stage.name))
        raise unknown_name(f"stage of {row!r}", wanted, known)
    return named[0]
