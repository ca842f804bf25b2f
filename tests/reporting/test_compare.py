import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from fabricate import ARMS, REFERENCES, fabricate_hits, fabricate_run, many_arms
from other_runs import RMSE, as_errors, as_stages
from scipy import stats

from cl_lora.evaluation.aggregate import paired_difference
from cl_lora.evaluation.bootstrap import paired_bootstrap
from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.reporting.compare import (
    RENDERERS,
    compare_runs,
    comparison_figure,
    comparison_table,
    require_poolable,
)
from cl_lora.reporting.figures import render
from cl_lora.run_folder.hits import read_hits
from cl_lora.run_folder.layout import hits_file
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

OFFICE = ("art", "clipart", "product", "real_world")


def make(folder, **options):
    return RunFolder.read(fabricate_run(folder, **options))


def change(folder, **settings):
    """Change settings in config.yaml, dots between the levels written as __."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in settings.items():
        *parents, last = key.split("__")
        level = config
        for parent in parents:
            level = level[parent]
        level[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return RunFolder.read(folder)


@pytest.fixture
def pacs(tmp_path):
    return make(tmp_path / "pacs_a", seeds=(0, 1))


@pytest.fixture
def more_seeds(tmp_path):
    return make(tmp_path / "pacs_b", seeds=(2,))


@pytest.fixture
def office(tmp_path):
    return make(tmp_path / "office", domains=OFFICE, name="office", fingerprint="beef")


def finals(run, arm):
    """Return the average at the last stage of every seed."""
    return np.array([run.scores.matrix(s, arm).values[-1].mean() for s in run.seeds])


def test_seeds_of_one_condition_are_averaged(pacs, more_seeds):
    comparison = compare_runs([pacs, more_seeds])
    assert [c.label for c in comparison.conditions] == ["pacs_trial"]
    found = comparison.results[("pacs_trial", "ties_w1")]["average"]
    averages = [
        run.scores.matrix(s, "ties_w1").values[-1].mean()
        for run in (pacs, more_seeds)
        for s in run.seeds
    ]
    assert found.seeds == 3
    assert found.mean == pytest.approx(np.mean(averages))
    assert found.deviation == pytest.approx(np.std(averages, ddof=1))
    assert "3 seeds (seeds 0, 1, 2), 2 runs together." in comparison.notes[0]


@pytest.fixture
def uneven(pacs, tmp_path):
    """Seeds 0 and 1 of all arms; seed 2 without ties_w1, which leads by far where it was run."""
    raised = [replace(s, value=0.99) if s.arm == "ties_w1" else s for s in pacs.scores]
    ScoreTable(raised).write(pacs.path / "scores.csv")
    arms = {k: v for k, v in ARMS.items() if k != "ties_w1"}
    return [RunFolder.read(pacs.path), make(tmp_path / "third", arms=arms, seeds=(2,))]


def test_an_arm_with_fewer_seeds_shows_them_and_is_never_best(uneven):
    table = comparison_table(compare_runs(uneven, reference="joint"))
    assert [c.key.split()[-1] for c in table.columns] == [
        "average",
        "seeds",
        "difference",
        "p",
        "forgetting",
    ]
    seeds = dict(zip(table.rows, table.mean[:, 1], strict=True))
    assert seeds == {"ta_w1": 3, "ta_adaptive_b3": 3, "ties_w1": 2, **dict.fromkeys(REFERENCES, 3)}
    i = table.rows.index("ties_w1")
    assert table.mean[i, 0] == np.nanmax(table.mean[:, 0])
    assert not any(table.is_best(i, j) for j in range(5))
    assert sum(table.is_best(k, 0) for k in range(3)) == 1
    assert "only arms with every seed are ranked" in table.notes[-1]
    for text in (table.markdown(), table.latex()):
        (line,) = (
            x for x in text.splitlines() if x.replace("\\", "").startswith(("| ties", "ties"))
        )
        assert "**" not in line
        assert "textbf" not in line
    # Where all have the same seeds there is nothing to explain, and n stands there all the same.
    even = comparison_table(compare_runs(uneven[:1]))
    assert even.mean[:, 1].tolist() == [2] * 8
    assert not any("ranked" in note for note in even.notes)


def test_arms_over_disjoint_seeds_are_not_ranked(tmp_path):
    runs = [
        make(tmp_path / name, arms={name: ARMS[name]}, seeds=(seed,))
        for seed, name in enumerate(("ta_w1", "ties_w1"))
    ]
    table = comparison_table(compare_runs(runs))
    assert not any(table.is_best(i, 0) for i in range(2))
    assert list(table.mean[:2, 1]) == [1, 1]


def test_the_interval_is_students_over_the_seeds_that_both_have(uneven):
    """From the files alone, with scipy: the mean over domains of each seed is one draw."""
    frame = pd.concat(pd.read_csv(run.path / "scores.csv") for run in uneven)
    frame = frame[(frame.metric == "accuracy") & (frame.stage == 3)]
    value = frame.groupby(["arm", "seed"])["value"].mean()
    comparison = compare_runs(uneven, reference="sequential")
    p_values = {}
    for arm in {*ARMS, *REFERENCES} - {"sequential"}:
        a, b = value[arm].align(value["sequential"], join="inner")
        test = stats.ttest_rel(a, b)
        p_values[arm] = test.pvalue
        found = comparison.difference(comparison.conditions[0], arm)
        assert found.n == (2 if arm == "ties_w1" else 3)
        assert found.mean == pytest.approx((a - b).mean())
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert found.p == pytest.approx(test.pvalue)
    smallest = min(p_values, key=p_values.get)
    corrected = comparison.difference(comparison.conditions[0], smallest).holm
    assert corrected == pytest.approx(min(1, 7 * p_values[smallest]))
    assert any("Holm-corrected for 7 comparisons" in n for n in comparison.notes)
    assert any("over seeds, for these domains" in n for n in comparison.notes)


def test_the_figure_shows_differences_and_marks_fewer_seeds(uneven):
    figure = comparison_figure(compare_runs(uneven, reference="joint"))
    averages, differences = figure.axes
    hollow = [
        round(float(line.get_ydata()[0]))
        for line in averages.get_lines()
        if line.get_markerfacecolor() == "white" and line.get_marker() == "o"
    ]
    assert hollow == [2]  # ties_w1
    assert "fewer seeds" in {t.get_text() for t in figure.legends[0].get_texts()}
    assert differences.get_xlabel() == (
        "difference to joint, points\nwhiskers: 95 % interval over seeds"
    )
    assert averages.get_xlabel() == (
        "Accuracy after the last domain, average (%)\nwhiskers: one standard deviation over seeds"
    )
    marker = next(x for x in differences.get_lines() if x.get_marker() == "o")
    found = compare_runs(uneven, reference="joint").differences["pacs_trial"].found["ta_w1"]
    assert marker.get_xdata()[0] == pytest.approx(100 * found.mean)
    whisker = differences.containers[0][2][0].get_segments()[0]
    assert whisker[:, 0] == pytest.approx([100 * found.low, 100 * found.high])


def test_every_column_says_how_it_differs_from_the_first(pacs, office, tmp_path):
    fabricate_run(tmp_path / "rank16")
    other = change(
        tmp_path / "rank16",
        name="rank16",
        identity__strategy__rank=16,
        identity__spc=1,
        variants__ties_w1__options__density=0.9,
    )
    notes = compare_runs([pacs, office, other]).notes
    assert any(n.startswith("B is not averaged with A: their domains are") for n in notes)
    assert (
        "C is not averaged with A: strategy.rank is 8 in A and 16 in C, "
        "spc is None in A and 1 in C."
    ) in notes
    # One name and one row, but not one arm.
    assert (
        "Not the same arm in every column: ties_w1 (options.density is 0.2 in A and 0.9 in C)."
    ) in notes


def test_other_data_stands_beside_and_is_never_averaged(pacs, office):
    comparison = compare_runs([pacs, office], reference="sequential")
    assert [c.label for c in comparison.conditions] == ["pacs_trial", "office"]
    table = comparison_table(comparison)
    assert [c.key for c in table.columns] == [
        f"{label} {what}"
        for label in ("pacs_trial", "office")
        for what in ("average", "seeds", "difference", "p", "forgetting")
    ]
    # In the order of the first condition, baselines apart.
    best_first = sorted(ARMS, key=lambda arm: -finals(pacs, arm).mean())
    assert table.rows[:3] == tuple(best_first)
    assert {*table.rows[3:]} == {*REFERENCES}
    for column, run in ((0, pacs), (5, office)):
        for row, arm in enumerate(best_first):
            assert table.mean[row, column] == pytest.approx(finals(run, arm).mean())
        best = max(range(3), key=lambda i: table.mean[i, column])
        assert table.is_best(best, column)  # each condition's best is marked in its own column
    assert any("B is not averaged with A: their domains are" in n for n in comparison.notes)


def test_differences_are_paired_within_each_condition(pacs, office):
    comparison = compare_runs([pacs, office], reference="sequential", confidence=0.9)
    for run, label in ((pacs, "pacs_trial"), (office, "office")):
        expected = paired_difference(finals(run, "ta_w1"), finals(run, "sequential"), 0.9)
        found = comparison.differences[label].found
        d = found["ta_w1"]
        assert (d.mean, d.low, d.high, d.n) == (expected.mean, expected.low, expected.high, 2)
        assert "sequential" not in found
    assert any("90 % interval" in n for n in comparison.notes)


def test_an_arm_of_one_condition_as_reference(pacs, tmp_path):
    fabricate_run(tmp_path / "rank16", seeds=(1, 2))
    other = change(tmp_path / "rank16", identity__strategy__rank=16, name="rank16")
    comparison = compare_runs([pacs, other], reference="pacs_trial:ties_w1")
    pair = comparison.differences["rank16"].found["ties_w1"]
    assert pair.n == 1  # seed 1 is all they share
    assert pair.mean == pytest.approx(0, abs=1e-12)
    assert math.isnan(pair.low)
    assert "ties_w1" not in comparison.differences["pacs_trial"].found


def message(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_paired_is_refused_with_the_reason(pacs, more_seeds, office, tmp_path):
    text = message(compare_runs, [pacs, office], reference="pacs_trial:joint")
    assert "'office' cannot be compared with 'pacs_trial:joint': their domains are photo" in text
    fabricate_run(tmp_path / "rank16", seeds=(7,))
    other = change(tmp_path / "rank16", identity__strategy__rank=16, name="rank16")
    text = message(compare_runs, [pacs, other], reference="pacs_trial:joint")
    assert "they share no seed (seed 7 and seeds 0, 1)" in text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"identity__strategy__rank": 16},
            "strategy.rank is 8 in one and 16 in the other",
        ),
        ({"identity__backbone__input_size": 224}, "backbone.input_size is 112 in one and 224"),
        ({"identity__precision": "bf16"}, "precision is 'fp32' in one and 'bf16' in the other"),
        ({"identity__device": "cuda"}, "device is 'cpu' in one and 'cuda' in the other"),
        ({"identity__targets": ["q", "v"]}, "targets is None in one and ['q', 'v']"),
    ],
)
def test_what_cannot_be_averaged_is_refused_with_the_reason(pacs, tmp_path, settings, reason):
    fabricate_run(tmp_path / "other", seeds=(2,))
    other = change(tmp_path / "other", **settings)
    text = message(require_poolable, [pacs, other])
    assert "cannot be averaged" in text
    assert reason in text
    assert len(compare_runs([pacs, other]).conditions) == 2


def test_other_splits_are_not_averaged(pacs, office, more_seeds, tmp_path):
    require_poolable([pacs, more_seeds])
    split = make(tmp_path / "split", fingerprint="cafe")
    text = message(require_poolable, [pacs, split])
    assert "their data or its splits differ (fingerprints f00d and cafe)" in text
    assert "their domains are" in message(require_poolable, [pacs, office])
    assert len(compare_runs([pacs, split]).conditions) == 2


def test_what_is_asked_for_does_not_matter_but_what_was_computed_with(pacs, tmp_path):
    """Precision "auto" is bf16 on one machine and fp32 on another: both say "auto"."""
    fabricate_run(tmp_path / "same", seeds=(2,))
    same = change(tmp_path / "same", benchmark__root="elsewhere", spc=1, precision="fp32")
    require_poolable([pacs, same])
    fabricate_run(tmp_path / "other", seeds=(3,))
    change(pacs.path, precision="auto")
    other = change(tmp_path / "other", precision="auto", identity__precision="bf16")
    assert "precision is" in message(require_poolable, [pacs, other])


def test_other_stages_are_not_averaged(pacs, tmp_path):
    other = as_stages(fabricate_run(tmp_path / "other", seeds=(2,)), {"all": None})
    text = message(require_poolable, [pacs, RunFolder.read(other)])
    assert "what is merged and scored at their stages differs" in text


def test_a_fingerprint_is_told_once(pacs, tmp_path):
    split = make(tmp_path / "split", fingerprint="cafe")
    assert message(require_poolable, [pacs, split]).count("cafe") == 1


def test_metrics_must_be_shared(pacs, tmp_path):
    text = message(compare_runs, [pacs], metric="rmse")
    assert "has no 'rmse', it has accuracy, f1" in text
    path = as_errors(fabricate_run(tmp_path / "turned"), replace(ACCURACY, unit="share"))
    text = message(compare_runs, [pacs, RunFolder.read(path)])
    assert "'accuracy' is not the same metric" in text
    assert "unit is '%' and 'share'" in text


def test_one_seed_twice_must_agree(pacs, tmp_path):
    same = make(tmp_path / "copy", seeds=(0, 1))
    assert compare_runs([pacs, same]).results[("pacs_trial", "ties_w1")]["average"].seeds == 2
    rows = [Score(s.seed, s.arm, s.stage, s.evaluated, s.metric, s.value / 2) for s in same.scores]
    ScoreTable(rows).write(same.path / "scores.csv")
    text = message(compare_runs, [pacs, RunFolder.read(same.path)])
    assert "hold different scores for seed 0" in text


def test_the_name_of_a_benchmark_sets_nothing_apart(pacs, tmp_path):
    path = fabricate_run(tmp_path / "renamed", seeds=(2,))
    stream = json.loads((path / "stream.json").read_text())
    (path / "stream.json").write_text(json.dumps({**stream, "name": "pacs_of_mine"}))
    assert len(compare_runs([pacs, RunFolder.read(path)]).conditions) == 1
    # Where the data differ, both names are told.
    (path / "stream.json").write_text(
        json.dumps({**stream, "name": "pacs_of_mine", "fingerprint": "cafe"})
    )
    comparison = compare_runs([pacs, RunFolder.read(path)])
    assert len(comparison.conditions) == 2
    assert "their benchmarks are 'pacs' and 'pacs_of_mine'" in " ".join(comparison.notes)


def test_one_name_for_two_arms_is_refused(pacs, tmp_path):
    fabricate_run(tmp_path / "other", seeds=(2,))
    other = change(tmp_path / "other", variants__ties_w1__options__density=0.9)
    text = message(compare_runs, [pacs, other])
    assert (
        "Arm 'ties_w1' is not one arm, so its seeds cannot be averaged: options.density is 0.2"
        in text
    )
    assert f"and 0.9 in {other.path}; rename one of them" in text


def test_the_same_folder_counts_once(pacs):
    comparison = compare_runs([pacs, pacs])
    assert comparison.results[("pacs_trial", "ties_w1")]["average"].seeds == 2
    assert "together" not in comparison.notes[0]


def test_conditions_of_one_name_are_called_by_their_folder(pacs, tmp_path):
    fabricate_run(tmp_path / "rank16")
    other = change(tmp_path / "rank16", identity__strategy__rank=16)
    labels = [c.label for c in compare_runs([pacs, other]).conditions]
    assert labels == ["pacs_a", "rank16"]


def test_unknown_references_are_named(pacs):
    assert "Unknown arm 'tie_w1'" in message(compare_runs, [pacs], reference="tie_w1")
    assert "Unknown condition 'x'" in message(compare_runs, [pacs], reference="x:ties_w1")
    assert "at least one run" in message(compare_runs, [])


def test_arms_that_only_one_condition_has_are_dashes(pacs, tmp_path):
    other = make(
        tmp_path / "o",
        arms={"new": ARMS["ties_w1"]},
        references=("base",),
        name="o",
        fingerprint="cafe",
    )
    table = comparison_table(compare_runs([pacs, other], reference="sequential"))
    assert {*table.rows[:3]} == {*ARMS}
    assert table.rows[3] == "new"  # not ranked in the first condition
    lines = table.text(140).splitlines()
    (new,) = (line for line in lines if line.startswith("new "))
    assert re.split(r"\s+", new)[1:6] == ["–"] * 5


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(tmp_path, width):
    arms = many_arms()
    runs = [make(tmp_path / "a", arms=arms), make(tmp_path / "b", arms=arms, fingerprint="cafe")]
    comparison = compare_runs(runs, reference="joint")
    text = comparison_table(comparison).text(width)
    assert max(map(len, text.splitlines())) <= width
    rows = [line for line in text.splitlines() if line.startswith("ties_w1 ")]
    assert len(rows) == 1  # a row is a line
    # The difference of each condition stays where there is room.
    hidden = text.partition("Not shown at this width: ")[2]
    assert ("vs joint" in hidden) == (width == 80)
    assert "A = a: pacs (4 domains, data f00d), vit_tiny_patch16_224, 2 seeds" in text


def test_many_conditions_fit_the_terminal(tmp_path):
    runs = [make(tmp_path / f"r{i}", fingerprint=str(i), seeds=(0,)) for i in range(14)]
    text = comparison_table(compare_runs(runs)).text(80)
    assert max(map(len, text.splitlines())) <= 80


def test_renderings(pacs, office):
    comparison = compare_runs([pacs, office], reference="joint")
    frame = pd.read_csv(io.StringIO(RENDERERS["csv"](comparison)), keep_default_na=True)
    row = frame[(frame.condition == "office") & (frame.arm == "ta_w1")].iloc[0]
    assert row.average == pytest.approx(finals(office, "ta_w1").mean())
    assert row.low < row.difference < row.high
    assert (row.n, row.over) == (2, "seeds")
    assert row["p holm"] >= row.p
    assert "| Arm | pacs\\_trial average (%) |" in RENDERERS["markdown"](comparison)
    assert r"Arm & \shortstack[r]{pacs\_trial average\\(\%)} & " in RENDERERS["latex"](comparison)
    for conditions in ([pacs], [pacs, office]):
        figure = comparison_figure(compare_runs(conditions))
        assert render(figure, "png")
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [*ARMS, *REFERENCES]


@pytest.fixture
def one_seed(tmp_path):
    path = fabricate_run(tmp_path / "single", seeds=(4,))
    fabricate_hits(path, (4,), ("ties_w1", "ta_w1", "sequential"))
    return RunFolder.read(path)


def test_one_seed_has_an_interval_over_test_images(one_seed):
    comparison = compare_runs([one_seed], reference="sequential")
    hits = {arm: read_hits(hits_file(one_seed.path, 4, arm)) for arm in ("ties_w1", "sequential")}
    pair = [[hits[a][3, j] for j in range(4)] for a in hits]
    expected = paired_bootstrap(*pair)
    found = comparison.differences["pacs_trial"].found
    assert (found["ties_w1"].low, found["ties_w1"].high) == (expected.low, expected.high)
    assert found["ties_w1"].n == 1200
    means = [one_seed.scores.matrix(4, a).values[-1].mean() for a in hits]
    assert found["ties_w1"].mean == pytest.approx(means[0] - means[1])
    assert math.isnan(found["ta_adaptive_b3"].low)  # its hits were not kept
    (note,) = (n for n in comparison.notes if "over test samples" in n)
    assert "it says nothing about another seed" in note
    table = comparison_table(comparison)
    assert [c.title for c in table.columns] == [
        "average (%)",
        "n",
        "vs sequential over images",
        "forgetting (pp, lower is better)",
    ]
    frame = comparison.frame().set_index("arm")
    assert frame.loc["ties_w1", "over"] == "test samples"
    assert "over test samples" in comparison_figure(comparison).axes[1].get_xlabel()


def test_hits_are_of_their_metric_only(one_seed):
    """Macro F1 is no share of hits: there is no interval rather than a wrong one."""
    comparison = compare_runs([one_seed], "f1", reference="sequential")
    assert math.isnan(comparison.differences["pacs_trial"].found["ties_w1"].low)
    assert any("without an interval" in n for n in comparison.notes)


def test_several_seeds_never_use_test_images(tmp_path):
    path = fabricate_run(tmp_path / "run", seeds=(0, 1))
    fabricate_hits(path, (0, 1), ("ties_w1", "sequential"))
    comparison = compare_runs([RunFolder.read(path)], reference="sequential")
    assert comparison.differences["pacs_trial"].found["ties_w1"].n == 2


def test_a_damaged_file_of_hits_is_named(one_seed):
    hits_file(one_seed.path, 4, "ties_w1").write_bytes(b"x")
    assert "ties_w1.npz is damaged" in message(compare_runs, [one_seed], reference="sequential")


def test_a_scalar_is_compared_in_its_unit(tmp_path):
    runs = [RunFolder.read(as_errors(fabricate_run(tmp_path / "a")))]
    comparison = compare_runs(runs, reference="joint")
    assert comparison.metric == RMSE  # the primary metric, without being told
    table = comparison_table(comparison)
    assert table.title == "RMSE in px after the last domain, mean ± standard deviation over n seeds"
    means = [
        np.mean([runs[0].scores.matrix(s, a, "rmse").values[-1] for s in (0, 1)])
        for a in table.rows[:3]
    ]
    assert means == sorted(means)  # less is better
    np.testing.assert_allclose(table.mean[:3, 0], means)
    assert table.is_best(int(np.argmin(means)), 0)
    figure = comparison_figure(comparison)
    assert figure.axes[1].get_xlabel().startswith("difference to joint, px\n")
    assert "px, lower is better" in figure.axes[0].get_xlabel()


def test_without_order_there_is_no_forgetting(tmp_path):
    run = RunFolder.read(as_stages(fabricate_run(tmp_path / "a"), {"all": None}))
    comparison = compare_runs([run], reference="joint")
    table = comparison_table(comparison)
    assert "at stage all" in table.title
    assert [c.title for c in table.columns] == ["average (%)", "n", "vs joint", "p"]
    assert comparison.frame()["forgetting"].isna().all()


def test_an_option_that_a_later_version_adds_makes_no_other_run(tmp_path):
    """At its default it is what the older run was made with; at another value it is not."""
    old = fabricate_run(tmp_path / "old", seeds=(0,))
    new = fabricate_run(tmp_path / "new", seeds=(1,))
    for value, columns in ((0.5, 1), (0.9, 2)):
        config = yaml.safe_load((new / "config.yaml").read_text())
        config["identity"]["strategy"]["noise"] = value
        config["identity_defaults"]["noise"] = 0.5
        (new / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        runs = [RunFolder.read(old), RunFolder.read(new)]
        assert len(compare_runs(runs).conditions) == columns
