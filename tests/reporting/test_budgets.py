"""Runs that merge everything once: what each way needs and reaches, as a person sees it."""

from __future__ import annotations

import math
from html import unescape

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from other_runs import as_errors
from reuse_runs import ARMS, BACKBONE, CLASSES, ROWS, TASKS, M, Q, fabricate_reuse
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_figures import texts_apart
from test_html import Checker

from cl_lora.commands.run import print_table
from cl_lora.evaluation.metrics import ACCURACY, METRICS, RELATIVE
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.budgets import (
    Point,
    best_within,
    front,
    has_budgets,
    headline,
    leading_metrics,
    on_front,
    parameters_of,
    points_of,
)
from cl_lora.reporting.compare import compare_runs, comparison_figure, comparison_table
from cl_lora.reporting.describe import arm_settings, at_the_end
from cl_lora.reporting.figures import (
    FIGURES,
    draw_figures,
    embedding_figure,
    families,
    render,
)
from cl_lora.reporting.html import render_html
from cl_lora.reporting.page.facts import facts
from cl_lora.reporting.tables import main_tables, sizes_table, tables_by_task
from cl_lora.reporting.tables.column import Column
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.reporting.views import views_of
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.read(fabricate_reuse(tmp_path_factory.mktemp("reuse") / "run"))


