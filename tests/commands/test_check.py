"""``cl-lora check``: a whole folder is whole, and every kind of damage is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import overrides

from cl_lora.adapters.seals import TRAINING_FILE
from cl_lora.cli import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one arm and two rows."""
    folder = tmp_path_factory.mktemp("check") / "run"
    assert main(["run", *overrides(folder, "references=[last,oracle]")]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_whole_folder_is_whole_and_stays_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["check", str(run)]) == 0
    assert "is whole: " in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def _unseal(folder: Path) -> None:
    """Write NaN into a head, in an adapter of a version without digests."""
    (folder / TRAINING_FILE).unlink()
    head = safetensors.torch.load_file(folder / "head.safetensors")
    head["bias"] = torch.full_like(head["bias"], torch.nan)
    safetensors.torch.save_file(head, folder / "head.safetensors")


ADAPTER = "adapters/seed-0/01-cartoon"

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of an adapter": (
        lambda run: _flip(run / ADAPTER / "adapter_model.safetensors"),
        "adapter_model.safetensors is damaged",
    ),
    "a bit of a head": (
        lambda run: _flip(run / ADAPTER / "head.safetensors"),
        "head.safetensors is damaged",
    ),
    "NaN in a head": (lambda run: _unseal(run / ADAPTER), "'bias' of the head"),
    "a cut adapter": (
        lambda run: (run / ADAPTER / "adapter_model.safetensors").write_bytes(b""),
        "01-cartoon is damaged",
    ),
    "an adapter of another seed": (
        lambda run: shutil.copytree(run / "adapters/seed-0", run / "adapters/seed-7"),
        "of another run (seed is 0, expected 7)",
    ),
    "a score": (
        lambda run: (run / "scores.csv").write_text(
            (run / "scores.csv")
            .read_text()
            .replace("0,half,2,0,accuracy,", "0,half,2,0,accuracy,7")
        ),
        "scores.csv",
    ),
    "a lost row": (
        lambda run: (run / "scores.csv").write_text(
            "\n".join((run / "scores.csv").read_text().splitlines()[:-1]) + "\n"
        ),
        "run the same command again",
    ),
    "the configuration": (lambda run: _flip(run / "config.yaml"), "config.yaml is damaged"),
    "hits": (
        lambda run: (run / "hits/seed-0/half.npz").write_bytes(b"PK"),
        "half.npz",
    ),
    "a buffer": (
        lambda run: next((run / "buffers").glob("*.json")).write_text("["),
        "delete it and run the command again, which draws the same samples",
    ),
    "what a killed command left": (
        lambda run: (run / "adapters/seed-0/.02-sketch.abc").mkdir(),
        "was left by a command that was killed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_said_with_a_remedy(
    run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, said = DAMAGES[damage]
    harm(run)
    assert main(["check", str(run)]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert "found; looked at" in out.splitlines()[-1]
    assert all(";" in line for line in out.splitlines())


def test_an_unfinished_folder_says_what_is_missing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run / "scores.csv").read_text().splitlines()
    (run / "scores.csv").write_text("\n".join(x for x in lines if ",half," not in x) + "\n")
    assert main(["check", str(run)]) == 1
    assert "'half'" in capsys.readouterr().out


def test_no_run_folder_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
