"""Routed arms and heads of statistics in whole runs: what is gathered when, what is refused."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import TRAINING
from whole_runs import SMALL, content, rows, stamps

from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import training
from cl_lora.experiment.checks import check_routing
from cl_lora.experiment.pipeline import check, execute, prepare
from cl_lora.experiment.shards import execute_shard
from cl_lora.export import export
from cl_lora.export.choice import choose
from cl_lora.models.base import Backbone
from cl_lora.models.class_statistics import results_of
from cl_lora.run_folder.parts import Shard
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

STREAM = (
    *("benchmark.classes=3", "benchmark.styles=[photo,cartoon]", "benchmark.samples_per_class=6"),
    *("benchmark.test_samples_per_class=4", "report=false", *TRAINING, *SMALL),
)
SUM = "method: task_arithmetic"
HALF = ("arms=none", f"+arms.half={{{SUM}, coefficients: 0.5}}")
ROUTED = (
    f"+arms.hard={{{SUM}, coefficients: {{name: routed}}}}",
    f"+arms.soft={{{SUM}, bank: sequential, head: gaussian, "
    "coefficients: {name: routed, weights: soft, block: 1}}",
    f"+arms.mixture={{{SUM}, coefficients: 0.5, head: mixture}}",
    f"+arms.moved={{{SUM}, coefficients: 0.5, head: mixture_moved, spc: 2}}",
    f"+arms.ema={{{SUM}, bank: sequential, coefficients: {{name: ema}}}}",
)
ROWS = "references=[sequential_mixture,oracle_sequential,joint,joint_gaussian,joint_mixture]"


def run(folder: Path, *more: str) -> Path:
    return execute(compose_config([f"run_dir={folder}", *STREAM, *more]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of everything at once."""
    return run(tmp_path_factory.mktemp("whole") / "run", *HALF, *ROUTED, ROWS)


def measured(folder: Path) -> dict[str, bytes]:
    """Return all that is measured or trained, but for how long it took."""
    return {k: v for k, v in content(folder).items() if not k.endswith("training.json")}


def adapters_of(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in content(folder).items() if "statistics" not in k and "adapter_" in k}


