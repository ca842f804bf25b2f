"""Learning a few coefficients: Gauss-Newton beside 100 steps of Adam, on real adapters.

The embedded backbone on the shapes benchmark with the demo's settings, trained whole for a few
seeds. Each case learns the coefficients of the last stage on the buffer and is scored on all test
images. CPU time is that of learning alone; loss and accuracy are those of what is served. Of
Gauss-Newton it is also told after how many of its evaluations the loss is as low as Adam's at its
end.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cl_lora.benchmarks import make_benchmark
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import merged
from cl_lora.experiment.arms import make_arm
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.settings import Settings, read_settings
from cl_lora.experiment.stages import Outline, Stage
from cl_lora.experiment.training import train_banks
from cl_lora.models.backbones import input_size
from cl_lora.models.compute import Compute
from cl_lora.models.prepare import prepare_backbone
from cl_lora.models.weights import changed
from perf.common import report

NEWTON = {"solver": "gauss_newton"}
RULES: dict[str, dict[str, Any]] = {
    "task arithmetic, b_max 1": {"method": "task_arithmetic", "b_max": 1},
    "task arithmetic, b_max 3": {"method": "task_arithmetic", "b_max": 3},
    "TIES, b_max 3": {"method": "ties", "b_max": 3},
}
ONLY_NEWTON: dict[str, dict[str, Any]] = {
    "SVD of the sum to the adapters' rank, b_max 1": {"method": "svd", "b_max": 1},
}


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (rule, solver, settings of an arm)."""
    for rule, given in {**RULES, **ONLY_NEWTON}.items():
        for solver, more in (("Adam", {}), ("Gauss-Newton", NEWTON)):
            if solver == "Adam" and rule in ONLY_NEWTON:
                continue
            coefficients = {"name": "adaptive", "b_max": given["b_max"], **more}
            yield rule, solver, {"method": given["method"], "coefficients": coefficients}


def bench_of(folder: Path, seed: int) -> tuple[Settings, Workbench, Stage]:
    """Return a seed of the demo, its adapters trained, and the last stage."""
    raw = compose_config([f"run_dir={folder}", f"seeds=[{seed}]"])
    settings = read_settings(raw)
    config = {**raw["benchmark"], "cache_dir": str(folder.parent)}
    benchmark = make_benchmark(config, input_size(settings.model))
    backbone, _ = prepare_backbone(settings.model, settings.lora, settings.device, settings.bf16)
    folder.mkdir(parents=True, exist_ok=True)
    bench = Workbench(
        benchmark=benchmark,
        backbone=backbone,
        banks=train_banks(settings, benchmark, backbone, folder, seed, ["fresh"]),
        compute=Compute(settings.device, settings.bf16),
        seed=seed,
        policy=settings.training.policy,
        buffers={settings.options.spc: draw_buffer(benchmark, settings.options.spc, seed)},
        spc=settings.options.spc,
        batch_size=settings.options.eval_batch_size,
        head_lr=settings.training.head_lr,
        training=settings.training,
    )
    return settings, bench, settings.protocol.make(Outline(benchmark.names))[-1]


def buffer_loss(bench: Workbench, served: Served, stage: Stage) -> float:
    """Return the loss of what is served on the whole buffer."""
    batch = bench.support(bench.spc, stage)
    with torch.no_grad(), changed(bench.backbone.network, served.update(0)):
        ((features, targets),) = bench.compute.features(bench.backbone, [batch])
        return float(bench.task_at(stage).loss(served.head(0)(features), targets))


@dataclass
class Learning:
    """What learning has cost.

    Attributes:
        evaluations: how often an update was evaluated.
        losses: of Gauss-Newton, the loss of every evaluation in turn; empty for Adam, which never
            sees all samples at once.
    """

    evaluations: int = 0
    losses: list[float] = field(default_factory=list)

    def until(self, loss: float) -> int | None:
        """Return how many evaluations it took to get as low as ``loss``; None if it never did."""
        return next((i for i, found in enumerate(self.losses, 1) if found <= loss), None)


