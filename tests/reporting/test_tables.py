import io
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_run, fabricate_scores, many_arms
from hypothesis import given
from hypothesis import strategies as st
from other_runs import RMSE, as_errors, as_stages
from rich.console import Console

from cl_lora.evaluation.metrics import ACCURACY, Metric
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.evaluation.shape import Shape
from cl_lora.reporting.ranking import ranking_of
from cl_lora.reporting.tables import (
    RENDERERS,
    Column,
    ResultTable,
    result_table,
    run_table,
    shorten,
)
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError


def by_hand():
    """Two arms and one reference with round numbers; seed 0 and 1 differ by 0.02."""
    finals = {"low": (0.5, 0.7), "high_up": (0.6, 0.7), "oracle": (0.9, 0.9)}
    return ScoreTable(
        Score(seed, arm, t, j, "accuracy", values[j] + 0.02 * seed + 0.1 * (t == 0 and j == 0))
        for seed in (0, 1)
        for arm, values in finals.items()
        for t in range(2)
        for j in range(2)
    )


def parts(text):
    """Return the title, the words of the heads, and the lines below the rule."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    return lines[0], " ".join(lines[1:rule]).split(), lines[rule + 1 :]


@pytest.fixture
def table():
    return result_table(by_hand(), experiences=("art_painting", "photo"), references=("oracle",))


def test_numbers_are_mean_and_deviation_over_seeds(table):
    title, heads, lines = parts(table.text(120))
    assert title == "Accuracy in % after the last domain, mean ± standard deviation over 2 seeds"
    assert {"art_painting", "photo", "Average", "accuracy", "(pp,", "lower", "better)"} <= {*heads}
    assert re.split(r"\s{2,}", lines[0]) == [
        "low",
        "51.0 ±1.4",
        "71.0 ±1.4",
        "61.0 ±1.4",
        "+10.0 ±0.0",
        "−10.0 ±0.0",
        "61.0 ±1.4",
        "2",
    ]


def test_references_are_apart_and_not_ranked(table):
    lines = parts(table.text(120))[2]
    assert lines[2] == ""
    assert lines[3].startswith("oracle")
    bold = [line for line in table.text(120, color=True).splitlines()[6:] if "\x1b[1m" in line]
    assert {line.split()[0] for line in bold} == {"low", "high_up"}


def test_the_best_leads_and_equal_readings_lead_together(table):
    best = {(i, j) for i in range(3) for j in range(6) if table.is_best(i, j)}
    # photo, forgetting and BWT read the same in both rows.
    assert best == {(1, 0), (0, 1), (1, 1), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (1, 5)}


def test_lower_is_better_leads_downwards():
    scores = ScoreTable(
        Score(0, arm, 0, 0, "rmse", value, higher_is_better=False)
        for arm, value in (("a", 2.0), ("b", 1.0))
    )
    table = result_table(scores, Metric("rmse", "RMSE", "px", higher_is_better=False))
    assert table.is_best(1, 0)
    assert not table.is_best(0, 0)
    text = table.text(80)
    assert text.startswith("RMSE in px after the last domain, seed 0\n")
    assert "1.000" in text
    assert "better)" in parts(text)[1]
    assert "↓" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_n_stays_in_a_table_of_two_seeds(width):
    scores = fabricate_scores(["ta_w1", "ta_adaptive_b3"], seeds=(0, 1))
    text = result_table(scores, experiences=DOMAINS, references=REFERENCES).text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert parts(text)[1][-1] == "n"
    assert {line.split()[-1] for line in lines if line.startswith("ta_")} == {"2"}


@pytest.mark.parametrize("width", [80, 120])
def test_25_arms_and_4_domains_fit(width):
    arms = [*many_arms(), "dare"]
    text = result_table(fabricate_scores(arms), experiences=DOMAINS, references=REFERENCES).text(
        width
    )
    assert max(map(len, text.splitlines())) <= width
    header = " ".join(parts(text)[1])
    for heading in ("photo", "art", "cartoon", "sketch", "Average", "accuracy", "Forget"):
        assert heading in header
    for name in (*arms, *REFERENCES):
        assert re.search(rf"^{name} ", text, re.MULTILINE), name
    assert ("Backward" in header or "BWT" in header) == (width == 120)
    assert "Not shown at this width: " in text
    assert "R[l,j] - R[T,j]" in text  # not taken for markup


@given(width=st.integers(40, 160), count=st.integers(1, 14), seeds=st.integers(1, 2))
def test_no_line_is_wider_than_the_terminal(width, count, seeds):
    domains = [f"a_domain_with_long_name_{i}" for i in range(count)]
    scores = fabricate_scores(
        ["an_arm_with_quite_a_long_name_b1", "an_arm_with_quite_a_long_name_b3"],
        domains=domains,
        seeds=range(seeds),
    )
    text = result_table(scores, experiences=domains, references=REFERENCES).text(width)
    assert max(map(len, text.splitlines())) <= width
    assert "Avg" in text or "Average" in text


def test_the_rich_table_prints_to_any_console(table):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.rich(80))
    assert "high_up" in console.export_text()


def test_undefined_numbers_are_a_dash_and_undefined_columns_left_out():
    scores = ScoreTable(
        [
            *(Score(0, "ties", t, j, "accuracy", 0.5) for t in range(2) for j in range(2)),
            *(Score(0, "joint", 1, j, "accuracy", 0.8) for j in range(2)),
        ]
    )
    table = result_table(scores, references=("joint", "sequential"))
    assert table.rows == ("ties", "joint")
    (joint,) = (line for line in table.text(120).splitlines() if line.startswith("joint"))
    assert joint.split() == ["joint", "80.0", "80.0", "80.0", "–", "–", "–", "1"]
    assert "forward_transfer" not in [c.key for c in table.columns]


def test_rows_follow_the_given_order():
    table = result_table(
        fabricate_scores(ARMS),
        experiences=DOMAINS,
        references=REFERENCES,
        arms=["ties_w1", "gone"],
    )
    assert table.rows == ("ties_w1", "ta_w1", "ta_adaptive_b3", *REFERENCES)
    assert table.references == 5


def test_arms_finished_on_fewer_seeds_are_named():
    scores = fabricate_scores(["a"], ())
    scores.append([Score(0, "b", 3, j, "accuracy", 0.5) for j in range(4)])
    text = result_table(scores).text(80)
    assert "Finished on fewer than 3 seeds, so never marked as best: b (1)." in text


def test_only_what_rests_on_every_seed_can_be_best():
    scores = ScoreTable()
    for arm, values in {"lucky": [0.9], "good": [0.8, 0.6], "poor": [0.5, 0.5]}.items():
        scores.append(Score(s, arm, 0, 0, "accuracy", v) for s, v in enumerate(values))
    table = result_table(scores)
    assert table.rows == ("lucky", "good", "poor")
    assert table.mean[0, 0] == 0.9
    assert [table.is_best(i, 0) for i in range(3)] == [False, True, False]
    # Errors, too: the lowest mean of all seeds.
    errors = ScoreTable([replace(s, higher_is_better=False) for s in scores])
    assert [result_table(errors).is_best(i, 0) for i in range(3)] == [False, False, True]


def test_no_arm_is_best_where_none_has_every_seed():
    scores = ScoreTable(Score(s, arm, 0, 0, "accuracy", 0.5) for s, arm in enumerate("ab"))
    table = result_table(scores)
    assert not any(table.is_best(i, 0) for i in range(2))


def test_csv_holds_the_unrounded_numbers(table):
    frame = pd.read_csv(io.StringIO(table.csv()))
    assert list(frame["arm"]) == ["low", "high_up", "oracle"]
    assert list(frame["reference"]) == [False, False, True]
    assert frame["average"][1] == pytest.approx(0.66, abs=1e-12)
    assert frame["average std"][1] == pytest.approx(np.std([0.65, 0.67], ddof=1))
    assert list(frame["seeds"]) == [2, 2, 2]
    assert "seeds std" not in frame
    pd.testing.assert_frame_equal(frame, table.frame(), check_dtype=False)


def test_markdown(table):
    lines = table.markdown().splitlines()
    assert lines[2].startswith("| Arm | art\\_painting | photo | Average accuracy (%) | Forgetting")
    assert lines[3] == "|:--|--:|--:|--:|--:|--:|--:|--:|"
    assert lines[4].startswith("| low | 51.0 ± 1.4 | **71.0 ± 1.4** | 61.0 ± 1.4 |")
    assert lines[5].startswith("| high\\_up | **61.0 ± 1.4** |")
    assert lines[6].startswith("| *oracle* | 91.0 ± 1.4 |")
    assert {line.count("|") for line in lines[2:7]} == {9}


@given(st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=255), min_size=1))
def test_any_arm_name_is_rendered(name):
    scores = ScoreTable([Score(0, name, 0, 0, "accuracy", 0.5)])
    table = result_table(scores)
    assert name in table.text(500)
    for render in RENDERERS.values():
        assert render(table)
    assert pd.read_csv(io.StringIO(table.csv()), keep_default_na=False, dtype=str)["arm"][0] == name


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["art_painting", "photo"], 8, ["art", "photo"]),
        (["Real World", "Art", "Product"], 8, ["Real", "Art", "Product"]),
        (["art_painting", "art_drawing"], 8, ["art_pai…", "art_dra…"]),
        (["infographics"], 8, ["infogra…"]),
        (["long_name_b1", "long_name_b3"], 8, ["long_…b1", "long_…b3"]),
        (["x"], 1, ["x"]),
        ([], 1, []),
    ],
)
def test_short_names_by_hand(names, width, expected):
    assert list(shorten(names, width, words=True)) == expected


def test_a_short_arm_is_not_its_first_words():
    """Those would read as another arm."""
    assert shorten(["full_task_arithmetic", "mean"], 12) == ("full_task_a…", "mean")


@given(st.lists(st.text("ab_", min_size=1, max_size=9), unique=True, max_size=30), st.booleans())
def test_short_names_are_short_and_distinct(names, words):
    short = shorten(names, 5, words=words)
    assert all(len(n) <= 5 for n in short)
    assert len(set(short)) == len(names)
    assert all(s == n for s, n in zip(short, names, strict=True) if len(n) <= 5)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="Unknown metric 'nme'"):
        result_table(by_hand(), metric=Metric("nme", "NME"))
    with pytest.raises(ValueError, match="at least 4"):
        shorten(["abcdef"], 3)
    with pytest.raises(ValueError, match="distinct"):
        shorten(["a", "a"], 3)
    with pytest.raises(ValueError, match=r"shape \(1, 1\)"):
        ResultTable(("a",), 0, (Column("k", "t", "s"),), np.zeros((2, 1)), np.zeros((1, 1)))


def test_numbers_read_well():
    percent, plain = Column("k", "t", "s", signed=True), Column("k", "t", "s", percent=False)
    assert percent.number(0.1234) == "+12.3"
    assert percent.number(-0.0001) == "0.0"
    assert percent.number(-0.02) == "−2.0"
    assert percent.number(math.nan) == "–"
    assert plain.number(8.4849) == "8.485"
    p, count = Column("k", "t", "s", form="p"), Column("k", "t", "s", form="count")
    assert [p.number(v) for v in (0.0004, 0.001, 0.04567, 1.0)] == [
        "<0.001",
        "0.001",
        "0.046",
        "1.000",
    ]
    assert count.number(3.0) == "3"


def with_interval():
    columns = (
        Column("average", "average", "Avg"),
        Column("difference", "vs a", "diff", None, signed=True, form="interval"),
        Column("p", "p", "p", None, percent=False, form="p"),
    )
    nan = math.nan
    return ResultTable(
        rows=("a", "b", "c"),
        references=0,
        columns=columns,
        mean=np.array([[0.5, nan, nan], [0.6, 0.1, 0.004], [0.4, -0.1, nan]]),
        spread=np.array([[0.01, nan, nan], [0.02, nan, nan], [nan, nan, nan]]),
        low=np.array([[nan, nan, nan], [nan, 0.05, nan], [nan, nan, nan]]),
        high=np.array([[nan, nan, nan], [nan, 0.15, nan], [nan, nan, nan]]),
    )


def test_a_deviation_is_plus_minus_and_an_interval_has_brackets():
    table = with_interval()
    lines = table.text(80).splitlines()
    assert re.split(r"\s{2,}", lines[3]) == ["b", "60.0 ±2.0", "+10.0 [+5.0, +15.0]", "0.004"]
    assert re.split(r"\s{2,}", lines[4]) == ["c", "40.0", "−10.0", "–"]
    assert "| b | **60.0 ± 2.0** | +10.0 [+5.0, +15.0] | 0.004 |" in table.markdown()
    assert r"+10.0 {\tiny [+5.0, +15.0]}" in table.latex()
    frame = pd.read_csv(io.StringIO(table.csv()))
    assert list(frame.columns)[2:] == [
        "average",
        "average std",
        "difference",
        "difference low",
        "difference high",
        "p",
    ]
    assert frame["difference low"][1] == 0.05


def test_intervals_have_two_ends():
    table = with_interval()
    with pytest.raises(ValueError, match="both ends"):
        replace(table, high=None)
    with pytest.raises(ValueError, match="both ends"):
        replace(table, low=np.zeros((1, 1)))


def test_a_scalar_metric_of_a_run(tmp_path):
    run = RunFolder.read(as_errors(fabricate_run(tmp_path / "run")))
    table = run_table(run)
    assert table.title == "RMSE in px after the last domain, mean ± standard deviation over 2 seeds"
    j = [c.key for c in table.columns].index("average")
    of = {a: np.mean([run.scores.matrix(s, a, "rmse").values[-1] for s in (0, 1)]) for a in ARMS}
    assert table.rows[: len(ARMS)] == tuple(sorted(of, key=of.get))  # the smallest error first
    means = sorted(of.values())
    np.testing.assert_allclose(table.mean[: len(ARMS), j], means)
    assert table.is_best(0, j)
    assert table.cell(0, j)[0] == f"{means[0]:.3f}"  # not times 100
    np.testing.assert_array_equal(run_table(run, RMSE).mean, table.mean)


def test_a_run_s_table_is_sorted_and_the_best_group_marked(tmp_path):
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=many_arms(), seeds=(0, 1, 2)))
    table, ranking = run_table(run), ranking_of(run, ACCURACY)
    assert table.rows == (*ranking.arms, *ranking.baselines)
    assert {*table.rows[-table.references :]} == {*run.references}
    j = [c.key for c in table.columns].index("average")
    of_arms = table.mean[: len(ranking.arms), j]
    assert list(of_arms) == sorted(of_arms, reverse=True)
    marked = {table.rows[i] for i in range(len(table.rows)) if table.is_best(i, j)}
    assert marked == {*ranking.group}
    assert not any(table.is_best(i, k) for i in range(3) for k in range(j))
    # Every number went along with its row.
    plain = result_table(run.scores, references=run.references, experiences=run.experiences)
    for row in ("joint", "ties_w3"):
        np.testing.assert_array_equal(
            table.mean[table.rows.index(row)], plain.mean[plain.rows.index(row)]
        )
    text = table.text(80)
    stars = {line.split()[0] for line in text.splitlines() if re.search(r"\d\*", line)}
    assert stars == {*ranking.group}
    assert "* best, or cannot be told from it: the 95 % interval" in text
    assert "Bold: best, or cannot be told from it" in table.markdown()
    assert "Bold: best, or cannot be told from it" in table.latex()


def test_with_one_seed_the_best_mean_alone_is_marked(tmp_path):
    table = run_table(RunFolder.read(fabricate_run(tmp_path / "run", seeds=(3,))))
    assert len(table.marked) == 1
    assert "* the best mean; with one seed no arm can be told from it." in table.text(80)


def test_stages_without_order(tmp_path):
    run = RunFolder.read(as_stages(fabricate_run(tmp_path / "run"), {"pair": 2, "all": 4}))
    table = run_table(run)
    assert table.title.startswith("Accuracy in % at stage all, ")
    assert [c.title for c in table.columns] == [*DOMAINS, "Average accuracy (%)", "n"]


def test_only_what_the_last_stage_evaluates_has_a_column():
    scores = ScoreTable(
        Score(0, arm, t, j, "accuracy", 0.1 * (t + j))
        for arm in "ab"
        for t, evaluated in enumerate(((0, 1), (0, 2)))
        for j in evaluated
    )
    shape = Shape(2, 3, ordered=False, evaluated=((0, 1), (0, 2)))
    table = result_table(scores, shape=shape, experiences=("x", "y", "z"), when="at stage xz")
    assert [c.title for c in table.columns] == ["x", "z", "Average accuracy (%)", "n"]
    np.testing.assert_allclose(table.mean[0], [0.1, 0.3, 0.2, 1])
