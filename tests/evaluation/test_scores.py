import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_lora.evaluation.scores import COLUMNS, Score, ScoreTable
from cl_lora.evaluation.shape import Shape
from cl_lora.support.errors import UserError

names = st.sampled_from(["ties", "task_arithmetic", "base", 'odd, "name"', "ähnlich"])
where = {
    "seed": st.integers(0, 3),
    "arm": names,
    "stage": st.integers(-1, 3),
    "evaluated": st.integers(0, 3),
}
shares = st.builds(
    Score, **where, metric=st.sampled_from(["accuracy", "f1"]), value=st.floats(0, 1)
)
unlimited = st.builds(
    Score,
    **where,
    metric=st.sampled_from(["relative", "mine"]),
    value=st.floats(allow_nan=False, allow_infinity=False),
)
scores = shares | unlimited
tables = st.lists(scores, unique_by=lambda s: s.key, max_size=20)


def small():
    return ScoreTable(
        Score(seed, arm, t, j, metric, (seed + t + j) / 7)
        for seed in (1, 0)
        for arm in ("ties", "dare")
        for t in range(2)
        for j in range(2)
        for metric in ("f1", "accuracy")
    )


@given(rows=tables, seed=st.integers(0, 9))
def test_reading_gives_the_same_rows_and_bytes(tmp_path_factory, rows, seed):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    ScoreTable(rows).write(path)
    again = ScoreTable.read(path)
    assert set(again) == set(rows)
    assert again.to_csv() == path.read_bytes().decode()
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    order = sorted({r.arm for r in rows})
    assert ScoreTable(shuffled).to_csv(order) == ScoreTable(rows).to_csv(order)


def test_the_file_is_in_canonical_order(tmp_path):
    path = tmp_path / "scores.csv"
    small().write(path, arms=["dare", "not_yet_scored"])
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1] == "0,dare,0,0,accuracy,0.0,true"
    assert lines[2] == "0,dare,0,0,f1,0.0,true"
    assert lines[3] == f"0,dare,0,1,accuracy,{1 / 7!r},true"
    assert [line.split(",")[:2] for line in lines[1::8]] == [
        ["0", "dare"],
        ["0", "ties"],
        ["1", "dare"],
        ["1", "ties"],
    ]


def test_numpy_floats_are_written_as_plain_numbers():
    table = ScoreTable([Score(0, "a", 0, 0, "accuracy", np.float64(0.1))])
    assert table.to_csv().splitlines()[1] == "0,a,0,0,accuracy,0.1,true"


def test_units_seeds_arms_metrics():
    table = small()
    assert table.done(0, "ties", 1)
    assert not table.done(0, "ties", 2)
    assert not table.done(2, "ties", 1)
    assert table.seeds == (0, 1)
    assert table.arms == ("ties", "dare")
    assert table.metrics == ("f1", "accuracy")
    assert table.experiences == 2
    assert len(table) == 32
    assert ScoreTable().experiences == 0


def test_the_matrix_of_one_arm():
    table = ScoreTable(
        [
            Score(0, "ties", 0, 0, "accuracy", 0.9),
            Score(0, "ties", 1, 0, "accuracy", 0.7),
            Score(0, "ties", 1, 1, "accuracy", 0.8),
            Score(0, "ties", 1, 1, "rmse", 3.0, higher_is_better=False),
            Score(0, "any_row", -1, 0, "accuracy", 0.2),
            Score(0, "any_row", -1, 1, "accuracy", 0.1),
            Score(1, "any_row", -1, 1, "accuracy", 0.9),
            Score(0, "own_start", -1, 0, "accuracy", 0.4),
        ]
    )
    ties = table.matrix(0, "ties")
    np.testing.assert_array_equal(ties.values, [[0.9, math.nan], [0.7, 0.8]])
    np.testing.assert_array_equal(ties.baseline, [0.2, 0.1])
    assert ties.higher_is_better
    assert not table.matrix(0, "ties", "rmse").higher_is_better
    np.testing.assert_array_equal(table.matrix(0, "own_start").baseline, [0.4, 0.1])
    # Before training is not after it, whatever the row is called.
    for row in ("any_row", "own_start"):
        assert np.isnan(table.matrix(0, row).values).all()
    assert table.matrix(0, "ties", shape=Shape(4, 4)).values.shape == (4, 4)


def test_the_matrix_of_stages_without_order():
    table = ScoreTable(
        [
            *(Score(0, "ties", 0, j, "accuracy", 0.5 + 0.1 * j) for j in range(3)),
            *(Score(0, "any_row", -1, j, "accuracy", 0.1) for j in range(3)),
        ]
    )
    assert (table.stages, table.experiences) == (1, 3)
    shape = Shape(1, 3, ordered=False)
    ties = table.matrix(0, "ties", shape=shape)
    np.testing.assert_allclose(ties.values, [[0.5, 0.6, 0.7]])
    np.testing.assert_array_equal(ties.baseline, [0.1] * 3)
    assert ties.shape == shape
    with pytest.raises(UserError, match="stream of 1 stage and 2 experiences"):
        table.matrix(0, "ties", shape=Shape(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "tie"), "Unknown arm 'tie': did you mean 'ties'"),
        ((7, "ties"), "Unknown seed '7'"),
        ((0, "ties", "acuracy"), "Unknown metric 'acuracy': did you mean 'accuracy'"),
        ((0, "ties", "accuracy", Shape(1, 1)), "stream of 1 stage and 1 experience has"),
    ],
)
def test_what_is_not_there_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        small().matrix(*arguments)


