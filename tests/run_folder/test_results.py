"""Tables of a run while it is computed: whole units, order, and a strict reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.records import Coefficient
from cl_lora.run_folder.results import Results
from cl_lora.run_folder.rows import COEFFICIENTS
from cl_lora.support.errors import UserError

METRICS = ("accuracy", "f1")
CELLS = {t: frozenset((j, m) for j in range(2) for m in METRICS) for t in (-1, 0, 1)}
HEADER = ",".join(COEFFICIENTS.columns) + "\n"


def unit(seed: int, row: str, stage: int, value: float = 0.5) -> list[Score]:
    """Return the scores of a whole unit."""
    return [Score(seed, row, stage, j, m, value) for j in range(2) for m in METRICS]


def weights(row: str, stage: int, value: float = 1.0) -> list[Coefficient]:
    return [Coefficient(0, row, stage, "all", i, value) for i in range(stage + 1)]


def results(folder: Path, *order: str) -> Results:
    return Results(folder, order or ("a", "b"), CELLS)


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    made = results(tmp_path)
    assert not made.done(0, "a", 0)
    made.add(unit(0, "a", 0), weights("a", 0))
    assert made.done(0, "a", 0)
    again = results(tmp_path)
    assert again.done(0, "a", 0)
    assert not again.done(0, "a", 1)
    assert not again.done(1, "a", 0)
    assert not again.done(0, "b", 0)
    assert COEFFICIENTS.read(tmp_path / "coefficients.csv") == weights("a", 0)


@pytest.mark.parametrize("lost", range(4))
def test_a_unit_without_one_of_its_scores_is_not_done(tmp_path: Path, lost: int) -> None:
    part = unit(0, "a", 0)
    del part[lost]
    ScoreTable([*part, *unit(0, "a", 1)]).write(tmp_path / "scores.csv", ["a"])
    made = results(tmp_path)
    assert not made.done(0, "a", 0)
    assert made.done(0, "a", 1)
    made.add(unit(0, "a", 0, 0.75), ())
    found = {(s.stage, s.value) for s in ScoreTable.read(tmp_path / "scores.csv")}
    assert found == {(0, 0.75), (1, 0.5)}


def test_a_score_too_much_is_no_whole_unit_either(tmp_path: Path) -> None:
    """A metric or an experience that the stage has not: it belongs to another run."""
    for more in (Score(0, "a", 0, 0, "rmse", 0.5, False), Score(0, "a", 0, 2, "accuracy", 0.5)):
        ScoreTable([*unit(0, "a", 0), more]).write(tmp_path / "scores.csv", ["a"])
        assert not results(tmp_path).done(0, "a", 0)


def test_coefficients_of_a_unit_that_was_cut_off_are_replaced(tmp_path: Path) -> None:
    """Coefficients go first and scores seal them: a kill in between leaves no doubles."""
    made = results(tmp_path)
    made.add((), weights("a", 1, 0.25))
    again = results(tmp_path)
    assert not again.done(0, "a", 1)
    again.add(unit(0, "a", 1), weights("a", 1, 0.75))
    assert COEFFICIENTS.read(tmp_path / "coefficients.csv") == weights("a", 1, 0.75)


def test_rows_are_sorted_as_the_arms_are(tmp_path: Path) -> None:
    made = results(tmp_path, "b", "a")
    for row, stage in (("a", 0), ("b", 1), ("b", 0)):
        made.add(unit(0, row, stage), weights(row, stage))
    found = COEFFICIENTS.read(tmp_path / "coefficients.csv")
    assert [(c.arm, c.stage) for c in found] == [("b", 0), ("b", 1), ("b", 1), ("a", 0)]
    assert ScoreTable.read(tmp_path / "scores.csv").arms == ("b", "a")


def test_what_is_forgotten_is_gone_from_disk(tmp_path: Path) -> None:
    made = results(tmp_path)
    for row in ("a", "b"):
        made.add(unit(0, row, 0), weights(row, 0))
    made.forget(())
    assert results(tmp_path).done(0, "a", 0)
    made.forget(["a"])
    again = results(tmp_path)
    assert not again.done(0, "a", 0)
    assert again.done(0, "b", 0)
    assert COEFFICIENTS.read(tmp_path / "coefficients.csv") == weights("b", 0)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), min_size=1, max_size=8)


@given(
    st.lists(
        st.builds(
            Coefficient,
            st.integers(0, 9),
            NAMES,
            st.integers(0, 9),
            NAMES,
            st.integers(0, 9),
            FINITE,
        )
    )
)
def test_coefficients_read_back_exactly(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("csv") / "coefficients.csv"
    path.write_bytes(COEFFICIENTS.text(rows).encode())
    assert COEFFICIENTS.read(path) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("seed,arm\n", "missing columns stage, group, adapter, value"),
        (HEADER.replace("stage", "trained"), "missing column stage"),
        # Else one would be read as the other.
        (
            "stage,arm,seed,group,adapter,value\n0,a,1,all,0,1.0\n",
            "expected the columns seed,arm,stage,group,adapter,value but got stage,arm,seed,",
        ),
        (HEADER.replace("\n", ",value\n") + "0,a,0,all,0,1.0\n", "expected the columns"),
        (HEADER + "0,a,0,all,0,nan\n", "line 2: expected a finite value but got 'nan'"),
        (HEADER + "0,a,0,all,0,inf\n", "line 2: expected a finite value"),
        (HEADER + "0,a,0,all,0,high\n", "line 2: could not convert"),
        (HEADER + "0,a,0.5,all,0,1.0\n", "line 2: invalid literal"),
        (HEADER + "0,a,0,all,0,1.0\n0,a,1,all,0\n", "line 3"),
        (HEADER + "0,a,0,all,0,1.0,7\n", "line 2"),
        # Cut within 0.8125: still a number, but none that was measured.
        (HEADER + "0,a,0,all,0,0.8", "its last line is cut off"),
        (HEADER + '0,"a,0,all,0,0.8\n', "line"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "coefficients.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        COEFFICIENTS.read(path)
    told = str(caught.value)
    assert f"{path} is damaged: {message}" in told
    assert "delete it and scores.csv and run the command again" in told
    assert "\n" not in told


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "coefficients.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as text"):
        COEFFICIENTS.read(path)
