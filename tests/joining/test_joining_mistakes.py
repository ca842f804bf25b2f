"""Mistakes of a user: one sentence, exit code 2, and nothing that is half written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cl_lora.adapters import Adapter, BaseModel, LoRAFactors
from cl_lora.cli import main
from cl_lora.joining import outputs

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SHAPES = {"blocks.0.q": (5, 4), "blocks.1.q": (5, 4)}


def adapter(name: str, seed: int, base: str = "org/model", rank: int = 2, **shapes) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: LoRAFactors(
            torch.randn(rank, d_in, generator=generator),
            torch.randn(d_out, rank, generator=generator),
        )
        for module, (d_out, d_in) in {**SHAPES, **shapes}.items()
    }
    return Adapter(name, factors, base=BaseModel("CAUSAL_LM", base))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    for i in range(2):
        adapter(f"a{i}", i).save(tmp_path / f"a{i}")
        (tmp_path / f"a{i}" / "training.json").unlink()  # as of somebody else, without digests
    return [tmp_path / "a0", tmp_path / "a1"]


def run(*arguments: object) -> int:
    return main(["merge", *map(str, arguments)])


def refused(capsys, *arguments: object) -> str:
    """Run the command, which must fail by one sentence, and return it."""
    assert run(*arguments) == 2
    error: str = capsys.readouterr().err
    assert error.startswith("cl-lora: ")
    assert error.count("\n") == 1
    return error


def config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / WEIGHTS
    found = safetensors.torch.load_file(path)
    change(found)
    safetensors.torch.save_file(found, path)


def other_base(folder: Path) -> None:
    config(folder, base_model_name_or_path="org/other")


def other_revision(folder: Path) -> None:
    config(folder, revision="v2")


def other_layout(folder: Path) -> None:
    config(folder, fan_in_fan_out=True)


def other_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    adapter("a1", 1, **{"blocks.1.q": (5, 7)}).save(folder)


def other_modules(folder: Path) -> None:
    shutil.rmtree(folder)
    adapter("a1", 1, **{"blocks.2.q": (5, 4)}).save(folder)


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def broken_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def not_a_number(folder: Path) -> None:
    tensors(folder, lambda found: found[sorted(found)[2]].fill_(float("nan")))


def infinite(folder: Path) -> None:
    tensors(folder, lambda found: found[sorted(found)[0]].fill_(float("inf")))


def dora(folder: Path) -> None:
    config(folder, use_dora=True)


def prompt(folder: Path) -> None:
    config(folder, peft_type="PROMPT_TUNING")


def pickle(folder: Path) -> None:
    no_weights(folder)
    torch.save({"x": torch.ones(2)}, folder / "weights.pt")


class Runs:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def dangerous(folder: Path) -> None:
    no_weights(folder)
    torch.save({"x": Runs()}, folder / "adapter_model.bin")


def no_dictionary(folder: Path) -> None:
    no_weights(folder)
    torch.save([torch.ones(2)], folder / "adapter_model.bin")


def rubbish(folder: Path) -> None:
    no_weights(folder)
    (folder / "adapter_model.bin").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_base, ("'org/model'", "'org/other'", "--allow-different-base")),
        (other_layout, ("fan_in_fan_out",)),
        (other_shape, ("'blocks.1.q'", "(5, 4)", "(5, 7)")),
        (other_modules, ("'blocks.2.q'", "lacks")),
        (no_config, ("no adapter_config.json",)),
        (no_weights, ("it is missing",)),
        (short, ("no readable safetensors",)),
        (broken_json, ("not valid JSON",)),
        (not_a_number, ("'blocks.1.q'", "a1", "NaN or infinity")),
        (infinite, ("'blocks.0.q'", "a1", "NaN or infinity")),
        (dora, ("use_dora",)),
        (prompt, ("PROMPT_TUNING",)),
        (pickle, ("weights.pt, a pickle",)),
        (dangerous, ("adapter_model.bin", "more than tensors")),
        (no_dictionary, ("dictionary of tensors",)),
        (rubbish, ("adapter_model.bin",)),
    ],
)
@pytest.mark.parametrize("info", [False, True])
def test_a_bad_folder(two, tmp_path, capsys, monkeypatch, damage, words, info):
    monkeypatch.chdir(tmp_path)
    damage(two[1])
    if info and damage is other_modules:
        return  # what differs is what a comparison may show
    error = refused(capsys, *two, *(["--info"] if info else ["--out", "o"]))
    for word in words:
        assert word in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0", "a1"]


def test_different_revisions_and_going_on_all_the_same(two, tmp_path, capsys):
    config(two[0], revision="v1")
    other_revision(two[1])
    error = refused(capsys, *two, "--out", tmp_path / "o")
    assert "'v1'" in error
    assert "'v2' in revision" in error
    assert run(*two, "--out", tmp_path / "o", "--allow-different-base") == 0
    assert "differ in revision" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / CONFIG).read_text())["revision"] == "v1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "1"], ("2 weights", "got 1")),
        (["--weights", "1,x"], ("--weights", "'1,x'")),
        (["--weights", "1,nan"], ("finite",)),
        (["--method", "tise"], ("did you mean 'ties'",)),
        (["--space", "delt"], ("did you mean 'delta'",)),
        (["--method", "svd", "--space", "factors"], ("no space 'factors'",)),
        (["--method", "ties", "--set", "trimm=global"], ("did you mean 'trim'",)),
        (["--method", "ties", "--set", "trim=all"], ("tensor, global",)),
        (["--method", "ties", "--set", "trim"], ("OPTION=VALUE",)),
        (["--method", "ties", "--set", "trim={a: b}"], ("tensor, global",)),
        (["--method", "knots", "--set", "inner=svd"], ("truncates nothing",)),
        (["--method", "knots", "--set", "inner={name: tise}"], ("did you mean 'ties'",)),
        (["--method", "ties", "--density", "1.5"], ("in (0, 1]",)),
        (["--method", "ties", "--density", "0.1,0.2,0.3"], ("one density",)),
        (["--method", "ties", "--density", "0.1", "--set", "density=1"], ("given twice",)),
        (["--method", "cat", "--density", "0.5"], ("option of merge method 'cat' 'density'",)),
        (["--method", "ties"], ("--rank R", "--dense", "blocks.0.q")),
        (["--method", "ties", "--rank", "2", "--dense"], ("one of the two",)),
        (["--method", "fisher"], ("statistic",)),
        (["--method", "regmean"], ("statistic",)),
        (["--rank", "0"], ("at least 1 but got 0",)),
        (["--rank", "many"], ("rank", "'many'")),
        (["--set", "rank=2"], ("--rank R",)),
        (["--dtype", "bf16"], ("did you mean 'bfloat16'",)),
        (["--base", "nowhere"], ("--base",)),
        (["--delta"], ("--delta",)),
        (["--json"], ("--info",)),
        (["--bogus"], ("--bogus",)),
    ],
)
def test_a_bad_choice(two, tmp_path, capsys, arguments, words):
    error = refused(capsys, *two, "--out", tmp_path / "o", *arguments)
    for word in words:
        assert word in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0", "a1"]


def test_nothing_to_merge_and_nowhere_to_write(two, tmp_path, capsys):
    assert "got none" in refused(capsys, "--out", tmp_path / "o")
    assert "--out with a new folder" in refused(capsys, *two)
    assert "does not exist" in refused(capsys, tmp_path / "a9", "--out", tmp_path / "o")
    assert "nothing to write" in refused(capsys, *two, "--info", "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a0", "one of the inputs"),
        ("a1/merged", "lies inside"),
        ("a1/x/y", "lies inside"),
        ("link", "one of the inputs"),
        ("there", "exists"),
        ("file", "exists"),
    ],
)
def test_a_bad_place_for_the_result(two, tmp_path, capsys, out, words):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a0")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    assert words in refused(capsys, *two, "--out", tmp_path / out)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_result_that_the_precision_cannot_hold(two, tmp_path, capsys):
    weights = ("--weights", "1e9,1e9")
    error = refused(capsys, *two, *weights, "--dtype", "float16", "--out", tmp_path / "o")
    assert "float16 cannot hold" in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0", "a1"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_merge_leaves_nothing_half_written(two, tmp_path, monkeypatch, capsys, fault):
    written = []

    def add(self, name, entry):
        written.append(name)
        if len(written) == 2:
            raise fault
        return original(self, name, entry)

    original = outputs.PeftOutput.add
    monkeypatch.setattr(outputs.PeftOutput, "add", add)
    code = run(*two, "--out", tmp_path / "o")
    error = capsys.readouterr().err
    if isinstance(fault, KeyboardInterrupt):
        assert code == 130
        assert "nothing was written" in error
    else:
        assert code == 2
        assert "No space left" in error
    assert written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a0", "a1"]
