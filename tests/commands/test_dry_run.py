"""``--dry-run``, ``-q`` and ``-v``: what is said, and that nothing is written or trained."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import overrides

from cl_lora.cli import main
from cl_lora.commands.dry_run import lines_of
from cl_lora.commands.terminal import quieten
from cl_lora.experiment.dry_run import Outlook, ScoreOutlook
from cl_lora.experiment.estimate import Estimate
from cl_lora.support import printing

FEW = ("references=[base]", "benchmark.styles=[photo,sketch]", "arms=none")
HALF = "+arms.half={method: task_arithmetic, coefficients: 0.5}"
LEARNED = "+arms.learned={method: ties, spc: 2, coefficients: {name: adaptive, steps: 2}}"


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    yield
    printing.be_quiet(False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dry") / "run"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def command(folder: Path, *more: str) -> list[str]:
    given = overrides(folder, HALF)
    given = [word for word in given if not word.startswith(("+arms.", "benchmark.styles", "arms="))]
    return ["run", *given, HALF, *FEW, *more]


def said(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main(list(words)) == 0
    return capfd.readouterr()


def test_lines_go_to_what_is_standard_error_then() -> None:
    """Not to what it was when the first command of this process was given."""
    quieten()
    for _ in range(2):
        with contextlib.redirect_stderr(io.StringIO()) as redirected:
            logging.getLogger("cl_lora").warning("a line")
        assert redirected.getvalue().endswith("a line\n")


@pytest.mark.slow
def test_a_run_before_and_after(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """New folder; then one seed is run verbosely; then what two seeds would take, and quiet."""
    rows = "references=[base,sequential]"
    dry, _ = said(capfd, *(w for w in command(place, "--dry-run") if "references" not in w), rows)
    assert not place.exists()
    assert f"Run folder:   {place} (new)" in dry
    assert "seed 0, bank fresh: 0 there, 2 to train (photo, sketch)" in dry
    assert "seed 0, bank sequential: 0 there, 1 to copy, 1 to train (sketch)" in dry
    assert re.search(r"seed 0: 0 there, [1-9]\d* to compute on [1-9][\d,]* test inputs", dry)
    assert "nothing was measured yet of training and scoring: run one seed" in dry.replace(
        "\n              ", " "
    )

    table, told = said(capfd, *command(place, "-v"))
    assert "half" in table
    assert re.search(r"^\d\d:\d\d:\d\d seed 0: trained photo \(", told, re.M)
    assert re.search(r"^\d\d:\d\d:\d\d seed 0: scored half at stage sketch \(", told, re.M)
    assert "scored half at stage" not in (place / "log.txt").read_text()

    before = contents(place)
    dry, _ = said(capfd, *command(place, "seeds=[0,1]", LEARNED, "--dry-run"))
    assert contents(place) == before
    assert f"{place} (there already)" in dry
    assert "seed 0, bank fresh: 2 there, 0 to train" in dry
    assert "seed 1, bank fresh: 0 there, 2 to train (photo, sketch)" in dry
    flat = " ".join(dry.split())
    assert re.search(r"Time: about .+ \(training .+, scoring .+\), by what this folder meas", flat)
    assert "nothing was measured" not in flat
    assert "not counted: learning or choosing coefficients, 4 times" in flat  # 2 seeds, 2 stages

    table, told = said(capfd, *command(place, "-q"))
    assert "half" in table
    assert "Run folder" not in table
    assert told == ""

    done, _ = said(capfd, *command(place, "--dry-run"))
    assert "nothing is left to do" in done


def outlook(training: Estimate, adapting: Estimate, scoring: Estimate, there: int) -> Outlook:
    scores = (ScoreOutlook(0, there, 3, 1200, learned=1),)
    return Outlook(
        *(Path("run"), True, "shapes", ("photo", "sketch"), 2, ("half",), ()),
        banks=(),
        scores=scores,
        training=training,
        adaptation=adapting,
        scoring=scoring,
    )


@pytest.mark.parametrize(
    ("estimates", "there", "expected"),
    [
        (
            [Estimate(90, 3), Estimate(), Estimate(30, 2)],
            1,
            ["about 2.0 minutes (training 1.5 minutes, scoring 30 seconds), by what this"],
        ),
        (
            [Estimate(0, 0, 2), Estimate(0, 0, 1), Estimate(0, 0, 1)],
            0,
            ["nothing was measured yet of training, adapting and scoring: run one seed"],
        ),
        (
            [Estimate(), Estimate(8, 1), Estimate(0, 0, 1)],
            2,
            ["about 8 seconds (adapting 8 seconds)", "not counted: scoring, which is not timed"],
        ),
    ],
)
def test_times_in_words(estimates: list[Estimate], there: int, expected: list[str]) -> None:
    lines = list(lines_of(outlook(*estimates, there)))
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in (*expected, "3 to compute on 1,200 test inputs", "Baselines: none", "1 time"):
        assert part in text


def test_a_mistake_is_found_as_in_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run", "arms=none", "+arms.a={method: tis}"]) == 2
    assert "'ties'" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-q", "--verbose"], "-q and -v exclude each other"),
        (["--dry-run", "--shard", "1/2"], "leave --shard out"),
        (["--dryrun"], "'--dry-run'"),
    ],
)
def test_flags_that_are_refused(
    words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2
    assert expected in capfd.readouterr().err