def test_a_duplicate_is_refused_and_nothing_added():
    table = small()
    before = table.to_csv()
    fresh = Score(5, "new", 0, 0, "accuracy", 0.1)
    with pytest.raises(UserError, match="Two scores for seed 0, arm 'ties', stage 1"):
        table.append([fresh, Score(0, "ties", 1, 1, "f1", 0.1)])
    with pytest.raises(UserError, match="Two scores for seed 5"):
        table.append([fresh, fresh])
    with pytest.raises(UserError, match="both as higher is better and as lower"):
        table.append([fresh, Score(6, "x", 0, 0, "accuracy", 0.1, higher_is_better=False)])
    assert table.to_csv() == before
    assert not table.done(5, "new", 0)


@pytest.mark.parametrize(
    ("field", "value"), [("stage", -2), ("evaluated", -1), ("arm", ""), ("metric", "a\nb")]
)
def test_a_row_is_checked(field, value):
    row = {"seed": 0, "arm": "a", "stage": 0, "evaluated": 0, "metric": "m", "value": 0.0}
    with pytest.raises(ValueError, match=f"Expected {field}"):
        Score(**{**row, field: value})


HEADER = ",".join(COLUMNS) + "\n"
GOOD = "0,ties,0,0,accuracy,0.5,true\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the file is empty"),
        ("seed,arm,value\n", 1, "missing columns stage, evaluated, metric, higher_is_better"),
        (HEADER.replace("seed,arm", "arm,seed"), 1, "expected the columns seed,arm"),
        (HEADER.replace("\n", ",extra\n"), 1, "expected the columns"),
        (HEADER + GOOD + "0,ties,0,1,accu", 3, "expected 7 values but got 5"),
        (HEADER + GOOD + "0,ties,0,1,accuracy,0.5,tr", 3, "expected true or false"),
        (HEADER + GOOD + "0,ties,0,1,accuracy,0.5,true", 3, "the last line is cut"),
        (HEADER.rstrip(), 1, "the last line is cut"),
        (HEADER + GOOD + "\n", 3, "expected 7 values but got 0"),
        (HEADER + GOOD.replace("0.5", "half"), 2, "expected a number as value but got 'half'"),
        (HEADER + GOOD.replace("0,ties", "zero,ties"), 2, "expected an integer as seed"),
        (HEADER + GOOD.replace("ties,0", "ties,-5"), 2, "Expected stage to be -1 or more"),
        (HEADER + GOOD.replace("true", "yes"), 2, "expected true or false"),
        (HEADER + GOOD.replace("0.5", "7.5"), 2, "a value of at least 0 and at most 1 as accuracy"),
        (HEADER + GOOD.replace("0.5", "-3"), 2, "a value of at least 0 and at most 1 as accuracy"),
        (HEADER + GOOD.replace("0.5", "inf"), 2, "but got 'inf'"),
        (HEADER + GOOD.replace("accuracy", "mine").replace("0.5", "inf"), 2, "a finite value"),
        (HEADER + GOOD.replace("true", "false"), 2, "expected true as higher_is_better"),
        (HEADER + GOOD + '0,"ties', 3, "not valid CSV"),
        (HEADER + GOOD + "0,t\0es,0,1,accuracy,0.5,true\n", 3, ""),
    ],
)
def test_damage_is_one_sentence_with_line_and_remedy(tmp_path, text, line, message):
    path = tmp_path / "scores.csv"
    path.write_bytes(text.encode())
    with pytest.raises(UserError) as caught:
        ScoreTable.read(path)
    assert f"scores.csv, line {line}: " in str(caught.value)
    assert message in str(caught.value)
    assert "run the command again" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(cut=st.integers(0, 10_000))
def test_a_file_cut_anywhere_is_noticed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "scores.csv"
    data = small().to_csv().encode()
    cut %= len(data)
    path.write_bytes(data[:cut])
    if cut and data[:cut].endswith(b"\n"):
        # Cut between two rows, what is left is a whole table of fewer scores.
        assert len(ScoreTable.read(path)) == data[:cut].count(b"\n") - 1
    else:
        with pytest.raises(UserError, match=r"scores\.csv, line \d+: "):
            ScoreTable.read(path)


def test_duplicates_in_a_file_name_both_lines(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(HEADER + GOOD + GOOD.replace("ties", "dare") + GOOD)
    with pytest.raises(UserError, match="lines 2 and 4: two scores for seed 0, arm 'ties'"):
        ScoreTable.read(path)


def test_contradicting_directions_in_a_file(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(HEADER + GOOD + GOOD.replace("ties", "dare").replace("true", "false"))
    with pytest.raises(UserError, match=r"line 3: expected true as higher_is_better of accuracy"):
        ScoreTable.read(path)


def test_contradicting_directions_of_a_metric_that_no_registry_knows(tmp_path):
    path = tmp_path / "scores.csv"
    mine = GOOD.replace("accuracy", "mine")
    path.write_text(HEADER + mine + mine.replace("ties", "dare").replace("true", "false"))
    with pytest.raises(UserError, match=r"scores\.csv: Metric 'mine' is marked both"):
        ScoreTable.read(path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="the file is missing; run the command again"):
        ScoreTable.read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        ScoreTable.read(tmp_path / "b.csv")
