"""What a person sees of runs of unlike tasks: faces, tables, figures, page, TensorBoard."""

from __future__ import annotations

import math
import re
from html import unescape

import numpy as np
import pytest
from multitask_runs import ARMS, LEVELS, NAMES, fabricate_multitask, frame
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_figures import texts_apart
from test_html import Checker

from cl_lora.commands.run import print_table, say_failed
from cl_lora.evaluation.interference import permutation_test
from cl_lora.evaluation.metrics import RELATIVE
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.compare import compare_runs, comparison_table
from cl_lora.reporting.faces import by_group, faces, merged_groups
from cl_lora.reporting.figures import draw_figures, render
from cl_lora.reporting.html import render_html
from cl_lora.reporting.multitask import analysis_of, failed_tasks, own_metric
from cl_lora.reporting.page.facts import facts
from cl_lora.reporting.tables import main_tables, partner_tables, tables_by_task
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.reader import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.read(fabricate_multitask(tmp_path_factory.mktemp("subsets") / "run"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The landmarks failed."""
    path = tmp_path_factory.mktemp("broken") / "run"
    return RunFolder.read(fabricate_multitask(path, failed=("landmarks",)))


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return RunFolder.read(
        fabricate_multitask(tmp_path_factory.mktemp("stream") / "run", in_time=True)
    )


@pytest.fixture(scope="module")
def drawn(run, broken):
    return {one: draw_figures(one) for one in (run, broken)}


def test_a_face_for_each_group_holds_means_over_partners(run):
    found = faces(run)
    assert [(f.kind, f.run.stream.trained_stages[0].name) for f in found] == [
        ("group", "pairs"),
        ("group", "triples"),
    ]
    assert [len(f.stages[0]) for f in found] == [6, 2]
    every = frame(run)
    for face, group in zip(found, ("pairs", "triples"), strict=True):
        there = {(s.seed, s.arm, s.evaluated, s.metric): s.value for s in face.run.scores}
        rows = every[every["group"] == group]
        means = rows.groupby(["seed", "arm", "evaluated", "metric"])["value"].mean()
        for key, value in means.items():
            assert there.pop(key) == pytest.approx(value)
        alone = every[every["group"] == "alone"].set_index(["seed", "arm", "evaluated", "metric"])
        assert set(there) == set(alone.index)  # references, as they are alone
        for key, value in there.items():
            assert value == alone.loc[key, "value"]


def test_an_arm_that_lacks_a_pair_has_no_mean(run, tmp_path):
    path = fabricate_multitask(tmp_path / "run")
    lines = (path / "scores.csv").read_text().splitlines()
    pair = next(s.index for s in run.stream.stages if s.members == (0, 1))
    kept = [line for line in lines if not line.startswith(f"1,cat,{pair},0,")]
    (path / "scores.csv").write_text("\n".join(kept) + "\n")
    face = by_group(RunFolder.read(path), "pairs")
    found = {(s.seed, s.evaluated) for s in face.scores if s.arm == "cat"}
    assert (1, 0) not in found
    assert {(0, 0), (1, 1)} <= found


def test_main_tables_have_the_tasks_their_average_and_the_references(run):
    pairs, triples = main_tables(run, RELATIVE)
    assert pairs.title == (
        "Share of single task in % in pairs, mean over partners, mean ± standard deviation over 2 "
        "seeds"
    )
    assert pairs.rows == (
        "mean",
        "cat",
        "single",
        "other_seed",
        "single_x0.5",
        "head_only",
        "trivial",
    )
    titles = [*NAMES, "Average share of single task (%)", "n"]
    assert [c.title for c in pairs.columns] == titles
    np.testing.assert_allclose(pairs.mean[2, :5], 1)
    rows = frame(run).query("group == 'pairs' and arm == 'cat' and metric == 'relative'")
    by_seed = rows.groupby(["evaluated", "seed"])["value"].mean()
    assert pairs.mean[1, 0] == pytest.approx(by_seed[0].mean())
    averages = by_seed.groupby("seed").mean()
    assert pairs.mean[1, 4] == pytest.approx(averages.mean())
    assert pairs.spread[1, 4] == pytest.approx(averages.std())
    assert triples.mean[1, 0] < pairs.mean[1, 0]
    (accuracy, _) = main_tables(run, run.stream.metrics["accuracy"])
    assert [c.title for c in accuracy.columns] == [
        *("age_class", "emotion", "Average accuracy (%)", "n")
    ]


def test_tables_by_task_are_in_each_tasks_unit(run):
    pairs, _ = tables_by_task(run)
    assert [c.title for c in pairs.columns] == [
        "age_class (Accuracy, %)",
        "age (RMSE, lower is better)",
        "emotion (Accuracy, %)",
        "landmarks (NME, %, lower is better)",
    ]
    i = pairs.rows.index("head_only")
    np.testing.assert_allclose(pairs.mean[i], [LEVELS[name][1] for name in NAMES])
    assert pairs.rows[:2] == ("mean", "cat")
    assert pairs.is_best(0, 1)  # mean has the lower error
    assert not pairs.is_best(1, 1)


def test_a_task_stands_beside_every_partner_and_its_baselines(run):
    found = dict(partner_tables(run))
    (table, mae) = found["age"]
    assert table.rows == (
        "+ age_class",
        "+ emotion",
        "+ landmarks",
        "+ age_class + landmarks",
        "+ emotion + landmarks",
        "single",
        "head_only",
        "trivial",
    )
    assert table.references == 3
    assert table.row_title == "Merged with"
    assert mae.title.startswith("age: MAE when merged with")
    every = frame(run).query("arm == 'mean' and evaluated == 1 and metric == 'rmse'")
    pair = every[every["members"] == (1, 2)]["value"]
    assert table.mean[1, 1] == pytest.approx(pair.mean())
    assert table.spread[1, 1] == pytest.approx(pair.std())
    assert [len(tables) for tables in found.values()] == [2, 2, 2, 1]


def test_in_time_every_task_keeps_its_metric(stream):
    final, forgetting, back, forward = tables_by_task(stream)
    assert final.title.startswith("Final score of each task by its own metric after the last task")
    every = frame(stream).query("arm == 'cat' and metric == 'rmse' and evaluated == 1")
    by_stage = every.pivot_table(index="stage", columns="seed", values="value")
    lost = by_stage.loc[3] - by_stage.loc[:2].min()  # an error: less is better
    assert forgetting.mean[1, 1] == pytest.approx(lost.mean())
    assert forgetting.spread[1, 1] == pytest.approx(lost.std())
    assert back.mean[1, 1] == pytest.approx((by_stage.loc[1] - by_stage.loc[3]).mean())
    assert forward.mean[1, 1] == pytest.approx((by_stage.loc[-1] - by_stage.loc[0]).mean())
    assert math.isnan(forgetting.mean[0, 3])  # the last cannot be forgotten
    assert math.isnan(forward.mean[0, 0])
    assert forgetting.rows == ("mean", "cat")  # baselines are scored once
    (relative,) = main_tables(stream, RELATIVE)
    assert [c.key for c in relative.columns][4:6] == ["average", "forgetting"]


def test_harm_is_that_of_the_scores(run):
    found = analysis_of(run)
    assert found is not None
    rows = frame(run).query("metric == 'nme' and evaluated == 3").groupby("arm")["value"]
    means = rows.mean()
    gained = means["trivial"] - means["single"]
    every = frame(run).query("metric == 'nme' and evaluated == 3 and arm == 'cat'")
    merged = every[every["members"] == (1, 3)]["value"].mean()
    expected = (means["single"] - merged) / gained
    assert found.arms["cat"].harm[3, 1] == pytest.approx(expected)
    assert np.isnan(np.diag(found.arms["cat"].harm)).all()
    assert set(found.controls) == {"single_x0.5", "other_seed"}
    related = found.related("cat", "cka")
    h = found.arms["cat"].harm
    rho, p, *_ = permutation_test((h + h.T) / 2, found.similarity["cka"].mean(axis=0), 0)
    assert (related.rho, related.p) == (pytest.approx(rho), pytest.approx(p))


def test_a_failed_task_is_named_wherever_a_person_looks(broken, capsys, monkeypatch):
    why = (
        "landmarks (its features have collapsed on some seed and it does not beat the trivial "
        "predictor on some seed)"
    )
    assert failed_tasks(broken) == {"landmarks": why[11:-1]}
    assert why in main_tables(broken, RELATIVE)[0].notes[-1]
    page = unescape(render_html(broken, {}))
    assert page.count(why) >= 3  # answers, table, section
    monkeypatch.setenv("COLUMNS", "80")
    print_table(broken.path)
    assert "landmarks (its" in capsys.readouterr().out
    say_failed(broken.path)
    assert why in (broken.path / "log.txt").read_text()
    found = analysis_of(broken)
    assert found is not None
    assert np.isnan(found.arms["cat"].suffered[3])
    assert found.related("cat", "cka").adapters == 3
    assert "landmarks" not in answers_of(broken, RELATIVE)[1].sentence


def test_nothing_failed_and_nothing_is_said(run, drawn):
    assert failed_tasks(run) == {}
    assert "Failed" not in render_html(run, drawn[run])


def test_the_terminal_table_fits(run, stream, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for path in (run.path, stream.path):
        print_table(path)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith("Share of single task in %")
        assert any("by its own metric" in line for line in lines)


def test_figures_are_drawn_and_no_two_texts_overlap(drawn, broken, monkeypatch):
    for found in drawn.values():
        assert list(found) == ["ranking", "final", "interference", "harm_and_similarity"]
        for name in ("interference", "harm_and_similarity"):
            assert texts_apart(found[name], monkeypatch) > 30
    image = drawn[broken]["interference"].axes[0].images[0].get_array()
    np.testing.assert_allclose(image, analysis_of(broken).arms["cat"].harm)
    low, high = drawn[broken]["interference"].axes[0].images[0].get_clim()
    assert low == -high


def test_the_same_run_gives_the_same_bytes(run):
    first, second = ({n: render(f, "svg") for n, f in draw_figures(run).items()} for _ in range(2))
    assert first == second


def test_the_scatter_says_rho_p_and_interval(run, drawn):
    ax = drawn[run]["harm_and_similarity"].axes[0]
    related = analysis_of(run).related("cat", "cosine")
    title = ax.get_title(loc="left").replace("−", "-")
    assert title == (
        f"ρ = {related.rho:.2f}, p = {related.p:.3f}\n"
        f"per seed {related.mean:.2f} [{related.low:.2f}, {related.high:.2f}]"
    )


def test_the_page_is_whole(run, broken, stream, drawn):
    for one in (stream, broken, run):
        page = render_html(one, drawn.get(one))
        checker = Checker()
        checker.feed(page)
        assert checker.open == []
        assert {a[1:] for a in checker.addresses if a.startswith("#")} <= checker.ids
        assert ("interference" in checker.ids) == (one is not stream)
    titles = re.findall(r"<caption>(.*?)</caption>", page)
    assert "Does similarity go with harm?" in titles
    assert any(t.startswith("Controls: change of each task") for t in titles)
    assert any(t.startswith("Adapters, mean") for t in titles)
    assert "<summary><h3>age: merged with each partner</h3></summary>" in page
    assert "Differences to single, in pairs" in titles


def test_the_facts_tell_what_was_merged(run):
    assert ("Merged", "6 pairs, 2 triples") in facts(run)


def test_a_run_of_one_seed_without_relations_or_baselines(tmp_path):
    one = RunFolder.read(fabricate_multitask(tmp_path / "one", seeds=(3,), relations=False))
    figures = draw_figures(one)
    page = render_html(one, figures)
    assert "training noise is unknown with one seed" in unescape(page)
    assert "Does similarity" not in page
    assert list(figures) == ["ranking", "final", "interference"]
    bare = RunFolder.read(
        fabricate_multitask(tmp_path / "bare", rows={"single": "single", "head_only": "head_only"})
    )
    assert analysis_of(bare) is None
    assert failed_tasks(bare) == {}
    assert "Interference" not in render_html(bare)


def test_rows_are_known_by_their_role_and_not_their_name(tmp_path):
    rows = {"alone": "single", "zero": "trivial", "smaller": "control"}
    run = RunFolder.read(fabricate_multitask(tmp_path / "run", rows=rows))
    found = analysis_of(run)
    assert list(found.controls) == ["smaller"]
    assert list(dict(partner_tables(run))["age"][0].rows[-2:]) == ["alone", "zero"]


def test_tensorboard_has_groups_harm_and_similarity(run):
    write_tensorboard(run)
    events = EventAccumulator(str(run.path / "tensorboard" / "cat"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["interference/harm"]
    found = analysis_of(run).arms["cat"]
    (event,) = events.Scalars("interference/suffered/age")
    assert event.value == pytest.approx(found.suffered[1])
    (event,) = events.Scalars("interference/age/with emotion")
    assert event.value == pytest.approx(found.harm[1, 2])
    (event,) = events.Scalars("pairs/relative/average")
    assert event.value == pytest.approx(main_tables(run, RELATIVE)[0].mean[1, 4])
    assert "result/triples/average" in tags["scalars"]
    events = EventAccumulator(str(run.path / "tensorboard" / "overview"))
    events.Reload()
    assert set(events.Tags()["images"]) == {
        f"similarity/{m}" for m in ("cosine", "subspace", "cka")
    }


def test_compare_takes_the_pairs(run, tmp_path):
    other = RunFolder.read(fabricate_multitask(tmp_path / "more", seeds=(2,)))
    together = compare_runs([run, other], reference="single")
    assert len(together.conditions) == 1
    table = comparison_table(together)
    text = table.text(80)
    assert "in pairs, mean over partners" in text.replace("\n", " ")
    assert "4 tasks, 6 pairs" in text.replace("\n", " ")
    means = frame(run).query("group == 'pairs' and arm == 'cat' and metric == 'relative'")
    more = frame(other).query("group == 'pairs' and arm == 'cat' and metric == 'relative'")
    by_seed = [
        rows[rows["seed"] == seed].groupby("evaluated")["value"].mean().mean()
        for rows in (means, more)
        for seed in sorted(set(rows["seed"]))
    ]
    (row,) = (r for _, r in together.frame().iterrows() if r["arm"] == "cat")
    assert row["average"] == pytest.approx(np.mean(by_seed))
    assert row["n"] == 3


def test_the_own_metric_is_the_first_in_its_own_unit(run):
    assert [own_metric(run, j).name for j in range(4)] == ["accuracy", "rmse", "accuracy", "nme"]
    assert {name: len(s) for name, s in merged_groups(run).items()} == {"pairs": 6, "triples": 2}
    assert list(ARMS) == list(run.arms)
