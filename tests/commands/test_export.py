"""What was exported predicts what the run scored, with peft and timm alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from cl_lora.adapters import Adapter, AdapterBank
from cl_lora.adapters.injection import applied, split_qkv
from cl_lora.benchmarks import make_benchmark
from cl_lora.benchmarks.core import Benchmark
from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import execute
from cl_lora.merging import merge
from cl_lora.models.backbones import ModelConfig, load_backbone
from cl_lora.models.heads import head_of
from cl_lora.models.images import ImageBackbone
from cl_lora.run_folder import layout
from cl_lora.run_folder.config_file import read_config, write_config
from cl_lora.run_folder.hits import read_hits
from cl_lora.run_folder.reader import RunFolder

pytestmark = pytest.mark.slow

SMALL = (
    *("model.img_size=16", "precision=fp32", "device=cpu", "report=false"),
    *("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2"),
)
SHAPES = (
    *("benchmark.classes=3", "benchmark.styles=[photo,cartoon,sketch]"),
    *("benchmark.samples_per_class=6", "benchmark.test_samples_per_class=4"),
)
ADAPTIVE = "{name: adaptive, b_max: 2, steps: 2, granularity: layer}"
STREAM_ARMS = (
    "arms=none",
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
    f"+arms.ties={{method: ties, spc: 2, coefficients: {ADAPTIVE}}}",
    f"+arms.linear={{method: linear, space: factors, spc: 2, coefficients: {ADAPTIVE}}}",
    "+arms.grid={method: svd, rank: 3, spc: 2, coefficients: {name: grid, values: [0.3, 1.0]}}",
    "+arms.tuned={method: task_arithmetic, spc: 2, tune_head: true, "
    "coefficients: {name: softmax, steps: 2}}",
    "+arms.means={method: task_arithmetic, head: prototypes, spc: 2, coefficients: 0.3}",
)
FEW_SHOT = (
    *("experiment=few_shot_stream", "shots=[1]", "draws=1", "references=[last]"),
    *("adaptation.warmup_steps=2", "adaptation.steps=2", "adaptation.epochs=0", "arms=none"),
    "+arms.lora={adapt: lora}",
    "+arms.uniform={method: task_arithmetic, adapt: head}",
    "+arms.learned={method: task_arithmetic, coefficients: softmax, adapt: coefficients}",
)
MULTITASK = (
    *("experiment=multitask_shapes", "subsets={pairs: true, triples_with: null}", "arms=none"),
    *("benchmark.tasks.object.classes=3", "benchmark.tasks.object.styles=[photo,cartoon]"),
    *("benchmark.samples_per_class=6", "benchmark.test_samples_per_class=4"),
    *("references=[single,trivial]", "seeds=[0]", "strategy.head_hidden=8"),
    "+arms.cat={method: cat, coefficients: 1}",
    "+arms.new_head={method: cat, coefficients: 1, head: refit}",
)

# The folders' own code, run without this package. Torchvision's wheel may not import beside a CPU
# build of torch; compat.py, run as a file, declares what is missing and changes nothing else.
ALONE = """
import json, re, runpy, sys
from pathlib import Path
import torch

compat, *jobs = sys.argv[1:]
kept = runpy.run_path(compat)
kept["declare_torchvision_operators"]()
for job in map(json.loads, jobs):
    text = (Path(job["folder"]) / "README.md").read_text()
    code = {}
    exec(re.search(r"```python\\n(.*?)```", text, re.DOTALL)[1], code)
    if "hub" in job:  # no hub can be reached: timm reads the same weights from a file
        create, overlay = code["timm"].create_model, {"file": job["hub"]}
        code["timm"].create_model = lambda *a, **k: create(*a, **k, pretrained_cfg_overlay=overlay)
    network, heads, export = code["load"](job["folder"], *job.get("given", []))
    if "hub" in job:
        code["timm"].create_model = create
    images = torch.load(job["images"])
    found = code["forward"](network, heads, export, images)
    answers = {n: code["answer"](export, n, o) for n, o in found.items()} if heads else {}
    torch.save({"outputs": found, "answers": answers}, job["out"])