FEW = {k: ARMS[k] for k in ("regmean", "peru_lora_q4", "peru_lora_q8", "peru_fft_1", "peru_fft_5")}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five arms."""
    return RunFolder.read(fabricate_reuse(tmp_path_factory.mktemp("small") / "run", arms=FEW))


@pytest.fixture(scope="module")
def unlike(tmp_path_factory):
    """One task is a scalar: what is averaged is the share of single task."""
    path = tmp_path_factory.mktemp("unlike") / "run"
    return RunFolder.read(fabricate_reuse(path, unlike=True, name="unlike", extras=False))


@pytest.fixture(scope="module")
def drawn(run):
    return draw_figures(run)


def by_seed(run, row, metric="accuracy"):
    """Average over tasks of each seed, from the rows of the file."""
    frame = pd.DataFrame([vars(s) for s in run.scores])
    rows = frame[(frame["arm"] == row) & (frame["metric"] == metric)]
    return rows.groupby("seed")["value"].mean().to_numpy()


# Numbers ------------------------------------------------------------------------------------


def test_points_are_sizes_means_and_students_interval(run):
    points = points_of(run, ACCURACY)
    assert set(points) == {*ARMS, *ROWS}
    for row, size in {**{a: s for a, (_, s, _) in ARMS.items()}, "base": BACKBONE}.items():
        values = by_seed(run, row)
        low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        p = points[row]
        assert (p.parameters, p.seeds) == (size, 3)
        np.testing.assert_allclose([p.mean, p.low, p.high], [values.mean(), low, high])


def brute_force(points, up):
    """Rows that no other row matches in both and beats in one."""
    sign = 1 if up else -1

    def beats(a, b):
        at_least = a.parameters <= b.parameters and sign * a.mean >= sign * b.mean
        return at_least and (a.parameters, a.mean) != (b.parameters, b.mean)

    return {r for r, p in points.items() if not any(beats(q, p) for q in points.values())}


PLACES = st.tuples(st.integers(1, 8), st.integers(0, 8))


@given(st.lists(PLACES, min_size=1, max_size=12), st.booleans())
def test_the_front_is_what_brute_force_finds(places, up):
    points = {f"r{i}": Point(s, m / 8, 0, 1, 3) for i, (s, m) in enumerate(places)}
    found = front(points, up)
    assert set(found) == brute_force(points, up)
    sizes = [points[row].parameters for row in found]
    assert sizes == sorted(sizes)


@given(st.lists(PLACES, min_size=1, max_size=12), st.booleans(), st.integers(0, 9))
def test_the_best_within_a_limit_is_best_and_small(places, up, limit):
    points = {f"r{i}": Point(s, m / 8, 0, 1, 3) for i, (s, m) in enumerate(places)}
    found = best_within(points, list(points), limit, up)
    there = [p for p in points.values() if p.parameters <= limit]
    if not there:
        assert found is None
        return
    best = (max if up else min)(p.mean for p in there)
    assert points[found].mean == best
    assert points[found].parameters == min(p.parameters for p in there if p.mean == best)


def test_rows_with_fewer_seeds_and_controls_are_never_on_the_front(tmp_path):
    path = fabricate_reuse(tmp_path / "run", extras=False)
    lines = (path / "scores.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("2,peru_lora_q8,")]
    (path / "scores.csv").write_text("\n".join(kept) + "\n")
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["roles"]["peru_lora_q16"] = "control"
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = RunFolder.read(path, allow_unfinished=True)
    found = on_front(run, ACCURACY)
    points = points_of(run, ACCURACY)
    assert points["peru_lora_q8"].seeds == 2
    rest = {r: p for r, p in points.items() if r not in ("peru_lora_q8", "peru_lora_q16")}
    assert set(found) == brute_force(rest, True)
    told = answers_of(run)[0].sentence
    assert "peru_lora_q8" not in told
    assert "peru_lora_q16" not in told


def test_the_metric_that_leads_is_the_one_that_all_tasks_share(run, unlike, tmp_path):
    assert headline(run) == ACCURACY
    assert headline(unlike) == RELATIVE
    assert leading_metrics(run) == (ACCURACY,)
    assert leading_metrics(unlike) == (RELATIVE,)
    assert has_budgets(run)
    # Without sizes nothing changes: shares lead, as in every run of several tasks.
    path = fabricate_reuse(tmp_path / "run", arms=FEW, extras=False)
    (path / "accounts.csv").unlink()
    bare = RunFolder.read(path)
    assert headline(bare) == RELATIVE
    assert (has_budgets(bare), parameters_of(bare)) == (False, {})
    assert list(draw_figures(bare)) == ["ranking", "final", "matrices"]
    assert sizes_table(bare, RELATIVE) is None
    page = render_html(bare)
    assert "What each way needs" not in page
    assert at_the_end(bare) == "at stage all"


def test_settings_name_bank_and_residual(run):
    s = arm_settings(run, "peru_fft_5")
    assert (s.method, s.bank, s.residual) == ("task_arithmetic", "full", "sparse")
    assert s.residual_options == {"scope": "model", "m": 5.0}
    assert s.budget == ("m", 5.0)
    assert s.family().endswith("sparse scope model m 5, full bank")
    assert arm_settings(run, "post_pruning_1").family() == "sparse scope model m 1, full bank"
    assert arm_settings(run, "ties").budget is None


def test_families_differ_in_the_size_of_their_residual_alone(run):
    found = {f.title: f for f in families(run)}
    assert set(found) == {
        "low_rank on θ₀",
        "sparse on θ₀, full bank",
        "sparse on task_arithmetic, full bank",
    }
    assert found["low_rank on θ₀"].arms == {float(q): f"peru_lora_q{q}" for q in Q}
    fft = found["sparse on task_arithmetic, full bank"]
    assert fft.arms == {m: f"peru_fft_{m:g}" for m in M}
    assert (fft.budget, fft.base) == ("m", "task_arithmetic_full")


def test_families_that_share_a_title_are_told_apart(tmp_path):
    arms = {}
    for scale in (0.2, 0.3):
        for scope in ("model", "tensor"):
            for m in (1.0, 5.0):
                residual = {"name": "sparse", "m": m, "scope": scope}
                settings = {"method": "task_arithmetic", "coefficients": scale}
                name = f"fft_{scale}_{scope}_{m:g}"
                arms[name] = ({**settings, "residual": residual}, 6e6 + m, 0.7)
    run = RunFolder.read(fabricate_reuse(tmp_path / "run", arms=arms, extras=False))
    titles = [f.title for f in families(run)]
    assert len(set(titles)) == 4
    assert titles[0] == "sparse on task_arithmetic, scope model, fixed, W 0.2"
    assert all(len(f.arms) == 2 for f in families(run))


# Figures ------------------------------------------------------------------------------------


def test_every_figure_is_drawn_and_no_two_texts_overlap(drawn, monkeypatch):
    assert list(drawn) == ["ranking", "pareto", "by_q_and_m", "final", "spectra", "embedding"]
    for name in ("ranking", "pareto", "by_q_and_m", "spectra", "embedding"):
        assert texts_apart(drawn[name], monkeypatch) > 14, name


def markers(ax):
    """Single markers with their face, by place."""
    return {
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6)): line
        for line in ax.get_lines()
        if len(line.get_xdata()) == 1 and line.get_marker() in "os"
    }


def test_pareto_has_a_point_for_every_row_and_the_front_as_stairs(run, drawn):
    ax = drawn["pareto"].axes[0]
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "Accuracy averaged over 6 tasks (%)"
    points = points_of(run, ACCURACY)
    found = markers(ax)
    for row, p in points.items():
        line = found[round(p.parameters / 1e6, 6), round(100 * by_seed(run, row).mean(), 6)]
        assert line.get_marker() == (
            "s" if row.endswith("_full") or "fft" in row or "pruning" in row else "o"
        ), row
        assert (line.get_markerfacecolor() == "white") == (row in ROWS), row
    assert {t.get_text() for t in ax.texts} == set(points)
    (stairs,) = (x for x in ax.get_lines() if x.get_drawstyle() == "steps-post")
    best = brute_force(points, True)
    corners = {(round(x, 6), round(y, 6)) for x, y in zip(*stairs.get_data(), strict=True)}
    expected = {
        (round(points[r].parameters / 1e6, 6), round(100 * points[r].mean, 6)) for r in best
    }
    assert expected <= corners
    assert len(corners) == len(expected) + 1  # and its end at the right
    (low, high) = (100 * points["regmean_full"].low, 100 * points["regmean_full"].high)
    whiskers = [x.get_ydata() for x in ax.get_lines() if len(x.get_xdata()) == 2]
    assert any(np.allclose(w, [low, high]) for w in whiskers)


def test_pareto_names_multiples_of_the_backbone_where_it_is_known(drawn, tmp_path):
    (above,) = drawn["pareto"].axes[0].child_axes
    assert above.get_xlabel() == "multiples of the backbone"
    unknown = RunFolder.read(
        fabricate_reuse(tmp_path / "run", arms=FEW, backbone=None, extras=False)
    )
    ax = draw_figures(unknown)["pareto"].axes[0]
    assert ax.child_axes == []
    table = main_tables(unknown, ACCURACY)[0]
    assert [c.key for c in table.columns[:2]] == ["parameters", f"final {TASKS[0]}"]
    told = answers_of(unknown)[0].sentence
    assert "×" not in told
    assert "Use peru_lora_q8 of any size (" in told


def test_pareto_where_less_is_better(tmp_path):
    rmse = METRICS["rmse"]
    rows = {"single": ("single", "", 2 * BACKBONE, 0.9)}
    arms = {k: ARMS[k] for k in ("ties", "regmean", "peru_lora_q8")}
    path = fabricate_reuse(tmp_path / "run", arms=arms, rows=rows, extras=False)
    as_errors(path, rmse)
    run = RunFolder.read(path)
    assert on_front(run, rmse) == ["regmean", "peru_lora_q8", "single"]
    assert "regmean with nothing beside the backbone" in answers_of(run, rmse)[0].sentence
    drawn = draw_figures(run)
    assert "lower is better" in drawn["pareto"].axes[0].get_ylabel()
    assert sizes_table(run, rmse).is_best(2, 3)  # peru_lora_q8


def test_by_q_and_m_has_a_panel_for_each(run, drawn):
    left, right = drawn["by_q_and_m"].axes
    assert [ax.get_xlabel() for ax in (left, right)] == ["q", "m"]
    assert [t.get_text() for t in left.get_xticklabels()] == [str(q) for q in Q]
    (line,) = (c.lines[0] for c in left.containers)
    np.testing.assert_allclose(line.get_xdata(orig=False), Q)
    expected = [100 * by_seed(run, f"peru_lora_q{q}").mean() for q in Q]
    np.testing.assert_allclose(line.get_ydata(), expected)
    pruning, fft = (c.lines[0] for c in right.containers)
    np.testing.assert_allclose(
        fft.get_ydata(), [100 * by_seed(run, f"peru_fft_{m:g}").mean() for m in M]
    )
    np.testing.assert_allclose(pruning.get_xdata(orig=False), M)
    levels = {round(float(x.get_ydata()[0]), 6): x.get_linestyle() for x in right.get_lines()}
    base = round(100 * by_seed(run, "task_arithmetic_full").mean(), 6)
    assert levels[base] == ":"
    assert round(100 * by_seed(run, "single").mean(), 6) in levels


def test_one_size_of_a_residual_is_no_line(tmp_path):
    arms = {k: ARMS[k] for k in ("ties", "peru_lora_q8")}
    run = RunFolder.read(fabricate_reuse(tmp_path / "run", arms=arms, extras=False, seeds=(4,)))
    assert list(draw_figures(run)) == ["ranking", "pareto", "final"]


def test_spectra_are_the_means_over_seeds_with_the_ranks_that_arms_keep(run, drawn):
    fresh, energy, full, shares = drawn["spectra"].axes
    assert (fresh.get_yscale(), full.get_yscale()) == ("log", "log")
    rows = run.spectra[(run.spectra["bank"] == "fresh") & (run.spectra["adapter"] == 2)]
    means = rows.groupby("index")[["value", "energy"]].mean()
    np.testing.assert_allclose(fresh.get_lines()[2].get_ydata(), means["value"])
    np.testing.assert_allclose(energy.get_lines()[2].get_ydata(), means["energy"])
    marked = [x.get_xdata()[0] for x in energy.get_lines() if len(x.get_xdata()) == 2]
    assert marked == list(Q)
    assert all(len(x.get_xdata()) == 192 for x in shares.get_lines())  # none of the full bank
    assert fresh.get_lines()[2].get_label() == "svhn"


def test_embedding_has_a_panel_for_each_row_and_a_colour_for_each_class(run, drawn):
    figure = drawn["embedding"]
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_visible()}
    assert len(panels) == len(ARMS) + len(ROWS)
    rows = run.embedding[run.embedding["arm"] == "peru_lora_q8"]
    for label, line in enumerate(panels["peru_lora_q8"].get_lines()):
        of_class = rows[rows["label"] == label]
        np.testing.assert_allclose(line.get_xdata(), of_class["x"])
        np.testing.assert_allclose(line.get_ydata(), of_class["y"])
    colors = [line.get_color() for line in panels["peru_lora_q8"].get_lines()]
    assert len(set(colors)) == len(CLASSES)
    texts = {t.get_text() for t in figure.findobj(Text)}
    assert {*CLASSES, "eurosat, 200 test samples"} <= texts


def test_more_classes_than_ten_have_no_legend_and_values_have_quarters(run, tmp_path):
    path = fabricate_reuse(tmp_path / "run", unlike=True, seeds=(0,))
    rows = pd.read_csv(path / "embedding.csv")
    more = rows.assign(label=rows["sample"] % 23, evaluated=0)
    scalar = rows.assign(label=rows["sample"] % 4, evaluated=1)
    pd.concat([more, scalar]).to_csv(path / "embedding.csv", index=False)
    two = RunFolder.read(path)
    figure = FIGURES["embedding"].of(two, RELATIVE)
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert "lowest quarter" in texts
    assert not set(CLASSES) & set(texts)
    assert sum(ax.get_visible() for ax in figure.axes) == 2 * (len(ARMS) + len(ROWS))
    assert embedding_figure(two, "ties", 5) is None


def test_the_same_run_gives_the_same_bytes(small):
    for name in ("pareto", "by_q_and_m", "spectra", "embedding"):
        first, second = (render(draw_figures_of(small, name), "svg") for _ in range(2))
        assert first == second


def draw_figures_of(run, name):
    return FIGURES[name].of(run, ACCURACY)


# Tables -------------------------------------------------------------------------------------


def test_the_table_has_sizes_then_tasks_then_the_average(run):
    (table,) = main_tables(run, ACCURACY)
    assert [c.title for c in table.columns] == [
        *("Parameters, M", "× backbone"),
        *TASKS,
        *("Average accuracy (%)", "n"),
    ]
    assert {*table.rows} == {*ARMS, *ROWS}
    assert {*table.rows[-len(ROWS) :]} == {*ROWS}
    i = table.rows.index("peru_lora_q8")
    size = ARMS["peru_lora_q8"][1]
    assert table.cell(i, 0) == (f"{size / 1e6:.2f}", "")
    assert table.cell(i, 1) == (f"{size / BACKBONE:.2f}×", "")
    assert table.mean[i, -2] == pytest.approx(by_seed(run, "peru_lora_q8").mean())
    assert table.is_best(table.rows.index("peru_fft_10"), len(table.columns) - 2)
    assert tables_by_task(run) == []
    text = table.markdown()
    assert "| Arm | Parameters, M | × backbone | mnist |" in text
    assert r"$\times$" in table.latex()
    assert table.csv().startswith("arm,reference,parameters,multiple,final mnist,")


def test_unlike_tasks_show_their_share_and_then_each_its_own(unlike):
    (table,) = main_tables(unlike, RELATIVE)
    assert table.columns[1].title == "× backbone"
    (own,) = tables_by_task(unlike)
    assert own.columns[1].title == "gtsrb (RMSE, lower is better)"


@pytest.mark.parametrize("which", ["run", "unlike"])
def test_terminal_tables_fit_80_columns(which, request, capsys, monkeypatch):
    one = request.getfixturevalue(which)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(one.path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    head = " ".join(lines[1:rule])
    assert "×" in head
    assert "Avg" in head or "Average" in head
    assert "mnist" in head
    title = "Share of single task in %" if which == "unlike" else "Accuracy in %"
    assert lines[0].startswith(title)
    assert any("backbone (5.53 M) once among them" in line for line in lines)


def test_the_table_of_sizes_is_sorted_and_names_the_front(run):
    table = sizes_table(run, ACCURACY)
    ranked = len(table.rows) - table.references
    assert list(table.mean[:ranked, 0]) == sorted(table.mean[:ranked, 0])
    assert set(table.rows[ranked:]) == set(ROWS)
    i = table.rows.index("single_full")
    shown = [table.cell(i, j)[0] for j in range(3)]
    assert shown == ["33.2", "6.00×", "27.6"]
    p = points_of(run, ACCURACY)["single_full"]
    assert table.cell(i, 3)[1] == f"[{100 * p.low:.1f}, {100 * p.high:.1f}]"
    (note,) = (n for n in table.notes if n.startswith("On the Pareto front: "))
    named = note.split(": ")[1].split(". ")[0].split(", ")
    assert set(named) == brute_force(points_of(run, ACCURACY), True)
    assert max(map(len, table.text(80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("millions", 5_526_346, "5.53"),
        ("millions", 113_400_000, "113"),
        ("millions", 4_100, "0.00410"),
        ("millions", 999_900, "1.00"),
        ("millions", 0, "0"),
        ("times", 1.0, "1.00×"),
        ("times", 9.996, "10.0×"),
        ("times", math.nan, "–"),
    ],
)
def test_sizes_are_short(form, value, text):
    assert Column("x", "x", "x", None, percent=False, form=form).number(value) == text


# Page, TensorBoard, comparison ---------------------------------------------------------------


def test_one_seed_has_no_interval(tmp_path):
    one = RunFolder.read(fabricate_reuse(tmp_path / "run", arms=FEW, seeds=(5,), extras=False))
    told = answers_of(one)[0].sentence
    assert "[" not in told
    assert "cannot be told" not in told
    assert "training noise is unknown" in answers_of(one)[-1].sentence
    assert "One seed: no interval." in sizes_table(one, ACCURACY).notes
    assert math.isnan(points_of(one, ACCURACY)["regmean"].low)
    assert "pareto" in draw_figures(one)


def test_the_page_has_a_section_on_what_each_way_costs(small):
    page = render_html(small)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert {a[1:] for a in checker.addresses if a.startswith("#")} <= checker.ids
    assert "budgets" in checker.ids
    section = page.split('<details id="budgets">')[1].split("</details>")[0]
    assert "What each way needs" in section
    assert f">{FIGURES['by_q_and_m'].title}</p>" in section
    figures = page.split('<section id="figures"')[1].split("</section>")[0]
    assert f">{FIGURES['pareto'].title}</p>" in figures
    folded = page.split('<details id="more">')[1].split("</details>")[0]
    assert ">Singular values of the adapters</p>" in folded
    assert ">Features of one task under each arm</p>" in folded
    assert checker.tables[0][0][1:4] == ["Parameters, M", "× backbone", "mnist"]
    assert "for these tasks" in unescape(page.split('<details id="differences">')[1])
    titles = [row[0] for row in facts(small)]
    assert "Samples" in titles
    assert "Tasks in order" not in titles


def test_tensorboard_has_parameters_and_images(small):
    write_tensorboard(small)
    events = EventAccumulator(str(small.path / "tensorboard" / "peru_lora_q8"))
    events.Reload()
    size = ARMS["peru_lora_q8"][1]
    for tag in ("accounts/parameters", "result/parameters"):
        (event,) = events.Scalars(tag)
        assert event.value == pytest.approx(size)
    (event,) = events.Scalars("result/average")
    assert event.value == pytest.approx(by_seed(small, "peru_lora_q8").mean())
    assert events.Tags()["images"] == ["embedding/eurosat"]
    events = EventAccumulator(str(small.path / "tensorboard" / "overview"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"pareto", "by_q_and_m", "spectra"}
    (view,) = views_of(small)
    assert view.results["result/parameters"]["base"] == BACKBONE


def test_compare_has_a_column_of_parameters(run, unlike, tmp_path):
    more = RunFolder.read(fabricate_reuse(tmp_path / "more", seeds=(3,), extras=False))
    together = compare_runs([run, more], reference="single")
    assert together.metric == ACCURACY
    (condition,) = together.conditions
    assert condition.parameters == parameters_of(run)
    table = comparison_table(together)
    j = [c.title for c in table.columns].index("Parameters, M")
    i = table.rows.index("post_pruning_10")
    assert table.cell(i, j)[0] == "12.2"
    assert max(map(len, table.text(80).splitlines())) <= 80
    frame = together.frame().set_index("arm")
    assert frame.loc["ties", "parameters"] == BACKBONE
    assert frame.loc["ties", "seeds"] == 4
    apart = compare_runs([run, unlike], "relative")
    titles = [c.title for c in comparison_table(apart).columns]
    assert {"A Parameters, M", "B Parameters, M"} <= set(titles)
    render(comparison_figure(apart), "png")


def test_files_of_other_experiences_are_refused(run, tmp_path):
    for name, column in (("spectra.csv", "adapter"), ("embedding.csv", "evaluated")):
        path = fabricate_reuse(tmp_path / name, seeds=(0,))
        frame = pd.read_csv(path / name)
        frame.loc[0, column] = len(TASKS)
        frame.to_csv(path / name, index=False)
        with pytest.raises(UserError, match=f"{name} is damaged: it has rows of other"):
            RunFolder.read(path)
