"""Whole runs of reuse at 16 px: every number is made again in float64 from what lies on disk."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import task_bench
import torch
import warm
import yaml
from bench import features as features_under
from bench import samples_of_test, stage, support, workbench
from numpy.typing import NDArray
from task_bench import loss_by_hand, outputs_of, with_noise_as_test
from tiny_run import overrides
from torch import Tensor, nn
from torch.nn import functional as F
from whole_runs import content, rows, stamps

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark, Experience, make_benchmark
from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment import pipeline
from cl_lora.experiment.arms import ArmDefaults, make_arm, settings_of
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.pipeline import execute
from cl_lora.experiment.references import REFERENCES
from cl_lora.models.backbones import Backbone, ModelConfig
from cl_lora.models.images import ImageBackbone
from cl_lora.models.prepare import prepare_backbone
from cl_lora.run_folder.hits import read_hits
from cl_lora.support.errors import UserError

pytestmark = pytest.mark.slow

TASKS = ("photo", "painting", "style")
LIMITS = ("model.img_size=16", "precision=fp32", "device=cpu", "report=false")
SMALL = (
    "experiment=reuse_shapes",
    *LIMITS,
    *("strategy.epochs=2", "strategy.batch_size=8", "strategy.rank=2", "strategy.patience=null"),
    *("strategy.lr=2e-2", "strategy.full_lr=2e-3", "strategy.head_lr=5e-3", "strategy.warmup=0.1"),
    *("arms=none", "embed=null", "~benchmark.tasks.cartoon", "~benchmark.tasks.sketch"),
    *(f"benchmark.tasks.{name}.classes=3" for name in TASKS),
    *("benchmark.tasks.style.styles=[photo,painting]", "benchmark.tasks.style.samples_per_class=6"),
    *("benchmark.samples_per_class=8", "benchmark.test_samples_per_class=8"),
    "benchmark.val_fraction=0.25",
)
GRID = [1.0, 0.05, 0.4]
SEARCH = f"coefficients: {{name: grid, values: {GRID}}}, select_on: val"
ARMS = {
    "low_1": "residual: {name: low_rank, q: 1}",
    "low_2": "residual: {name: low_rank, q: 2}",
    "low_beside": "method: task_arithmetic, coefficients: 0.4, residual: {name: low_rank, q: 1}",
    "sparse_lora": "residual: {name: sparse, m: 10}",
    "grid": f"method: task_arithmetic, {SEARCH}",
    "ties": "method: ties, trim: global, coefficients: 0.7",
    "regmean": "method: regmean, coefficients: 1.0",
    "fisher": "method: fisher, labels: data, coefficients: 1.0",
    "post_10": "bank: full, residual: {name: sparse, m: 10}",
    "post_100": "bank: full, residual: {name: sparse, m: 100}",
    "post_each": "bank: full, residual: {name: sparse, m: 2.5, scope: tensor}",
    "fft_5": "bank: full, method: task_arithmetic, coefficients: 0.4, "
    "residual: {name: sparse, m: 5}",
    "full_mean": "bank: full, method: task_arithmetic",
    "full_grid": f"bank: full, method: task_arithmetic, {SEARCH}",
    "full_ties": "bank: full, method: ties, trim: global, coefficients: 0.7",
    "full_regmean": "bank: full, method: regmean, coefficients: 1.0",
    "full_fisher": "bank: full, method: fisher, labels: data, coefficients: 1.0",
    "full_learned": "bank: full, method: task_arithmetic, spc: 1, "
    "coefficients: {name: adaptive, b_max: 1.5, steps: 2}",
}
ROWS = tuple(name for name, row in REFERENCES.items() if all(b.own_heads for b in row.banks))
"""All but those that train one head on all tasks."""

Deltas = dict[str, NDArray[np.float64]]
"""Entry -> what a model adds to the backbone."""


def arms(given: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"+arms.{name}={{{settings}}}" for name, settings in given.items())


def rows_wanted(*names: str) -> str:
    return f"references=[{','.join(names)}]"


def run(folder: Path, *more: str) -> Path:
    return execute(compose_config([f"run_dir={folder}", *SMALL, *more]))


WHOLE = (*arms(ARMS), rows_wanted(*ROWS), "seeds=[0,1]")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CL_LORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, both banks, every row that there can be."""
    return run(tmp_path_factory.mktemp("reuse") / "run", *WHOLE)


@pytest.fixture(scope="module")
def benchmark(finished: Path) -> Benchmark:
    return data_of(finished)


@pytest.fixture(scope="module")
def bare() -> Backbone:
    model, lora = ModelConfig("embedded", img_size=16), LoRAConfig(rank=2, targets=("qkv",))
    return prepare_backbone(model, lora, torch.device("cpu"), False)[0]


def data_of(folder: Path) -> Benchmark:
    """Return the data of a run, made again from what it recorded."""
    return make_benchmark(yaml.safe_load((folder / "config.yaml").read_text())["benchmark"], 16)


# What lies on disk, in float64 -------------------------------------------------------------------


def place(folder: Path, seed: int, bank: str, j: int) -> Path:
    end = "" if bank == "fresh" else f"-{bank}"
    (found,) = (folder / "adapters" / f"seed-{seed}{end}").glob(f"{j:02}-*")
    return found