assert "cl_lora" not in sys.modules
"""


def run(folder: Path, *given: str) -> Path:
    return execute(compose_config([f"run_dir={folder}", *given]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def stream(root: Path) -> Path:
    """Domains, the embedded backbone, q and v apart, two seeds."""
    references = "references=[last,oracle,sequential,joint]"
    targets = "strategy.targets=[q,v,fc1]"
    return run(root / "stream", *SHAPES, *SMALL, *STREAM_ARMS, references, targets, "seeds=[0,1]")


@pytest.fixture(scope="module")
def few_shot(root: Path) -> Path:
    """Tasks one after another, each with a head of its own."""
    return run(root / "few_shot", *FEW_SHOT, *SHAPES, *SMALL, "strategy.targets=[k]", "seeds=[0]")


@pytest.fixture(scope="module")
def multitask(root: Path) -> Path:
    """Classes, a number and landmarks, with MLP heads."""
    return run(root / "multitask", *MULTITASK, *SMALL)


@pytest.fixture(scope="module")
def weights(root: Path) -> Path:
    """The weights of a small model of timm with its classifier, in half precision."""
    import timm

    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=5).state_dict()
    path = root / "test_vit.safetensors"
    safetensors.torch.save_file({key: value.half() for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def named(root: Path, weights: Path) -> Path:
    """A model of timm with weights from a file, heads merged with the adapters."""
    model = ("model.name=test_vit", f"model.checkpoint={weights}", "model.img_size=32")
    arm = "+arms.third={method: task_arithmetic, coefficients: uniform}"
    more = ("arms=none", arm, "references=[]", "strategy.head=per_experience", "seeds=[0]")
    return run(root / "named", *SHAPES, *SMALL, *model, *more)


def export(folder: Path, out: Path, *given: str) -> Path:
    assert main(["export", str(folder), "--out", str(out), *given]) == 0
    return out


@pytest.fixture(scope="module")
def found(
    root: Path, stream: Path, few_shot: Path, multitask: Path, named: Path, weights: Path
) -> Mapping[str, dict[str, Any]]:
    """Every export, served by a process of its own: outputs and answers for all test images."""
    from_hub = root / "from_hub"  # the same run, had its weights come from the hub
    shutil.copytree(named, from_hub)
    config = read_config(from_hub)
    model = {**config.settings["model"], "checkpoint": None, "pretrained": True}
    write_config(from_hub, replace(config, settings={**config.settings, "model": model}))
    full = root / "full.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({k: v.float() for k, v in tensors.items()}, full)
    wanted: dict[str, tuple[Path, tuple[str, ...], dict[str, Any]]] = {
        "half": (stream, ("--arm", "half"), {}),
        "ties": (stream, ("--arm", "ties", "--dense"), {}),
        "linear": (stream, ("--arm", "linear", "--stage", "cartoon"), {}),
        "grid": (stream, ("--arm", "grid", "--seed", "1"), {}),
        "sequential": (stream, ("--arm", "sequential"), {}),
        "joint": (stream, ("--arm", "joint"), {}),
        "means": (stream, ("--arm", "means", "--head", "none"), {}),
        "uniform": (few_shot, ("--arm", "uniform"), {}),
        "learned": (few_shot, ("--arm", "learned", "--head", "trained"), {}),
        "cat": (multitask, ("--arm", "cat", "--stage", "object + area"), {}),
        "last_pair": (multitask, ("--arm", "cat"), {}),
        "single": (multitask, ("--arm", "single", "--stage", "area"), {}),
        "file": (named, ("--arm", "third"), {"given": [str(weights)]}),
        "with_base": (named, ("--arm", "third", "--with-base"), {}),
        "hub": (from_hub, ("--arm", "third"), {"hub": str(full)}),
    }
    jobs = []
    for name, (folder, given, more) in wanted.items():
        out = export(folder, root / "out" / name, *given)
        images = root / f"{folder.name}.pt"
        if not images.exists():
            torch.save(test_images(folder), images)
        result = str(root / f"{name}.result")
        jobs.append({"folder": str(out), "images": str(images), "out": result, **more})
    compat = Path(__file__).parents[2] / "cl_lora" / "support" / "compat.py"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(compat), *map(json.dumps, jobs)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "base weights" not in done.stderr  # fingerprints agree
    return {
        name: {
            "record": json.loads((root / "out" / name / "export.json").read_text()),
            "run": folder,
            **torch.load(root / f"{name}.result"),
        }
        for name, (folder, _, _) in wanted.items()
    }


def benchmark_of(folder: Path) -> Benchmark:
    config = RunFolder.read(folder).config
    return make_benchmark(config["benchmark"], int(config["identity"]["backbone"]["img_size"]))


def test_images(folder: Path) -> torch.Tensor:
    """Return the test images of all experiences, one after another."""
    return torch.cat(
        [ImageBackbone.encode(e.inputs[e.test]) for e in benchmark_of(folder).experiences]
    )


test_images.__test__ = False  # type: ignore[attr-defined]


def of_experience(folder: Path, values: Any, j: int) -> Any:
    sizes = [len(e.test) for e in benchmark_of(folder).experiences]
    return values[sum(sizes[:j]) : sum(sizes[: j + 1])]


@pytest.mark.parametrize(
    "name",
    ["half", "ties", "linear", "grid", "sequential", "joint", "uniform", "cat", "file", "hub"],
)
def test_every_test_image_is_served_as_the_run_scored_it(found, name: str) -> None:
    one, names = found[name], RunFolder.read(found[name]["run"]).experiences
    record, benchmark = one["record"], benchmark_of(one["run"])
    path = layout.hits_file(one["run"], record["seed"], record["arm"])
    hits, seen = read_hits(path), 0
    for head, serves in record["heads"].items():
        for experience in serves["experiences"]:
            j = names.index(experience)
            e = benchmark.experiences[j]
            if e.task.kind.name != "class":
                continue
            labels = np.array(e.task.labels)[e.targets[e.test]]
            answers = np.array(of_experience(one["run"], one["answers"][head], j))
            right: npt.NDArray[Any] = answers == labels
            assert right.tolist() == hits[record["stage"]["index"], j].tolist()
            assert right.mean() == pytest.approx(record["metrics"][experience]["accuracy"])
            seen += 1
    assert seen


def test_outputs_are_those_of_this_package(found, stream: Path) -> None:
    """To 1e-4 in float32: the merge, q and v split, under the newest head."""
    backbone = load_backbone(ModelConfig("embedded", img_size=16))
    split_qkv(backbone.network)
    bank = AdapterBank(layout.bank_folder(stream, 0, layout.FRESH))
    adapters = list(bank)
    with applied(backbone.network, merge(adapters, weights=[0.5] * 3)), torch.no_grad():
        expected = head_of(adapters[-1].head)(backbone(test_images(stream)))
    torch.testing.assert_close(found["half"]["outputs"]["shapes"], expected, rtol=1e-4, atol=1e-4)


def test_merged_heads_and_weights_of_a_file_are_those_of_this_package(
    found, named: Path, weights: Path
) -> None:
    config = ModelConfig("test_vit", checkpoint=str(weights), img_size=32)
    backbone, adapters = (
        load_backbone(config),
        list(AdapterBank(layout.bank_folder(named, 0, layout.FRESH))),
    )
    mean = {k: sum(a.head[k] for a in adapters) / 3 for k in adapters[0].head}
    with applied(backbone.network, merge(adapters)), torch.no_grad():
        expected = head_of(mean)(backbone(test_images(named)))
    for name in ("file", "with_base", "hub"):
        outputs = found[name]["outputs"]["shapes"]
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_regression_and_landmarks_come_back_in_their_unit(found, multitask: Path) -> None:
    benchmark = benchmark_of(multitask)
    assert found["last_pair"]["record"]["stage"]["name"] == "orientation + outline"
    for export_, name in (("cat", "area"), ("last_pair", "orientation"), ("last_pair", "outline")):
        one = found[export_]
        assert len(one["outputs"]) == 2
        j = benchmark.names.index(name)
        experience = benchmark.experiences[j]
        targets = torch.from_numpy(experience.targets[experience.test])
        answers = of_experience(multitask, one["answers"][name], j)
        assert answers.shape == targets.shape
        accumulator = experience.task.accumulator()
        accumulator.update(of_experience(multitask, one["outputs"][name], j), targets)
        for metric, value in accumulator.scores().items():
            assert one["record"]["metrics"][name][metric] == pytest.approx(value, rel=1e-4)
        if experience.task.scaling is not None:
            scaling = one["record"]["tasks"][name]["scaling"]
            assert scaling["mean"] == pytest.approx(experience.task.scaling.mean)
    assert list(found["single"]["outputs"]) == ["area"]


def test_heads_that_are_not_stored_are_said_so(found) -> None:
    assert found["means"]["outputs"].shape[1] == 128  # features
    for name, heads in (("means", []), ("learned", ["cartoon", "photo"])):
        record = found[name]["record"]
        assert sorted(record["heads"]) == sorted(heads)
        assert record["metrics"] == {}
        assert record["other_head"].startswith("it is made ")


def test_learned_coefficients_are_the_recorded_ones(found, stream: Path) -> None:
    table = RunFolder.read(stream).coefficients
    rows = table[(table["arm"] == "linear") & (table["seed"] == 0) & (table["stage"] == 1)]
    names = RunFolder.read(stream).experiences
    recorded = {(r.group, names[r.adapter]): r.value for r in rows.itertuples()}
    written = found["linear"]["record"]["coefficients"]
    assert {(g, m): v for g, row in written.items() for m, v in row.items()} == recorded
    assert len(written) == 6


def test_a_cut_update_says_its_error(stream: Path, tmp_path: Path, capsys) -> None:
    whole, cut = (
        Adapter.load(export(stream, tmp_path / name, "--arm", "half", *rank))
        for name, rank in (("whole", ()), ("cut", ("--rank", "2")))
    )
    lost = total = 0.0
    for module, f in whole.factors.items():
        singular = torch.linalg.svdvals(f.delta().double())
        lost, total = lost + float((singular[2:] ** 2).sum()), total + float((singular**2).sum())
        assert cut.factors[module].rank == 2
    record = json.loads((tmp_path / "cut" / "export.json").read_text())
    assert record["update"]["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert f"relative error {(lost / total) ** 0.5:.4g}" in capsys.readouterr().out
    assert "before the update was cut" in (tmp_path / "cut" / "README.md").read_text()


def test_the_first_seed_is_taken_and_said(stream: Path, tmp_path: Path, capsys) -> None:
    export(stream, tmp_path / "out", "--arm", "half")
    assert "seed 0 (of 0, 1; --seed chooses another)" in capsys.readouterr().out


def test_no_path_of_this_machine_is_written(root: Path, found) -> None:
    assert found
    for path in (root / "out").rglob("*"):
        if path.suffix in (".json", ".md"):
            assert str(root) not in path.read_text()
    hub = (root / "out" / "hub" / "README.md").read_text()
    assert re.search(r"base_model: timm/test_vit\.\w+\n", hub)  # with the tag of its weights
    card = (root / "out" / "file" / "README.md").read_text()
    assert re.search(r"your file `test_vit.safetensors`.*fingerprint `[0-9a-f]{32}`", card)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--arm", "haf"), "Unknown arm 'haf': did you mean 'half'"),
        (("--arm", "half", "--stage", "cartoons"), "Unknown stage of 'half' 'cartoons': did you"),
        (("--arm", "half", "--seed", "5"), "Unknown seed '5': known: 0, 1"),
        (("--arm", "half", "--rank", "0"), "--rank to be at least 1 but got 0"),
        (("--arm", "half", "--rank", "2", "--dense"), "give one of the two"),
        (("--arm", "half", "--head", "old"), "Unknown --head 'old'"),
        (("--arm", "half", "--head", "trained"), "leave --head trained out"),
        (("--arm", "ties"), "dense in 12 of its 12 modules"),
        (("--arm", "tuned"), "trained on the buffer along with the coefficients"),
        (("--arm", "means"), "give --head trained"),
        (("--arm", "oracle"), "serves no single adapter"),
        ((), "the following arguments are required: --arm"),
    ],
)
def test_a_mistake_is_one_sentence(stream: Path, tmp_path: Path, given, message, capsys) -> None:
    assert main(["export", str(stream), "--out", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_was_trained_on_a_support_set_is_refused(few_shot: Path, tmp_path, capsys) -> None:
    assert main(["export", str(few_shot), "--arm", "lora", "--out", str(tmp_path / "o")]) == 2
    assert "trains weights on the support set" in capsys.readouterr().err


def test_a_head_that_is_trained_anew_is_not_stored(multitask: Path, tmp_path, capsys) -> None:
    given = ["export", str(multitask), "--arm", "new_head", "--out", str(tmp_path / "out")]
    assert main(given) == 2
    assert "made of samples" in capsys.readouterr().err
    assert main([*given, "--head", "trained"]) == 0
    assert "Heads:   orientation, outline" in capsys.readouterr().out


def test_a_folder_that_exists_is_never_touched(stream: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(stream), "--arm", "half", "--out", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    no_run = ["export", str(tmp_path), "--arm", "half", "--out", str(tmp_path / "out")]
    assert main(no_run) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_what_is_missing_of_a_run_is_named(stream: Path, tmp_path: Path, capsys) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(stream, copied)
    given = ["export", str(copied), "--out", str(tmp_path / "out"), "--arm"]
    shutil.rmtree(copied / "adapters" / "seed-0" / "01-cartoon")
    assert main([*given, "half"]) == 2
    assert "01-cartoon is missing or damaged; run the same command again" in capsys.readouterr().err
    assert main([*given, "half", "--seed", "1"]) == 0
    lines = (copied / "coefficients.csv").read_text().splitlines(keepends=True)
    (copied / "coefficients.csv").write_text("".join(x for x in lines if ",linear," not in x))
    given[3] = str(tmp_path / "second")
    assert main([*given, "linear", "--seed", "1"]) == 2
    assert "'linear' of seed 1 has no scores in" in capsys.readouterr().err
    lines = (copied / "scores.csv").read_text().splitlines(keepends=True)
    (copied / "scores.csv").write_text("".join(x for x in lines if ",grid," not in x))
    assert main([*given, "grid"]) == 2
    assert "'grid' of seed 0 has no scores" in capsys.readouterr().err


def test_an_interrupted_export_leaves_nothing(stream: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cl_lora.export.folder.model_card", interrupt)
    given = ["export", str(stream), "--arm", "half", "--out", str(tmp_path / "out")]
    assert main(given) == 130
    assert list(tmp_path.iterdir()) == []


def test_base_weights_of_another_model_are_refused(
    named: Path, weights: Path, tmp_path: Path, capsys
) -> None:
    other = tmp_path / "other.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({k: v + 1 for k, v in tensors.items()}, other)
    copied = tmp_path / "copied"
    shutil.copytree(named, copied)
    config = read_config(copied)
    model = {**config.settings["model"], "checkpoint": str(other)}
    write_config(copied, replace(config, settings={**config.settings, "model": model}))
    given = ["export", str(copied), "--arm", "third", "--out", str(tmp_path / "out")]
    assert main([*given, "--with-base"]) == 2
    assert "gives others" in capsys.readouterr().err
    assert main(given) == 0  # the file is not needed where the base stays at home
