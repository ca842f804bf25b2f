"""The jobs of a command line: checked all together before the first begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cl_lora.support.errors import UserError
from cl_lora.support.printing import narrate

if TYPE_CHECKING:
    from cl_lora.experiment.settings import Settings


def announce() -> None:
    """Say which job of a sweep begins."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        narrate(f"[{hydra.job.num + 1}] {' '.join(hydra.overrides.task)}")


def check(
    jobs: Sequence[Mapping[str, Any]], side_by_side: bool = False
) -> dict[int, dict[str, Any]]:
    """Check every job before the first is trained, and that no two differ in one folder.

    Args:
        jobs: their configurations.
        side_by_side: whether two may run at the same time, each then in a folder of its own.

    Returns:
        Job -> what is set for it: where jobs side by side differ in their seeds alone, that their
        seeds have run folders apart.

    Raises:
        UserError: with the first thing that is wrong.
    """
    from cl_lora.configuration.plugins import load_plugins

    for config in jobs:
        load_plugins(config["plugins"])
    from cl_lora.experiment import pipeline

    recipes: dict[str, Mapping[str, Any]] = {}
    variants: dict[tuple[str, str], Mapping[str, Any]] = {}
    shared: dict[str, list[int]] = {}
    every = [pipeline.check(config) for config in jobs]
    check_trackers([settings.options.tracker for settings in every])
    for number, settings in enumerate(every):
        recipe, folder = settings.recipe, settings.given_folder
        # Where the configuration names the folder, jobs of one recipe share it.
        place = f"run_dir={folder}" if folder else json.dumps(recipe, default=str)
        shared.setdefault(place, []).append(number)
        if recipes.setdefault(place, recipe) != recipe:
            raise UserError(
                f"The combinations of --multirun need a folder each but all go to {place}; leave "
                "run_dir out, or give runs_root=DIR"
            )
        for arm in settings.arms:
            if variants.setdefault((place, arm.name), arm.variant) != arm.variant:
                raise UserError(
                    f"The combinations of --multirun would define arm {arm.name!r} in several ways "
                    "in one run folder; give each a run_dir, or the arms names of their own"
                )
    if not side_by_side:
        return {}
    changes: dict[int, dict[str, Any]] = {}
    for numbers in shared.values():
        if len(numbers) > 1:
            _check_apart(numbers, [every[n] for n in numbers])
            changes |= {n: {"seeds_apart": True} for n in numbers}
    return changes


def _check_apart(numbers: Sequence[int], jobs: Sequence[Settings]) -> None:
    """Refuse jobs of one run folder that may run at the same time, unless their seeds differ."""
    taken: dict[int, int] = {}
    for number, settings in zip(numbers, jobs, strict=True):
        for seed in settings.seeds:
            first = taken.setdefault(seed, number)
            if first != number:
                raise UserError(
                    f"Jobs {first + 1} and {number + 1} of --multirun would write to one run "
                    f"folder at the same time, both with seed {seed}; let one job do both, as "
                    "arms=[A,B], or give each a run_dir, or set hydra/launcher=basic"
                )
    if jobs[0].given_folder is not None:
        raise UserError(
            f"Jobs {numbers[0] + 1} and {numbers[1] + 1} of --multirun would write to "
            f"run_dir={jobs[0].given_folder} at the same time; leave run_dir out, or set "
            "hydra/launcher=basic"
        )


def check_trackers(given: Sequence[str | Sequence[str] | None]) -> None:
    """Connect once to every tracker that some job is sent to."""
    if any(tracker not in (None, []) for tracker in given):
        from cl_lora.tracking import check, names_of

        check(list(dict.fromkeys(name for tracker in given for name in names_of(tracker))))
