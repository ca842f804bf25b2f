"""Whole runs: the same bytes again, units measured anew, hits, noise in place of test data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bench import with_noise_as_test as with_noise
from whole_runs import MORE_ARMS, content, rows, run, stamps

from cl_lora.adapters import Adapter
from cl_lora.experiment import pipeline
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.models.backbones import Backbone
from cl_lora.run_folder.hits import read_hits
from cl_lora.run_folder.layout import hits_file
from cl_lora.support.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every way to learn or choose; no test changes it."""
    return run(tmp_path_factory.mktemp("runs") / "finished", *MORE_ARMS)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return shutil.copytree(finished, tmp_path / "copied")


def test_two_runs_with_one_seed_are_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    one, other = content(finished), content(run(tmp_path / "again", *MORE_ARMS))
    assert one.keys() == other.keys()
    # How long training took is no part of what was trained.
    for name in one:
        if name.endswith("training.json"):
            a, b = json.loads(one[name]), json.loads(other[name])
            assert {**a, "seconds": 0} == {**b, "seconds": 0}
        else:
            assert one[name] == other[name], name
    assert {f"hits/seed-0/{arm}.npz" for arm in ("half", "tuned", "last")} <= one.keys()


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    other = run(tmp_path / "other", "seeds=[1]")
    first = Adapter.load(finished / "adapters" / "seed-0" / "00-photo")
    second = Adapter.load(other / "adapters" / "seed-1" / "00-photo")
    module = first.modules()[0]
    assert not np.array_equal(first.factors[module].A, second.factors[module].A)
    one, two = (
        json.loads((folder / "buffers" / f"seed-{seed}-spc-2.json").read_text())["indices"]
        for folder, seed in ((finished, 0), (other, 1))
    )
    assert one != two


def test_a_seed_gives_the_same_beside_other_seeds(finished: Path, copied: Path) -> None:
    run(copied, *MORE_ARMS, "seeds=[1]")
    assert [r for r in rows(copied) if r["seed"] == "0"] == rows(finished)
    assert {r["seed"] for r in rows(copied)} == {"0", "1"}
    assert yaml.safe_load((copied / "config.yaml").read_text())["seeds"] == [0, 1]