def test_statistics_come_later_without_training_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run whose arms needed none becomes the run that had them from the start."""
    folder = run(tmp_path / "run", *HALF, "references=[sequential,joint]")
    assert not list(folder.glob("adapters/**/statistics*"))
    before = adapters_of(folder)
    monkeypatch.setattr(training._Trainer, "_train", None)
    gathered = []
    original = training._gathered

    def counted(*given: object) -> object:
        gathered.append((given[4].name, given[6], given[7].name))  # type: ignore[attr-defined]
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_gathered", counted)
    run(folder, *ROUTED, ROWS, "arms=none")
    assert adapters_of(folder) == before
    wanted = [("fresh", t, name) for t in (0, 1) for name in ("router", "features")]
    wanted += [("sequential", t, name) for t in (0, 1) for name in ("features", "router@1")]
    wanted += [("joint", 0, "features")]
    assert sorted(gathered) == sorted(wanted)  # once
    late, early = rows(folder), rows(whole)
    key = itemgetter("seed", "arm", "stage", "evaluated", "metric")
    there = {key(row): row["value"] for row in late}
    for row in early:
        assert there[key(row)] == row["value"], key(row)
    # Nothing is done again.
    stamped, gathered[:] = stamps(folder), []
    run(folder, *HALF, *ROUTED, ROWS)
    assert not gathered
    assert stamps(folder) == stamped


def test_statistics_are_of_train_images_alone(whole: Path) -> None:
    """Of as many as there are of each class: what they are of them is tested in test_routed."""
    counts = {}
    for t, name in enumerate(("photo", "cartoon")):
        adapter = training.AdapterBank(whole / "adapters" / "seed-0").load(t, name)
        for statistic in ("router", "features"):
            (result,) = results_of(adapter.statistics[statistic])
            counts[name, statistic] = result["counts"].tolist()
    assert set(map(tuple, counts.values())) == {(6.0, 6.0, 6.0)}


def test_the_routing_matrix_is_in_the_table_of_coefficients(whole: Path) -> None:
    found: dict[tuple[str, ...], float] = {}
    for row in rows(whole, "coefficients.csv"):
        if row["arm"] in ("hard", "soft"):
            key = (row["seed"], row["arm"], row["stage"], row["group"])
            assert row["group"] in ("photo", "cartoon")
            assert int(row["adapter"]) <= int(row["stage"])
            found[key] = found.get(key, 0.0) + float(row["value"])
    assert len(found) == 2 * 2 * 2
    assert list(found.values()) == pytest.approx([1.0] * len(found))


def test_costs_are_told_of_every_row_at_its_end(whole: Path) -> None:
    quantities = ("adapters", "statistics", "buffer", "data")
    wanted = {"passes", "bytes_to_serve", *(f"bytes_of_{name}" for name in quantities)}
    found: dict[str, dict[str, float]] = {}
    for r in rows(whole, "accounts.csv"):
        assert (r["seed"], r["stage"]) == ("0", "1")
        found.setdefault(r["arm"], {})[r["quantity"]] = float(r["value"])
    arms = ("half", "hard", "soft", "mixture", "moved", "ema")
    references = ("sequential_mixture", "oracle_sequential")
    joint = ("joint", "joint_gaussian", "joint_mixture")
    assert set(found) == {*arms, *references, *joint}
    assert all(set(of_row) == wanted for of_row in found.values())
    assert {row for row, of_row in found.items() if of_row["bytes_of_data"]} == set(joint)
    assert found["joint"]["bytes_of_data"] == 2 * 3 * 6 * 16 * 16 * 3
    assert {row for row, of_row in found.items() if of_row["bytes_of_buffer"]} == {"moved"}
    kept = {row for row, of_row in found.items() if of_row["bytes_of_statistics"]}
    assert kept == {"hard", "soft", "mixture", "moved", *references[:1], *joint[1:]}
    times = rows(whole, "times.csv")
    assert [(t["arm"], t["stage"]) for t in times] == [(row, "1") for row in found]
    assert all(float(t["value"]) > 0 for t in times)


def test_shards_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    raw = compose_config([f"run_dir={folder}", *STREAM, *HALF, *ROUTED, ROWS])
    for index in (1, 2):
        execute_shard(raw, Shard(index, 2))
    execute(raw)
    assert measured(folder) == measured(whole)
    assert (folder / "accounts.csv").read_bytes() == (whole / "accounts.csv").read_bytes()
    (one, other) = (
        [(t["arm"], t["stage"]) for t in rows(where, "times.csv")] for where in (folder, whole)
    )
    assert one == other


def test_adapters_that_begin_at_a_block(whole: Path, tmp_path: Path) -> None:
    folder = run(
        tmp_path / "run", *ROUTED[:1], "arms=none", "references=[]", "strategy.first_block=2"
    )
    for file in folder.glob("adapters/seed-0/*/adapter_model.safetensors"):
        blocks = {int(name.split("blocks.")[1].split(".")[0]) for name in load_file(file)}
        assert blocks == {2, 3, 4, 5}
    with pytest.raises(UserError, match=r"strategy\.first_block is 2 there and 0 here"):
        run(folder, *ROUTED[:1], "arms=none", "references=[]")
    with pytest.raises(UserError, match=r"strategy\.first_block is 0 there and 2 here"):
        run(whole, *HALF, "strategy.first_block=2")


def test_all_at_once_is_one_routing(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "run",
        *ROUTED[:3],
        "arms=none",
        "references=[]",
        "protocol=all_at_once",
        "seeds=[0,1]",
    )
    assert {r["seed"] for r in rows(folder)} == {"0", "1"}
    assert {r["stage"] for r in rows(folder)} == {"0"}
    assert {r["arm"] for r in rows(folder)} == {"hard", "soft", "mixture"}


def test_classes_that_come_one_after_another(tmp_path: Path) -> None:
    """It runs: a class that has not come is never the answer, and every score is a number."""
    given = (
        *("benchmark=class_incremental_shapes", "benchmark.samples_per_class=4", "spc=2"),
        *("benchmark.test_samples_per_class=2", "report=false", *TRAINING, *SMALL, "arms=none"),
    )
    folder = execute(compose_config([f"run_dir={tmp_path / 'run'}", *given, *ROUTED, ROWS]))
    values = torch.tensor([float(r["value"]) for r in rows(folder)])
    assert bool(values.isfinite().all())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("hard", "'hard' serves every image by adapters of its own, .*; export an arm"),
        (
            "mixture",
            "'mixture' has a head that is not in the run folder .*statistics.*; give --head",
        ),
        ("joint_gaussian", "'joint_gaussian' has a head that is not in the run folder"),
        ("sequential_mixture", "'sequential_mixture' has a head that is not in the run folder"),
    ],
)
def test_what_no_folder_of_peft_can_hold_is_not_exported(
    whole: Path, row: str, message: str, tmp_path: Path
) -> None:
    choice = choose(RunFolder.read(whole), row, None, None)
    with pytest.raises(UserError, match=message):
        export(choice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_newest_state_is_exported_under_its_trained_head(whole: Path, tmp_path: Path) -> None:
    choice = choose(RunFolder.read(whole), "sequential_mixture", None, None)
    exported = export(choice, tmp_path / "out", head="trained")
    assert "statistics" in exported.other_head


# What is refused before anything is trained --------------------------------------------------


HARD = ROUTED[0]
NUMBERS = (
    *("benchmark=multitask_shapes", "report=false", *SMALL, "benchmark.samples_per_class=2"),
    *(f"~benchmark.tasks.{task}" for task in ("object", "style", "orientation", "outline")),
    *("arms=none", "benchmark.test_samples_per_class=2"),
)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((HARD, "references=[]"), "Arm 'hard' needs the statistic 'router' of every class but"),
        (
            (HALF[1], "references=[joint_mixture]"),
            "baseline 'joint_mixture' needs the statistic 'features'",
        ),
        ((ROUTED[2], "references=[]"), "The head policy 'mixture' needs classes"),
    ],
)
def test_a_task_without_classes(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(compose_config([f"run_dir={tmp_path / 'run'}", *NUMBERS, *given]))
    assert "area" in str(caught.value)


class Blind(Backbone):
    """A backbone whose inside is not known."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 2, {})

    def encode(self, samples: Any) -> torch.Tensor:
        return torch.from_numpy(samples)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def test_a_backbone_that_shows_no_tokens() -> None:
    settings = check(compose_config([*STREAM, "arms=none", HARD]))
    with pytest.raises(UserError, match=r"Arm 'hard': .* but this model shows none; leave the arm"):
        check_routing(settings, Blind())
    check_routing(check(compose_config([*STREAM, *HALF])), Blind())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (f"+arms.x={{{SUM}, coefficients: {{name: routed}}, head: mixture_moved}}",),
            "serve adapters as they were trained; give head=gaussian",
        ),
        (
            (f"+arms.x={{{SUM}, bank: full, coefficients: {{name: routed, weights: soft}}}}",),
            "bank=full holds none; give weights=hard",
        ),
        (
            (f"+arms.x={{{SUM}, head: mixture, residual: {{name: low_rank, q: 1}}}}",),
            "head=mixture is made of features under whole adapters, .*; leave head out",
        ),
        (
            (f"+arms.x={{{SUM}, head: gaussian}}",),
            "head=gaussian belongs to one adapter .*; give coefficients=routed",
        ),
        (
            ("+arms.x={method: ties, coefficients: {name: routed}}",),
            "needs the plain sum of updates; give method=task_arithmetic",
        ),
        (
            (HARD, "strategy.head=own"),
            "head=own is for runs that know it; leave the arm out, or set strategy.head=shared",
        ),
        (
            (f"+arms.x={{{SUM}, bank: sequential}}", "strategy.head=own"),
            "bank=sequential has one head that is trained on .* head=own .*; leave bank out",
        ),
        (
            ("strategy.head=mixture",),
            "strategy.head=mixture is made of statistics .*; set strategy.head=shared",
        ),
    ],
)
def test_what_does_not_go_together(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(compose_config([*STREAM, "arms=none", *given]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["shots", "subsets", "few_shot_stream"])
def test_protocols_that_know_the_experience(protocol: str) -> None:
    with pytest.raises(UserError, match=r"strategy\.head=own|leave the arm out"):
        check(compose_config([*STREAM, "arms=none", HARD, f"protocol={protocol}"]))
    own = ("strategy.head=own", f"protocol={protocol}")
    with pytest.raises(UserError, match="leave the arm out"):
        check(compose_config([*STREAM, "arms=none", HARD, *own]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (f"+arms.x={{{SUM}, coefficients: {{name: routed, block: 6}}}}",),
            "Arm 'x': expected block to be below 6, .* but got 6; lower it, or leave it out for 2",
        ),
        (("strategy.first_block=6", *HALF), "first_block to be at most 5"),
    ],
)
def test_a_block_that_is_not_there(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        prepare(compose_config([f"run_dir={folder}", *STREAM, "arms=none", *given]))
    assert not folder.exists()