@contextmanager
def watched() -> Iterator[Learning]:
    """Yield where it is written down what learning costs."""
    found = Learning()
    kept = {name: getattr(merged, name) for name in ("learn", "minimise")}

    def learning(*args: Any, **more: Any) -> Any:
        made = kept["learn"](*args, **more)
        found.evaluations = made.evaluations
        return made

    def minimising(rule: Any, plan: Any, outputs: Any, loss: Any, **more: Any) -> Any:
        def heard(update: Any) -> torch.Tensor:
            made: torch.Tensor = outputs(update)
            found.losses.append(float(loss(made)))
            return made

        made = kept["minimise"](rule, plan, heard, loss, **more)
        found.evaluations = made.evaluations
        return made

    changed_to: dict[str, Any] = {"learn": learning, "minimise": minimising}
    with mock.patch.multiple(merged, **changed_to):
        yield found


def measured(folder: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """Return a row for each case and seed."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        with redirect_stderr(io.StringIO()):
            settings, bench, stage = bench_of(folder / f"run-{seed}", seed)
        evaluator = Evaluator(bench)
        adam: dict[str, float] = {}
        for rule, solver, given in cases():
            arm = make_arm("x", given, settings.defaults)
            with watched() as learning:
                began = time.process_time()
                served = serve_arm(bench, arm, stage)
                seconds = time.process_time() - began
            loss = buffer_loss(bench, served, stage)
            if solver == "Adam":
                adam[rule] = loss
            until = learning.until(adam[rule]) if rule in adam and learning.losses else None
            scores = [r.scores["accuracy"] for r in evaluator.score(served, stage).values()]
            rows.append(
                {
                    "case": rule,
                    "solver": solver,
                    "seed": seed,
                    "cpu_s": seconds,
                    "evaluations": learning.evaluations,
                    "evaluations_until_as_low_as_adam": until,
                    "loss": loss,
                    "accuracy": 100 * statistics.mean(scores),
                }
            )
            print(rows[-1], flush=True)
    return rows


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over seeds of every case."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["case"], row["solver"]), []).append(row)
    numbers = ("cpu_s", "evaluations", "loss", "accuracy")
    return [
        {
            "case": case,
            "solver": solver,
            **{key: statistics.mean(row[key] for row in those) for key in numbers},
        }
        for (case, solver), those in found.items()
    ]


def _to_same_loss(rows: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """Return how much less CPU time Gauss-Newton takes to Adam's loss, where it gets there.

    Its time is shared out over its evaluations, which are all alike.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["case"] == rule:
            found.setdefault(row["solver"], []).append(row)
    ratios = [
        adam["cpu_s"] / (newton["cpu_s"] * until / newton["evaluations"])
        for adam, newton in zip(found["Adam"], found["Gauss-Newton"], strict=True)
        if (until := newton["evaluations_until_as_low_as_adam"]) is not None
    ]
    return {
        "seeds": len(found["Adam"]),
        "reached": len(ratios),
        "mean": statistics.mean(ratios) if ratios else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="where adapters are kept between calls")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measured(given.folder or Path(temporary), given.seeds)
    means = over_seeds(rows)
    by_case = {(row["case"], row["solver"]): row for row in means}
    compared = {rule: (by_case[rule, "Adam"], by_case[rule, "Gauss-Newton"]) for rule in RULES}
    report(
        "solvers",
        f"shapes, the last of 4 domains, spc 5, {len(given.seeds)} seeds: means",
        means,
        each=rows,
        times_less={
            rule: adam["cpu_s"] / newton["cpu_s"] for rule, (adam, newton) in compared.items()
        },
        times_less_to_the_same_loss={rule: _to_same_loss(rows, rule) for rule in RULES},
        loss_lower={
            rule: adam["loss"] - newton["loss"] for rule, (adam, newton) in compared.items()
        },
    )


if __name__ == "__main__":
    main()