def test_noise_as_test_data_changes_no_coefficient_and_no_adapter(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = pipeline.make_benchmark
    monkeypatch.setattr(pipeline, "make_benchmark", lambda *given: with_noise(make(*given)))
    noisy = run(tmp_path / "noisy", *MORE_ARMS)
    learned = {r["arm"] for r in rows(finished, "coefficients.csv")}
    assert learned >= {"ties_learned", "in_factors", "tuned", "grid", "means"}
    for name, data in content(finished).items():
        if name.endswith(".safetensors") or name in ("coefficients.csv", "stream.json"):
            assert content(noisy)[name] == data, name
    assert rows(noisy) != rows(finished)


def test_hits_agree_with_the_accuracy(finished: Path) -> None:
    table = {
        (r["arm"], int(r["stage"]), int(r["evaluated"])): float(r["value"])
        for r in rows(finished)
        if r["metric"] == "accuracy"
    }
    found = {}
    for arm in {arm for arm, _, _ in table}:
        for (stage, j), right in read_hits(hits_file(finished, 0, arm)).items():
            assert len(right) == 12  # 3 classes, 4 test images each
            found[arm, stage, j] = float(right.mean())
    assert found.keys() == table.keys()
    for unit, value in table.items():
        assert found[unit] == pytest.approx(value, abs=1e-12)
    assert 0 < np.mean(list(table.values())) < 1


def test_an_arm_that_learns_in_factors_stays_in_its_range(finished: Path) -> None:
    found = [r for r in rows(finished, "coefficients.csv") if r["arm"] == "in_factors"]
    assert [(r["stage"], r["adapter"]) for r in found] == [
        (str(t), str(i)) for t in range(3) for i in range(t + 1)
    ]
    assert all(0 < float(r["value"]) < 2 for r in found)
    scores = [r for r in rows(finished) if r["arm"] == "in_factors"]
    assert len(scores) == 4 * 3 * 2


def test_grid_records_what_was_chosen(finished: Path) -> None:
    found = [r for r in rows(finished, "coefficients.csv") if r["arm"] == "grid"]
    for r in found:
        assert float(r["value"]) in (0.3, 1.0, 1 / (int(r["stage"]) + 1))
    for stage in "012":
        assert len({r["value"] for r in found if r["stage"] == stage}) == 1


# A unit is whole where every experience and metric of its stage is there ----------------------


@pytest.mark.parametrize("row", [0, 7, -1])
def test_a_unit_that_lacks_a_row_is_measured_again(copied: Path, finished: Path, row: int) -> None:
    path, before = copied / "scores.csv", stamps(copied)
    lines = path.read_text().splitlines(keepends=True)
    del lines[row if row < 0 else row + 1]  # the first line names the columns
    path.write_text("".join(lines))
    run(copied, *MORE_ARMS)
    assert path.read_bytes() == (finished / "scores.csv").read_bytes()
    assert (copied / "coefficients.csv").read_bytes() == (
        finished / "coefficients.csv"
    ).read_bytes()
    assert stamps(copied) == before


def test_only_the_unit_that_lacks_a_row_is_measured(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rows are kept as they stand: a mark on one of each unit is still there."""
    path = copied / "scores.csv"
    lines = path.read_text().splitlines()
    cut = next(i for i, line in enumerate(lines) if line.startswith("0,grid,1,2,f1,"))
    measured: list[tuple[str, int]] = []
    original = Evaluator.as_scores

    def spy(self, name, stage, results):
        measured.append((name, stage.index))
        return original(self, name, stage, results)

    monkeypatch.setattr(Evaluator, "as_scores", spy)
    path.write_text("\n".join(line for i, line in enumerate(lines) if i != cut) + "\n")
    run(copied, *MORE_ARMS)
    assert measured == [("grid", 1)]
    measured.clear()
    run(copied, *MORE_ARMS)
    assert measured == []


def test_without_tables_all_is_measured_again_and_nothing_trained(
    copied: Path, finished: Path
) -> None:
    before = stamps(copied)
    for name in ("scores.csv", "coefficients.csv"):
        (copied / name).unlink()
    shutil.rmtree(copied / "hits")
    run(copied, *MORE_ARMS)
    assert content(copied) == content(finished)
    assert stamps(copied) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-2], "last line is cut off"),
        (lambda text: text.replace("adapter", "adaptr", 1), "missing column adapter"),
        (lambda text: text.rsplit(",", 1)[0] + ",nan\n", "expected a finite value"),
        (lambda text: text + "0,half,0,all,0\n", "line"),
        (lambda text: "", "is empty"),
    ],
)
def test_damaged_coefficients_are_one_sentence(copied: Path, damage, message: str) -> None:
    path = copied / "coefficients.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=rf"coefficients\.csv is damaged: .*{message}") as caught:
        run(copied, *MORE_ARMS)
    assert "\n" not in str(caught.value)
    assert "delete it and scores.csv" in str(caught.value)


def test_an_adapter_that_is_lost_is_trained_again_as_it_was(copied: Path, finished: Path) -> None:
    shutil.rmtree(copied / "adapters" / "seed-0" / "01-cartoon")
    run(copied, *MORE_ARMS)
    one, other = content(copied), content(finished)
    assert one.keys() == other.keys()
    for name in one:
        assert name.endswith("training.json") or one[name] == other[name], name


@pytest.fixture
def batch_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded backbone with batch normalisation and dropout on the features of its blocks."""
    prepare = pipeline.prepare_backbone

    def prepared(*given: Any, **more: Any) -> tuple[Backbone, Any]:
        backbone, modules = prepare(*given, **more)
        norm = torch.nn.BatchNorm1d(backbone.features)
        norm.running_mean = torch.linspace(-0.5, 0.5, backbone.features)
        added = torch.nn.Sequential(norm, torch.nn.Dropout(0.5)).requires_grad_(False)
        backbone.network.fc_norm = torch.nn.Sequential(backbone.network.fc_norm, added)
        return backbone.eval(), modules

    monkeypatch.setattr(pipeline, "prepare_backbone", prepared)


@pytest.mark.usefixtures("batch_normalised")
def test_with_batch_normalisation_a_resumed_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """What is scored right after training is what is scored by a process that trained nothing."""
    whole = run(tmp_path / "whole")
    resumed = shutil.copytree(whole, tmp_path / "resumed")
    for name in ("scores.csv", "coefficients.csv"):
        (resumed / name).unlink()
    run(resumed)
    assert content(resumed) == content(whole)
    shutil.rmtree(resumed / "adapters" / "seed-0" / "02-sketch")
    (resumed / "scores.csv").unlink()
    run(resumed)
    assert (resumed / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


# Refused before anything is trained ----------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("strategy.head=prototypes", "arms=none", MORE_ARMS[1]), "Arm 'tuned': tune_head cannot"),
        (("+arms.x={method: ties, head: shared}",), "Arm 'x': head='shared' decides"),
        (("protocol=prefix",), "did you mean 'prefixes'"),
        (
            ("+arms.x={method: ties, coefficients: {name: softmax, granularity: block}}",),
            "Arm 'x': .*granularity",
        ),
    ],
)
def test_refused_before_training(tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", [1, None, 3])
def test_a_folder_of_another_format_is_refused_before_data_are_decoded(
    copied: Path, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    path = copied / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "format": version}))
    before = path.read_bytes()
    monkeypatch.setattr(pipeline, "make_benchmark", lambda *_: pytest.fail("data were decoded"))
    message = rf"another version of cl-lora: expected format 2 .*got {version}; use that version"
    with pytest.raises(UserError, match=message) as caught:
        run(copied, *MORE_ARMS)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