def deltas_of(folder: Path, seed: int, bank: str, j: int) -> Deltas:
    path = place(folder, seed, bank, j)
    if bank == "full":
        stored = safetensors.torch.load_file(path / "delta.safetensors")
        return {name: delta.double().numpy() for name, delta in sorted(stored.items())}
    stored = safetensors.torch.load_file(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    found = {}
    for key in stored:
        name, _, end = key.removeprefix("base_model.model.").partition(".lora_")
        if end == "A.weight":
            B = stored[key.replace("lora_A", "lora_B")].double().numpy()
            found[name] = scale * B @ stored[key].double().numpy()
    return found


def bank_of(folder: Path, seed: int, bank: str, count: int = 3) -> list[Deltas]:
    return [deltas_of(folder, seed, bank, j) for j in range(count)]


def head_of(folder: Path, seed: int, bank: str, j: int) -> dict[str, Tensor]:
    return safetensors.torch.load_file(place(folder, seed, bank, j) / "head.safetensors")


def statistic_of(folder: Path, seed: int, bank: str, j: int, name: str) -> Deltas:
    path = place(folder, seed, bank, j) / "statistics" / f"{name}.safetensors"
    return {k: t.double().numpy() for k, t in safetensors.torch.load_file(path).items()}


def bank_name(arm: str) -> str:
    return "full" if "bank: full" in ARMS.get(arm, "") or arm == "single_full" else "fresh"


def dense(bare: Backbone, deltas: Deltas) -> Backbone:
    """Return a float64 copy of the backbone with deltas written into its weights."""
    own = copy.deepcopy(bare).double()
    left = dict(deltas)
    with torch.no_grad():
        for name, parameter in own.network.named_parameters():
            delta = left.pop(name[:-7] if name.endswith(".weight") else name, None)
            if delta is not None:
                parameter.add_(torch.from_numpy(np.ascontiguousarray(delta)))
    assert not left
    return own


# Merges and residuals written again --------------------------------------------------------------


def weighted(bank: list[Deltas], weights: Any) -> Deltas:
    each = np.broadcast_to(weights, len(bank))
    return {m: sum(w * d[m] for w, d in zip(each, bank, strict=True)) for m in bank[0]}


def minus(one: Deltas, other: Deltas) -> Deltas:
    return {m: d - other[m] for m, d in one.items()}


def plus(one: Deltas, other: Deltas) -> Deltas:
    return {m: d + other[m] for m, d in one.items()}


def low_rank(deltas: Deltas, q: int) -> Deltas:
    def cut(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        return (u[:, :q] * s[:q]) @ vh[:q]

    return {m: cut(d) for m, d in deltas.items()}


def sparse(deltas: Deltas, thousandths: int) -> Deltas:
    """Keep the largest so many thousandths of all entries."""
    flat = np.concatenate([d.ravel() for d in deltas.values()])
    if flat.size * thousandths < 1000:
        return {m: np.zeros_like(d) for m, d in deltas.items()}
    kept = np.zeros_like(flat)
    count = thousandths * flat.size // 1000
    chosen = np.argpartition(-np.abs(flat), count - 1)[:count]
    kept[chosen] = flat[chosen]
    parts = np.split(kept, np.cumsum([d.size for d in deltas.values()])[:-1])
    return {m: part.reshape(d.shape) for (m, d), part in zip(deltas.items(), parts, strict=True)}


def ties(bank: list[Deltas], scale: float) -> Deltas:
    kept = [sparse(d, 200) for d in bank]  # the largest fifth of each
    made = {}
    for m in bank[0]:
        stack = np.stack([d[m] for d in kept])
        sign = np.where(stack.sum(axis=0) >= 0, 1.0, -1.0)
        agrees = np.sign(stack) == sign
        made[m] = scale * (stack * agrees).sum(axis=0) / np.maximum(1, agrees.sum(axis=0))
    return made


def regmean(bank: list[Deltas], grams: list[Deltas]) -> Deltas:
    made = weighted(bank, 1 / len(bank))
    for m in grams[0]:
        found = [of[m] for of in grams]
        found = [g + 1e-4 * np.diag(g).mean() * np.eye(len(g)) for g in found]
        left = sum(d[m] @ g for d, g in zip(bank, found, strict=True))
        made[m] = np.linalg.solve(sum(found), left.T).T
    return made


def fisher(bank: list[Deltas], squares: list[Deltas]) -> Deltas:
    sizes = [np.sqrt(sum(np.square(f).sum() for f in of.values())) for of in squares]
    made = {}
    for m in bank[0]:
        f = np.stack([of[m] / size for of, size in zip(squares, sizes, strict=True)])
        f = f + 1e-6 * f.mean()
        made[m] = (f * np.stack([d[m] for d in bank])).sum(axis=0) / f.sum(axis=0)
    return made


def given_alpha(folder: Path, seed: int, arm: str, at: int = 0) -> list[float]:
    """Return what coefficients.csv says."""
    found = {
        int(r["adapter"]): float(r["value"])
        for r in rows(folder, "coefficients.csv")
        if (r["seed"], r["arm"], r["stage"]) == (str(seed), arm, str(at))
    }
    return [found[j] for j in sorted(found)]


def served_by(folder: Path, seed: int, arm: str) -> list[Deltas]:
    """Return what an arm or a row adds to the backbone, for each task."""
    kind = bank_name(arm)
    bank = bank_of(folder, seed, kind)

    def known(name: str) -> list[Deltas]:
        return [statistic_of(folder, seed, kind, j, name) for j in range(3)]

    half = weighted(bank, 0.4)
    one_for_all: dict[str, Callable[[], Deltas]] = {
        "grid": lambda: weighted(bank, given_alpha(folder, seed, "grid")),
        "full_grid": lambda: weighted(bank, given_alpha(folder, seed, "full_grid")),
        "full_learned": lambda: weighted(bank, given_alpha(folder, seed, "full_learned")),
        "full_mean": lambda: weighted(bank, 1 / 3),
        "ties": lambda: ties(bank, 0.7),
        "full_ties": lambda: ties(bank, 0.7),
        "regmean": lambda: regmean(bank, known("gram")),
        "full_regmean": lambda: regmean(bank, known("gram")),
        "fisher": lambda: fisher(bank, known("fisher_data")),
        "full_fisher": lambda: fisher(bank, known("fisher_data")),
        "base": dict,
        "last": lambda: bank[-1],
    }
    of_each: dict[str, Callable[[Deltas], Deltas]] = {
        "low_1": lambda own: low_rank(own, 1),
        "low_2": lambda own: own,
        "low_beside": lambda own: plus(half, low_rank(minus(own, half), 1)),
        "sparse_lora": lambda own: sparse(own, 100),
        "post_10": lambda own: sparse(own, 100),
        "post_100": lambda own: own,
        "post_each": lambda own: {m: sparse({m: d}, 25)[m] for m, d in own.items()},
        "fft_5": lambda own: plus(half, sparse(minus(own, half), 50)),
        "single": lambda own: own,
        "single_full": lambda own: own,
        "oracle": lambda own: own,
    }
    if arm in one_for_all:
        return [one_for_all[arm]()] * 3
    return [of_each[arm](own) for own in bank]


def hits_of(folder: Path, seed: int, arm: str, at: int = 0) -> dict[int, NDArray[np.bool_]]:
    found = read_hits(folder / "hits" / f"seed-{seed}" / f"{arm}.npz")
    return {j: right for (t, j), right in found.items() if t == at}


def value_of(folder: Path, seed: int, arm: str, j: int, metric: str = "accuracy", at: int = 0):
    (found,) = (
        float(r["value"])
        for r in rows(folder)
        if (r["seed"], r["arm"], r["stage"], r["evaluated"], r["metric"])
        == (str(seed), arm, str(at), str(j), metric)
    )
    return found


def require_right(own: Backbone, head: dict[str, Tensor], e: Experience, found: Any) -> None:
    """Check which test samples are right, but for those that rounding could decide."""
    outputs = outputs_of(own, head, e, e.test)
    first, second = np.sort(outputs, axis=1)[:, ::-1][:, :2].T
    sure = first - second > 1e-4
    assert sure.mean() > 0.9
    right = outputs.argmax(axis=1) == e.targets[e.test]
    assert np.array_equal(found[sure], right[sure])


BY_HAND = (*ARMS, "single", "single_full", "oracle", "base", "last")


@pytest.mark.parametrize("arm", BY_HAND)
def test_every_arm_by_hand(finished: Path, benchmark: Benchmark, bare: Backbone, arm: str) -> None:
    for seed in (0, 1) if arm in ("low_1", "single") else (1,):
        found = hits_of(finished, seed, arm)
        for j, update in enumerate(served_by(finished, seed, arm)):
            e, head = benchmark.experiences[j], head_of(finished, seed, bank_name(arm), j)
            require_right(dense(bare, update), head, e, found[j])
            assert value_of(finished, seed, arm, j) == pytest.approx(found[j].mean(), abs=1e-12)


def test_arms_are_not_all_alike(finished: Path) -> None:
    """Else the test above would say little."""
    found = {
        arm: tuple(np.concatenate(list(hits_of(finished, 0, arm).values()))) for arm in BY_HAND
    }
    same = {"low_2", "oracle", "single"}
    for one, other in (
        *(("low_1", "low_2"), ("low_1", "low_beside"), ("post_10", "post_100")),
        *(("post_10", "post_each"), ("fft_5", "full_mean"), ("fft_5", "post_10")),
        *(("regmean", "fisher"), ("full_regmean", "full_mean"), ("ties", "grid")),
    ):
        assert found[one] != found[other], (one, other)
    assert len({found[arm] for arm in same}) == 1
    assert len(set(found.values())) > 12


def test_single_is_all_singular_values_and_single_full_all_entries(finished: Path) -> None:
    for seed in (0, 1):
        for row, arm in (("single", "low_2"), ("oracle", "low_2"), ("single_full", "post_100")):
            one, other = hits_of(finished, seed, row), hits_of(finished, seed, arm)
            assert all(np.array_equal(one[j], other[j]) for j in range(3))
            for metric in ("accuracy", "f1"):
                values = [
                    [value_of(finished, seed, a, j, metric) for j in range(3)] for a in (row, arm)
                ]
                assert values[0] == values[1]


def test_shares_of_the_single_task_are_of_the_low_rank_bank(finished: Path) -> None:
    for arm in ("post_10", "single_full", "grid"):
        for j in range(3):
            value, single = (value_of(finished, 0, a, j) for a in (arm, "single"))
            assert value_of(finished, 0, arm, j, "relative") == pytest.approx(value / single)


# What it takes to serve --------------------------------------------------------------------------

BLOCK = 2 * 256 + (384 * 128 + 384) + (128 * 128 + 128) + (512 * 128 + 512) + (128 * 512 + 128)
BACKBONE = (3 * 8 * 8 * 128 + 128) + 4 * 128 + 6 * BLOCK + 256
"""Patches, positions, six blocks of width 128, the last normalisation."""

QKV = 384 + 128
TENSORS = (
    *(3 * 8 * 8 * 128, 128, 4 * 128, 128, 128),
    *6 * (128, 128, 384 * 128, 384, 128 * 128, 128, 128, 128, 512 * 128, 512, 128 * 512, 128),
)
PARAMETERS = {
    "low_1": BACKBONE + 3 * 6 * 1 * (QKV + 1),
    "low_2": BACKBONE + 3 * 6 * 2 * (QKV + 1),
    "low_beside": BACKBONE + 3 * 6 * 1 * (QKV + 1),
    "sparse_lora": BACKBONE + 3 * (6 * 384 * 128 // 10),
    "post_10": BACKBONE + 3 * (BACKBONE // 10),
    "post_100": 3 * BACKBONE,
    "post_each": BACKBONE + 3 * sum(25 * n // 1000 for n in TENSORS),
    "fft_5": BACKBONE + 3 * (BACKBONE // 20),
    "single": BACKBONE + 3 * 6 * 2 * QKV,
    "oracle": BACKBONE + 3 * 6 * 2 * QKV,
    "single_new_head": BACKBONE + 3 * 6 * 2 * QKV,
    "single_x0.5": BACKBONE + 3 * 6 * 2 * QKV,
    "other_seed": BACKBONE + 3 * 6 * 4 * QKV,
    "single_full": 3 * BACKBONE,
}
ONE_MODEL = (
    *("grid", "ties", "regmean", "fisher", "full_mean", "full_grid", "full_ties", "full_regmean"),
    *("full_fisher", "full_learned", "base", "last", "head_only"),
)


def test_parameters_are_those_of_the_paper(finished: Path, bare: Backbone) -> None:
    assert BACKBONE == 1_215_104
    assert sum(TENSORS) == BACKBONE == sum(p.numel() for p in bare.network.parameters())
    stream = json.loads((finished / "stream.json").read_text())
    assert stream["backbone"]["parameters"] == BACKBONE
    found = {
        (int(r["seed"]), r["arm"]): float(r["value"])
        for r in rows(finished, "accounts.csv")
        if r["quantity"] == "parameters"
    }
    assert {arm for _, arm in found} == {*ARMS, *ROWS}
    for seed in (0, 1):
        for arm, numbers in PARAMETERS.items():
            assert found[seed, arm] == numbers, arm
        for arm in ONE_MODEL:
            assert found[seed, arm] == BACKBONE, arm


# What is chosen, and on what ---------------------------------------------------------------------


def mean_of_shares(
    folder: Path, bare: Backbone, benchmark: Benchmark, kind: str, part: str, value: float
) -> float:
    """Return the mean over tasks of the loss of seed 0 in units of the single task's."""
    bank = bank_of(folder, 0, kind)
    losses = []
    for j, e in enumerate(benchmark.experiences):
        indices, head = getattr(e, part), head_of(folder, 0, kind, j)

        def loss(
            update: Deltas, e: Experience = e, indices: Any = indices, head: Any = head
        ) -> float:
            outputs = torch.from_numpy(outputs_of(dense(bare, update), head, e, indices))
            return float(loss_by_hand(e.task, outputs, e.targets[indices]))

        counts = np.bincount(e.targets[e.train], minlength=len(e.task.labels))
        majority = torch.eye(len(counts)).double()[counts.argmax()].expand(len(indices), -1)
        trivial = float(loss_by_hand(e.task, majority, e.targets[indices]))
        losses.append(loss(weighted(bank, value)) / max(loss(bank[j]), 0.05 * trivial))
    return float(np.mean(losses))


@pytest.mark.parametrize("arm", ["grid", "full_grid"])
def test_the_grid_takes_the_lowest_loss_on_the_validation_part(
    finished: Path, benchmark: Benchmark, bare: Backbone, arm: str
) -> None:
    losses = [
        mean_of_shares(finished, bare, benchmark, bank_name(arm), "val", value) for value in GRID
    ]
    best, other = sorted(losses)[:2]
    assert best < other - 1e-4
    assert given_alpha(finished, 0, arm) == [GRID[int(np.argmin(losses))]] * 3
    assert losses[0] > best, "the first candidate is the best: nothing is shown"


class Watched(np.ndarray):  # type: ignore[type-arg]
    """Inputs of an experience that note which samples are read."""

    reads: list[int]

    def __getitem__(self, key: Any) -> Any:
        if "reads" in self.__dict__ and isinstance(key, np.ndarray):
            self.reads.extend(int(i) for i in key)
        return np.asarray(super().__getitem__(key))


def watched(benchmark: Benchmark) -> Benchmark:
    made = []
    for e in benchmark.experiences:
        inputs = e.inputs.view(Watched)
        inputs.reads = []
        made.append(replace(e, inputs=inputs))
    return replace(benchmark, experiences=tuple(made))


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Benchmark]:
    """Runs from now on have noise as test data; returns what notes which samples they read."""
    held: list[Benchmark] = []
    made = pipeline.make_benchmark

    def spied(*given: Any) -> Benchmark:
        held.append(watched(with_noise_as_test(made(*given))))
        return held[-1]

    monkeypatch.setattr(pipeline, "make_benchmark", spied)
    return lambda: held[-1]


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "run"))


def test_arms_that_come_later_train_nothing_and_see_validation_samples_only(
    finished: Path, tmp_path: Path, watching: Callable[[], Benchmark]
) -> None:
    folder = copied(finished, tmp_path)
    before, when = content(folder), stamps(folder)
    late = {
        "late_grid": ARMS["grid"],
        "late_full_grid": ARMS["full_grid"],
        "late_regmean": "method: regmean, off_diagonal: 0.5, coefficients: 1.0",
        "late_fisher": "bank: full, method: fisher, labels: data, normalise: none, "
        "coefficients: 1.0",
        "late_residual": "bank: full, method: ties, residual: {name: sparse, m: 1, scope: tensor}",
    }
    run(folder, *arms(late), "references=[]", "seeds=[0,1]")
    # Statistics and adapters are those that were there, and numbers of earlier arms too.
    after = content(folder)
    assert stamps(folder) == when
    for name, data in before.items():
        if name.endswith(".csv"):
            assert set(data.splitlines()) <= set(after[name].splitlines())
        elif name != "stream.json":
            assert after[name] == data, name
    for e in watching().experiences:
        assert set(e.inputs.reads) == {*e.val.tolist(), *e.test.tolist()}
    for seed in (0, 1):
        for arm in ("grid", "full_grid"):
            assert given_alpha(folder, seed, f"late_{arm}") == given_alpha(folder, seed, arm)


def test_noise_as_test_data_changes_nothing_that_is_learned_gathered_or_chosen(
    finished: Path, tmp_path: Path, watching: Callable[[], Benchmark]
) -> None:
    """What is lost of a bank, of statistics and of choices comes back the same, bit for bit."""
    folder = copied(finished, tmp_path)
    shutil.rmtree(place(folder, 0, "full", 1))
    (place(folder, 0, "full", 2) / "delta.safetensors").write_bytes(b"cut")
    for bank in ("fresh", "full"):
        shutil.rmtree(place(folder, 0, bank, 0) / "statistics")
    (place(folder, 0, "fresh", 2) / "statistics" / "gram.safetensors").unlink()
    for name in ("scores.csv", "coefficients.csv", "accounts.csv", "spectra.csv"):
        header, *lines = (folder / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("0,")]
        (folder / name).write_text("".join([header, *kept]))
    run(folder, *WHOLE)
    before, after = content(finished), content(folder)
    same = [n for n in before if n.endswith((".safetensors", ".json"))]
    same = [n for n in same if not n.endswith("training.json")]
    assert sum("/statistics/" in n for n in same) == 2 * 2 * 3 * 2
    assert {n: after[n] for n in same} == {n: before[n] for n in same}
    for name in ("coefficients.csv", "accounts.csv", "spectra.csv"):
        # Spectra stand in the order in which they were measured.
        one, other = ([list(r.values()) for r in rows(f, name)] for f in (finished, folder))
        assert sorted(one) == sorted(other)
    assert rows(folder) != rows(finished)


LOGS = ("log.txt", "environment.json")


def test_the_same_command_again_does_nothing(finished: Path) -> None:
    def everything() -> dict[str, tuple[int, bytes]]:
        paths = [p for p in finished.rglob("*") if p.is_file() and p.name not in LOGS]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}

    before, when = everything(), stamps(finished)
    run(finished, *WHOLE)
    after = everything()
    assert stamps(finished) == when
    assert {n: data for n, (_, data) in after.items()} == {n: d for n, (_, d) in before.items()}
    for name, (time, _) in before.items():
        if name.endswith((".npz", "scores.csv", "spectra.csv", "accounts.csv")):
            assert after[name][0] == time, name


# Statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["fresh", "full"])
def test_gram_matrices_are_of_the_own_model_on_its_train_part(
    finished: Path, benchmark: Benchmark, bare: Backbone, bank: str
) -> None:
    e = benchmark.experiences[1]
    own = dense(bare, deltas_of(finished, 1, bank, 1))
    seen: dict[str, Tensor] = {}
    for name, module in own.network.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0].flatten(0, -2)})
            )
    outputs_of(own, head_of(finished, 1, bank, 1), e, e.train)
    grams = statistic_of(finished, 1, bank, 1, "gram")
    assert len(grams) == (6 if bank == "fresh" else 4 * 6)
    for name, gram in grams.items():
        inputs = seen[name]
        assert len(inputs) == len(e.train) * 4
        np.testing.assert_allclose(
            gram, (inputs.T @ inputs / len(inputs)).numpy(), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("bank", ["fresh", "full"])
def test_fisher_information_is_of_the_own_model_on_its_validation_part(
    finished: Path, benchmark: Benchmark, bare: Backbone, bank: str
) -> None:
    e = benchmark.experiences[0]
    own = dense(bare, deltas_of(finished, 0, bank, 0))
    head = {k: v.double() for k, v in head_of(finished, 0, bank, 0).items()}
    wanted = ["blocks.0.attn.qkv", "blocks.5.attn.qkv"]
    wanted += ["pos_embed", "patch_embed.proj", "blocks.2.norm1.bias"] * (bank == "full")
    squares = statistic_of(finished, 0, bank, 0, "fisher_data")
    assert len(squares) == (6 if bank == "fresh" else len(TENSORS))
    named = dict(own.network.named_parameters())
    own.network.requires_grad_(True)
    weights = [named.get(f"{name}.weight", named.get(name)) for name in wanted]
    sums = [torch.zeros_like(w) for w in weights]
    for i in e.val:
        image = ImageBackbone.encode(e.inputs[[i]]).double()
        outputs = F.linear(own.network(own.normalise(image)), head["weight"], head["bias"])
        loss = F.cross_entropy(outputs, torch.tensor([int(e.targets[i])]))
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total.add_(gradient.square())
    for name, total in zip(wanted, sums, strict=True):
        expected = (total / len(e.val)).numpy()
        np.testing.assert_allclose(squares[name], expected, rtol=2e-2, atol=1e-5 * expected.max())


# What is recorded --------------------------------------------------------------------------------


def test_arms_mean_the_same_when_they_are_read_again(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    for name in ARMS:
        variant = config["variants"][name]
        arm = make_arm(name, settings_of(variant), ArmDefaults(head="own"))
        assert arm.variant == variant
        assert variant.get("bank", "fresh") == bank_name(name)
    assert config["variants"]["low_1"]["residual"] == {"name": "low_rank", "q": 1}
    assert config["variants"]["fft_5"]["residual"] == {"name": "sparse", "m": 5, "scope": "model"}
    assert config["variants"]["grid"]["select_on"] == "val"
    said = config["descriptions"]
    assert "singular" in said["low_1"]
    assert "'full'" in said["post_10"]
    assert "chosen on the validation part" in said["full_grid"]


def test_spectra_of_both_banks(finished: Path) -> None:
    found = rows(finished, "spectra.csv")
    assert {(r["seed"], r["bank"], r["adapter"]) for r in found} == {
        (seed, bank, str(j)) for seed in "01" for bank in ("fresh", "full") for j in range(3)
    }
    for bank, longest in (("fresh", 2), ("full", 128)):
        energy = [float(r["energy"]) for r in found if (r["bank"], r["seed"]) == (bank, "0")]
        assert len(energy) == 3 * longest
        squares = [
            np.square(np.linalg.svd(d, compute_uv=False)[:longest])
            for d in deltas_of(finished, 0, bank, 0).values()
            if d.ndim == 2
        ]
        expected = np.cumsum(sum(squares)) / sum(s.sum() for s in squares)
        np.testing.assert_allclose(energy[:longest], expected, rtol=1e-4)


# Whole backbones only ----------------------------------------------------------------------------

ONLY_FULL = (
    *("strategy.epochs=1", "~benchmark.tasks.style", "benchmark.samples_per_class=4"),
    *arms({name: ARMS[name] for name in ("post_10", "full_mean", "full_fisher")}),
    rows_wanted("head_only", "single_full"),
)


@pytest.fixture(scope="module")
def only_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("full") / "run", *ONLY_FULL, "embed=painting")


def test_no_lora_is_trained_where_none_is_needed(only_full: Path) -> None:
    assert [p.name for p in (only_full / "adapters").iterdir()] == ["seed-0-full"]
    for j in range(2):
        assert value_of(only_full, 0, "single_full", j, "relative") == 1.0
    numbers = {
        r["arm"]: float(r["value"])
        for r in rows(only_full, "accounts.csv")
        if r["quantity"] == "parameters"
    }
    assert numbers == {
        "post_10": BACKBONE + 2 * (BACKBONE // 10),
        "full_mean": BACKBONE,
        "full_fisher": BACKBONE,
        "head_only": BACKBONE,
        "single_full": 2 * BACKBONE,
    }


def test_an_arm_of_the_other_bank_trains_that_bank_alone(only_full: Path, tmp_path: Path) -> None:
    folder = copied(only_full, tmp_path)
    when, before = stamps(folder), rows(folder)
    run(folder, *ONLY_FULL, *arms({"low_2": ARMS["low_2"]}), "embed=painting")
    after = stamps(folder)
    assert {name: after[name] for name in when} == when
    assert {Path(n).parts[-3] for n in after.keys() - when.keys()} == {"seed-0"}
    assert [row for row in rows(folder) if row["arm"] != "low_2"] == before
    assert {r["bank"] for r in rows(folder, "spectra.csv")} == {"fresh", "full"}
    # Its features were placed too, and no other's again.
    placed = rows(folder, "embedding.csv")
    assert [row for row in placed if row["arm"] != "low_2"] == rows(only_full, "embedding.csv")
    assert sum(row["arm"] == "low_2" for row in placed) == 24


def test_features_are_placed_by_name_or_number(only_full: Path, tmp_path: Path) -> None:
    placed = rows(only_full, "embedding.csv")
    e = data_of(only_full).experiences[1]
    for arm in ("post_10", "full_mean", "full_fisher", "head_only", "single_full"):
        own = [row for row in placed if row["arm"] == arm]
        assert [(r["seed"], r["evaluated"]) for r in own] == [("0", "1")] * len(e.test)
        assert [int(r["sample"]) for r in own] == e.test.tolist()
        assert [int(r["label"]) for r in own] == e.targets[e.test].tolist()
        assert np.isfinite([[float(r["x"]), float(r["y"])] for r in own]).all()
    folder = copied(only_full, tmp_path)
    when = (folder / "embedding.csv").stat().st_mtime_ns
    run(folder, *ONLY_FULL, "embed=1")
    assert (folder / "embedding.csv").stat().st_mtime_ns == when
    run(folder, *ONLY_FULL, "embed=0")
    more = rows(folder, "embedding.csv")
    assert more[: len(placed)] == placed
    assert {row["evaluated"] for row in more[len(placed) :]} == {"0"}
    assert len(more) == 2 * len(placed)


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(only_full: Path, tmp_path: Path) -> None:
    """Twice: while a bank of whole backbones is trained, and while statistics are gathered."""
    driver = Path(__file__).parent / "reuse_kill_driver.py"
    given = json.dumps([*SMALL, *ONLY_FULL, "embed=painting"])
    done = subprocess.run(
        [*warm.python(), str(driver), str(tmp_path), given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result["killed"])
    assert result["there"][0] < result["there"][1]
    assert result["code"] == 0
    assert result["made_again"] == []
    assert result["leftovers"] == []
    expected = {n: d for n, d in content(only_full).items() if not n.endswith("training.json")}
    found = content(Path(result["folder"]))
    assert {n: found[n] for n in expected} == expected


# A stream of domains -----------------------------------------------------------------------------

PREFIXES = {
    "low_2": ARMS["low_2"],
    "low_1": ARMS["low_1"],
    "low_beside": ARMS["low_beside"],
    "regmean": ARMS["regmean"],
    "fisher": ARMS["fisher"],
    "full_regmean": ARMS["full_regmean"],
    "fft_5": ARMS["fft_5"],
    "grid": ARMS["grid"],
}
STAGES = ("-1", "0", "1", "2")


def stream(folder: Path, *more: str) -> Path:
    given = [g for g in overrides(folder) if not g.startswith("+arms.")]
    rates = ("strategy.lr=1e-2", "++strategy.full_lr=1e-3", "benchmark.val_fraction=0.34")
    return execute(compose_config([*given, *LIMITS, *rates, *more]))


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head for the whole stream."""
    folder = tmp_path_factory.mktemp("domains") / "run"
    return stream(folder, *arms(PREFIXES), rows_wanted("oracle", "last"))


@pytest.fixture(scope="module")
def domain_data(domains: Path) -> Benchmark:
    return data_of(domains)


def test_the_oracle_is_all_singular_values_at_every_stage(
    domains: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With one head for the stream, and with a head for each domain."""
    folder = tmp_path_factory.mktemp("own") / "run"
    own = stream(
        folder, *arms({"low_2": ARMS["low_2"]}), rows_wanted("oracle"), "strategy.head=own"
    )
    for finished_run in (domains, own):
        for t in range(3):
            one, other = (hits_of(finished_run, 0, name, t) for name in ("oracle", "low_2"))
            assert set(one) == set(other) == {0, 1, 2}
            assert all(np.array_equal(one[j], other[j]) for j in range(3))
        values = {
            name: [
                (r["stage"], r["evaluated"], r["metric"], r["value"])
                for r in rows(finished_run)
                if r["arm"] == name and r["stage"] != "-1"
            ]
            for name in ("oracle", "low_2")
        }
        assert values["oracle"] == values["low_2"]


def test_residuals_of_a_stream_by_hand(
    domains: Path, domain_data: Benchmark, bare: Backbone
) -> None:
    """Domains that have come have their own adapter and head, others the newest."""
    kinds: dict[str, tuple[str, Callable[[Deltas, Deltas], Deltas]]] = {
        "low_1": ("fresh", lambda own, base: low_rank(own, 1)),
        "low_beside": ("fresh", lambda own, base: plus(base, low_rank(minus(own, base), 1))),
        "fft_5": ("full", lambda own, base: plus(base, sparse(minus(own, base), 50))),
    }
    for arm, (bank, how) in kinds.items():
        each = bank_of(domains, 0, bank)
        for t in range(3):
            base = weighted(each[: t + 1], 0.4)
            for j in range(3):
                m = min(j, t)
                update = how(each[m], base)
                found = hits_of(domains, 0, arm, t)[j]
                head = head_of(domains, 0, bank, m)
                require_right(dense(bare, update), head, domain_data.experiences[j], found)


def test_averages_by_statistics_of_a_stream_by_hand(
    domains: Path, domain_data: Benchmark, bare: Backbone
) -> None:
    """At stage t of the adapters and statistics up to t, under the newest head."""
    for arm, bank, name, merge in (
        ("regmean", "fresh", "gram", regmean),
        ("full_regmean", "full", "gram", regmean),
        ("fisher", "fresh", "fisher_data", fisher),
    ):
        each = bank_of(domains, 0, bank)
        known = [statistic_of(domains, 0, bank, j, name) for j in range(3)]
        for t in range(3):
            own = dense(bare, merge(each[: t + 1], known[: t + 1]))
            for j in range(3):
                found = hits_of(domains, 0, arm, t)[j]
                head = head_of(domains, 0, bank, t)
                require_right(own, head, domain_data.experiences[j], found)


def test_a_stream_needs_no_old_samples_for_them(
    domains: Path, tmp_path: Path, watching: Callable[[], Benchmark]
) -> None:
    """Later arms of other options read no sample but those they are tested on."""
    folder = copied(domains, tmp_path)
    when = stamps(folder)
    late = {
        "late": "method: regmean, off_diagonal: 0.5, coefficients: 1.0",
        "late_fisher": "method: fisher, labels: data, normalise: none, coefficients: 1.0",
        "late_full": "bank: full, method: regmean, ridge: 0.1, coefficients: 1.0",
        "late_residual": "bank: full, residual: {name: sparse, m: 1}",
    }
    stream(folder, *arms(late), "references=[]")
    assert stamps(folder) == when
    for e in watching().experiences:
        assert set(e.inputs.reads) == set(e.test.tolist())
    assert {r["stage"] for r in rows(folder) if r["arm"] == "late"} == {*STAGES}


def test_a_grid_of_a_stream_takes_the_lowest_validation_loss(
    domains: Path, domain_data: Benchmark, bare: Backbone
) -> None:
    """Of the domains so far, under the newest head."""
    each = bank_of(domains, 0, "fresh")
    for t in range(3):
        head, losses = head_of(domains, 0, "fresh", t), []
        for value in GRID:
            own = dense(bare, weighted(each[: t + 1], value))
            seen = domain_data.experiences[: t + 1]
            outputs = np.concatenate([outputs_of(own, head, e, e.val) for e in seen])
            targets = np.concatenate([e.targets[e.val] for e in seen])
            losses.append(
                float(F.cross_entropy(torch.from_numpy(outputs), torch.from_numpy(targets)))
            )
        best, other = sorted(losses)[:2]
        assert best < other - 1e-6
        assert given_alpha(domains, 0, "grid", t) == [GRID[int(np.argmin(losses))]] * (t + 1)


def test_numbers_and_spectra_are_of_runs_that_merge_everything_once(domains: Path) -> None:
    assert "parameters" not in {r["quantity"] for r in rows(domains, "accounts.csv")}
    assert not (domains / "spectra.csv").exists()


# Heads, without training -------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["shared", "frozen", "per_experience", "prototypes", "own"])
def test_the_oracle_is_all_singular_values_under_every_head_policy(
    backbone: Backbone, benchmark_16: Benchmark, head: str
) -> None:
    bench = workbench(benchmark_16, backbone, head)
    given = make_arm("x", {"residual": {"name": "low_rank", "q": 2}}, ArmDefaults(spc=2, head=head))
    for t in range(3):
        one = REFERENCES["oracle"].serve(bench, stage(bench, t))
        other = serve_arm(bench, given, stage(bench, t))
        for j in range(3):
            inputs, _ = samples_of_test(bench, j)
            outputs = [
                served.head(j)(features_under(backbone, served.update(j), inputs))
                for served in (one, other)
            ]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_an_arm_may_ask_for_class_means_under_its_residuals(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    """Of the samples that had come when the adapter was the newest, as many as it says."""
    bench = workbench(benchmark_16, backbone, "shared")
    given = {"residual": {"name": "low_rank", "q": 1}, "head": "prototypes", "spc": 4}
    made = make_arm("x", given, ArmDefaults(spc=2))
    served = serve_arm(bench, made, stage(bench, 2))
    for j in range(3):
        inputs, targets = support(bench, 4, j)
        seen = F.normalize(features_under(backbone, served.update(j), inputs), dim=1)
        means = torch.stack([seen[targets == c].mean(0) for c in range(3)])
        of_test = features_under(backbone, served.update(j), samples_of_test(bench, j)[0])
        expected = F.normalize(of_test, dim=1) @ F.normalize(means, dim=1).T
        outputs = served.head(j)(of_test)
        assert torch.equal(outputs.argmax(1), expected.argmax(1))
        assert outputs.corrcoef().shape == expected.corrcoef().shape
    assert not torch.equal(served.head(0)(of_test), served.head(2)(of_test))


def test_a_new_head_is_trained_under_each_residual(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    bench = workbench(benchmark_16, backbone, "own")
    given = {"residual": {"name": "low_rank", "q": 1}, "head": "refit"}
    served = serve_arm(bench, make_arm("x", given, ArmDefaults(head="own")), stage(bench, 2))
    for j in range(3):
        expected = bench.refit(served.update(j), j).state_dict()
        found = served.head(j).state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def whole_bank(bench: Any, first: int) -> tuple[Adapter, ...]:
    """Return a random whole model and a random head for each task."""
    made = []
    for j, adapter in enumerate(bench.banks["fresh"]):
        draw = torch.Generator().manual_seed(first + j)
        named = bench.backbone.network.named_parameters()
        deltas = {
            name.removesuffix(".weight"): torch.randn(p.shape, generator=draw) / 8
            for name, p in named
        }
        head = {k: torch.randn(v.shape, generator=draw) / 2 for k, v in adapter.head.items()}
        made.append(Adapter(adapter.name, {}, head, deltas=deltas))
    return tuple(made)


@pytest.mark.parametrize("seen", ["val", "support"])
def test_a_choice_for_whole_backbones_is_made_under_their_own_heads(
    backbone: Backbone, seen: str
) -> None:
    """Heads that are far apart: another bank's would choose something else."""
    bench = task_bench.bench_of(task_bench.unlike_tasks(), backbone)
    bench = replace(bench, banks={**bench.banks, "full": whole_bank(bench, 100)})
    values = [0.05, 0.2, 0.4, 0.7, 1.0]
    given = {"bank": "full", "method": "task_arithmetic", "select_on": seen}
    made = task_bench.arm(**given, coefficients={"name": "grid", "values": values})
    served = serve_arm(bench, made, task_bench.stages(bench, "all_at_once")["all"])
    bank = [{m: d.double().numpy() for m, d in a.deltas.items()} for a in bench.banks["full"]]

    def chosen(heads: str) -> float:
        losses = []
        for value in values:
            shares = []
            for j, e in enumerate(bench.benchmark.experiences):
                indices = e.val if seen == "val" else bench.buffers[2][j]
                head = bench.banks[heads][j].head

                def loss(
                    update: Deltas, e: Experience = e, rows: Any = indices, head: Any = head
                ) -> float:
                    outputs = outputs_of(dense(backbone, update), head, e, rows)
                    found = loss_by_hand(e.task, torch.from_numpy(outputs), e.targets[rows])
                    return float(found)

                shares.append(loss(weighted(bank, value)) / loss(bank[j]))
            losses.append(float(np.mean(shares)))
        return values[int(np.argmin(losses))]

    assert [c.value for c in served.coefficients] == [chosen("full")] * 3
    assert chosen("fresh") != chosen("full")


# What is wrong is said before anything is trained ------------------------------------------------

WRONG_ARMS = {
    "a tuned head that nobody would see": (
        "{method: cat, tune_head: true, coefficients: softmax, residual: {name: low_rank}}",
        "leave tune_head out, or residual",
    ),
    "a q of nothing": (
        "{residual: {name: low_rank, q: 0}}",
        "Expected q of residual 'low_rank' to be an integer of at least 1 but got 0",
    ),
    "nothing kept": (
        "{residual: {name: sparse, m: 0}}",
        "Expected m of residual 'sparse' to be a percentage in (0, 100] but got 0",
    ),
    "more than all kept": (
        "{bank: full, residual: {name: sparse, m: 101}}",
        "Expected m of residual 'sparse' to be a percentage in (0, 100] but got 101",
    ),
    "an unknown scope": (
        "{residual: {name: sparse, scope: layer}}",
        "Expected scope of residual 'sparse' to be one of model, tensor but got 'layer'",
    ),
    "an unknown residual": (
        "{residual: {name: low_ranks, q: 1}}",
        "Unknown residual 'low_ranks': did you mean 'low_rank'",
    ),
    "an unknown option of a residual": (
        "{residual: {name: low_rank, k: 1}}",
        "Unknown option of residual 'low_rank' 'k'",
    ),
    "a residual without a name": ("{residual: {q: 1}}", "Expected a residual with a name"),
    "an unknown option of an arm that merges nothing": (
        "{residual: {name: low_rank, q: 1}, bnak: full}",
        "Unknown option 'bnak': did you mean 'bank'",
    ),
    "an unknown bank": (
        "{bank: ful, residual: {name: sparse, m: 1}}",
        "Unknown bank 'ful': did you mean 'full'",
    ),
    "a bank that no arm merges": ("{bank: joint, method: cat}", "Unknown bank 'joint'"),
    "a residual of an arm that is adapted": (
        "{adapt: lora, residual: {name: low_rank, q: 1}}",
        "leave residual out, or adapt",
    ),
    "another bank of an arm that is adapted": (
        "{bank: full, adapt: lora}",
        "leave bank out, or adapt",
    ),
    "a rank of nothing": (
        "{rank: 2, residual: {name: low_rank, q: 1}}",
        "rank belongs to a merge but no method is given",
    ),
    "coefficients of nothing": (
        "{coefficients: 0.5, residual: {name: low_rank, q: 1}}",
        "coefficients belongs to a merge but no method is given",
    ),
    "a choice of given coefficients": (
        "{method: cat, coefficients: 1.0, select_on: val}",
        "select_on says what coefficients are learned or chosen on but coefficients=fixed",
    ),
    "an unknown place to choose on": (
        "{method: cat, coefficients: grid, select_on: vla}",
        "Unknown select_on 'vla': did you mean 'val'",
    ),
    "factors of whole backbones": (
        "{bank: full, method: linear, space: factors, coefficients: 1.0}",
        "space=factors merges the factors of adapters but what bank=full holds has none",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ARMS)
def test_a_wrong_arm_in_one_sentence(wrong: str) -> None:
    """Where settings are read, so before there are data or models."""
    given, said = WRONG_ARMS[wrong]
    with pytest.raises(UserError) as caught:
        make_arm("x", yaml.safe_load(given), ArmDefaults(head="own"))
    assert said in str(caught.value)
    assert str(caught.value).startswith("Arm 'x': ")
    assert "\n" not in str(caught.value)


WRONG_RUNS = {
    "a q above the rank": (
        ["+arms.x={residual: {name: low_rank, q: 3}}"],
        "Arm 'x': Expected q of residual 'low_rank' to be at most the rank 2",
    ),
    "a q that no weight has": (
        ["+arms.x={bank: full, residual: {name: low_rank, q: 129}}"],
        "to be at most the rank 128 of the adapters but got 129",
    ),
    "the same beside a merge": (
        ["+arms.x={method: task_arithmetic, residual: {name: low_rank, q: 129}}"],
        "to be at most the rank 128 of the adapters but got 129",
    ),
    "a choice on nothing": (
        ["+arms.x={method: cat, coefficients: grid, select_on: val}", "benchmark.val_fraction=0.0"],
        "select_on=val chooses on the validation part but that of 'photo' is empty; set "
        "benchmark.val_fraction",
    ),
    "a statistic of nothing": (
        ["+arms.x={method: fisher, coefficients: 1.0}", "benchmark.val_fraction=0.0"],
        "Arm 'x': Expected val samples of 'photo' to gather the statistic 'fisher_model' of but "
        "there are none; set benchmark.val_fraction",
    ),
    "a picture of an unknown task": (
        ["+arms.x={method: cat}", "embed=paintings"],
        "Unknown embed 'paintings': did you mean 'painting'",
    ),
    "a picture of a number that is too high": (
        ["+arms.x={method: cat}", "embed=3"],
        "Expected embed to be a task's name, or its number below 3, but got 3",
    ),
    "a picture under another protocol": (
        ["+arms.x={method: cat}", "embed=painting", "protocol=prefixes"],
        "embed shows features where all adapters are merged at once but protocol=prefixes",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RUNS)
def test_one_sentence_and_exit_code_2_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    more, said = WRONG_RUNS[wrong]
    folder = tmp_path / "run"
    small = [s for s in SMALL if not any(s.split("=")[0] == m.split("=")[0] for m in more)]
    assert main(["run", f"run_dir={folder}", *small, "references=[]", *more]) == 2
    out, err = capsys.readouterr()
    (sentence,) = [line for line in err.splitlines() if line.startswith("cl-lora: ")]
    assert said in sentence
    assert "Traceback" not in out + err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (folder / "config.yaml").exists()
