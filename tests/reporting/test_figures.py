import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_run, many_arms
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from other_runs import RMSE, as_errors, as_stages
from PIL import Image

from cl_lora.evaluation.metrics import ACCURACY, Metric
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.reporting import figures
from cl_lora.reporting.figures import (
    FIGURES,
    draw_figures,
    mean_matrix,
    render,
    robustness_curves,
    write_figures,
)
from cl_lora.reporting.figures.axes import axis_title, legend_columns
from cl_lora.reporting.figures.labels import label_column, label_points
from cl_lora.reporting.figures.registry import figure, in_order
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

SIX = (*DOMAINS, "clipart", "quickdraw")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """36 rows: 31 arms, a long name and long settings among them, and the references."""
    arms = {**many_arms(), "an_arm_with_quite_a_long_name_b9": ARMS["ta_w1"]}
    for value in (1, 3, 5):
        settings = {"method": "dare_ties", "space": "factors", "density": 0.2}
        arms[f"peft_dare_ties_w{value}"] = {**settings, "coefficients": value}
        rule = {"name": "adaptive", "b_max": value, "granularity": "module"}
        arms[f"peft_dare_ties_b{value}"] = {**settings, "coefficients": rule}
    path = tmp_path_factory.mktemp("many") / "run"
    fabricate_run(path, arms=arms, seeds=(0, 1, 2))
    kinds = ("statistics", "buffer", "data")
    accounts = [
        (0, row, len(DOMAINS) - 1, *quantity)
        for k, row in enumerate((*arms, *REFERENCES))
        for quantity in (
            *(("passes", 1.0), ("bytes_to_serve", 1e5), ("bytes_of_adapters", 1e5 + 5e4 * (k % 7))),
            *((f"bytes_of_{kind}", 3e5 * (k % 4 == i + 1)) for i, kind in enumerate(kinds)),
        )
    ]
    columns = ["seed", "arm", "stage", "quantity", "value"]
    pd.DataFrame(accounts, columns=columns).to_csv(path / "accounts.csv", index=False)
    return RunFolder.read(path)


@pytest.fixture(scope="module")
def drawn(many):
    return draw_figures(many)


def test_every_figure_is_drawn_as_png_and_svg_with_the_same_bytes_again(run_path):
    run = RunFolder.read(run_path)
    paths = write_figures(run)
    # Three arms, none that routes or tells costs, and no two that differ in the coefficient's scale
    # alone.
    everywhere = [f for f in in_order() if f.few_shot != "only" and not f.whole]
    names = [f.name for f in everywhere if f.name not in ("robustness", "routing", "costs")]
    names = ["ranking", *names]
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
    first = {p: p.read_bytes() for p in paths}
    for path, data in first.items():
        if path.suffix == ".png":
            assert min(Image.open(io.BytesIO(data)).size) > 300
        else:
            assert ET.fromstring(data).tag.endswith("svg")
            assert b"<dc:date>" not in data
    write_figures(run)
    assert {p: p.read_bytes() for p in paths} == first


def test_the_style_of_others_is_left_alone(run_path):
    before = dict(mpl.rcParams)
    draw_figures(RunFolder.read(run_path))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "name",
    [n for n, f in FIGURES.items() if f.few_shot != "only" and not f.whole and n != "routing"],
)
def test_no_two_texts_overlap_with_30_rows(drawn, name, monkeypatch):
    assert texts_apart(drawn[name], monkeypatch) > 20


def luminance(color):
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    channels = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(channels, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
    """Return the contrast of two colours, from 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def texts_apart(figure, monkeypatch):
    """Assert that no text overlaps another or is cut off; return how many there are."""
    boxes = {}
    draw = Text.draw

    def record(self, renderer):
        if self.get_visible() and self.get_text():
            # Text's own extent: an annotation's would take in the line to its point.
            box = Text.get_window_extent(self)
            boxes[self] = (box.x0 + 1, box.y0 + 1, box.x1 - 1, box.y1 - 1)
        draw(self, renderer)

    monkeypatch.setattr(Text, "draw", record)
    figure.savefig(io.BytesIO(), format="png", dpi=100)
    found = [(text.get_text(), *box) for text, box in boxes.items()]
    for i, (a, x0, y0, x1, y1) in enumerate(found):
        assert x0 > -2, a
        assert y0 > -2, a
        assert x1 < 100 * figure.get_figwidth() + 2, a
        assert y1 < 100 * figure.get_figheight() + 2, a
        for b, u0, v0, u1, v1 in found[i + 1 :]:
            apart = x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
            assert apart, f"{a!r} overlaps {b!r}"
    return len(found)


def test_arms_in_a_crowd_are_all_named_apart(monkeypatch):
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    ax = figure.add_subplot()
    points = {f"an_adaptive_arm_{i}": (70 + i / 100, 12 + i / 50) for i in range(20)}
    points["alone"] = (20.0, 40.0)
    for point in points.values():
        ax.plot(*point, "o")
    label_points(figure, ax, points, list(points.values()), set())
    texts_apart(figure, monkeypatch)
    assert set(points) <= {t.get_text() for t in ax.texts}
    beside, *crowd = sorted(ax.texts, key=lambda t: t.get_text() != "alone")
    assert beside.arrowprops is None
    # In the order of their points, so that lines do not cross.
    heights = [t.xyann[1] for t in sorted(crowd, key=lambda t: t.xy[1]) if t.arrowprops]
    assert heights == sorted(heights)


def test_names_of_points_that_lie_in_a_heap_stand_in_a_column(monkeypatch):
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xscale("log")
    points = {f"a_merge_with_a_name_{i}": (5.0, 70 + i / 50) for i in range(12)}
    for point in (*points.values(), (5.0, 40.0), (40.0, 90.0)):
        ax.plot(*point, "o")
    label_column(figure, ax, {**points, "alone": (5.0, 40.0)}, {"alone"})
    label_points(figure, ax, {"far": (40.0, 90.0)}, [(5.0, 70.0), (40.0, 90.0)], set())
    assert texts_apart(figure, monkeypatch) > 14
    named = {t.get_text(): t for t in ax.texts}
    heights = [named[name].xyann[1] for name in points]
    assert heights == sorted(heights)
    assert len({named[name].xyann[0] for name in points}) == 1
    assert named["alone"].get_color() == figures.GREY


def test_every_arm_stands_in_the_final_scores(many, drawn):
    texts = {t.get_text() for t in drawn["final"].findobj(Text)}
    assert {*many.arms, *many.references} <= texts


def test_the_bars_are_the_averages(many):
    figure = figures.final_scores(many, ACCURACY)
    ax = figure.axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    widths = dict(zip(names, (p.get_width() for p in ax.patches), strict=True))
    for arm in ("ties_w1", "joint"):
        expected = np.mean([many.scores.matrix(s, arm).values[-1].mean() for s in many.seeds])
        assert widths[arm] == pytest.approx(100 * expected)
    assert sorted(widths[a] for a in many.arms)[::-1] == [
        widths[a] for a in names[: len(many.arms)]
    ]


def test_the_mean_matrix_by_hand(many):
    expected = np.mean([many.scores.matrix(s, "ties_w1").values for s in (0, 1, 2)], axis=0)
    np.testing.assert_array_equal(mean_matrix(many, "ties_w1", ACCURACY), expected)


def test_robustness_joins_arms_that_differ_in_the_scale_alone(many):
    curves = robustness_curves(many, ACCURACY)
    assert list(dict.fromkeys(curves["axis"])) == ["W", "b_max"]
    ties = curves[(curves["axis"] == "W") & (curves["family"] == "ties, delta, fixed")]
    assert list(ties["x"]) == [1, 3, 5]
    assert list(ties["arm"]) == ["ties_w1", "ties_w3", "ties_w5"]
    adaptive = curves[curves["axis"] == "b_max"]
    assert set(adaptive["family"]) == {
        *(f"{m}, delta, adaptive, spc 5" for m in ("task_arithmetic", "ties", "linear")),
        "dare_ties, delta, adaptive, granularity adapter, spc 5",
        "dare_ties, factors, adaptive, granularity module, spc 5",
    }


def test_the_robustness_legend_says_best_worst_and_area(many, drawn):
    curves = robustness_curves(many, ACCURACY)
    titles = {t.get_text() for t in drawn["robustness"].findobj(Text)}
    assert {"fixed coefficients", "adaptive coefficients"} <= titles
    y = 100 * curves[curves["family"] == "ties, delta, fixed"]["mean"].to_numpy()
    # By hand, at W = 1, 3, 5: two trapezoids of width 2, over a width of 4.
    area = ((y[0] + y[1]) + (y[1] + y[2])) / 4
    at = dict(zip(y, (1, 3, 5), strict=True))
    expected = (
        f"ties, delta, fixed\nbest {max(y):.1f} at {at[max(y)]}, "
        f"worst {min(y):.1f} at {at[min(y)]}, area {area:.1f}"
    )
    assert expected in {t.get_text() for t in drawn["robustness"].findobj(Text)}


def test_figures_without_data_are_left_out(tmp_path):
    arms = {"ta_w1": ARMS["ta_w1"]}
    path = fabricate_run(tmp_path / "run", arms=arms, references=(), domains=("photo",))
    run = RunFolder.read(path)
    # One experience: nothing to forget. One arm, fixed: no robustness, nothing learned.
    assert set(draw_figures(run)) == {"ranking", "final", "over_time", "matrices"}


def test_many_domains(tmp_path):
    domains = [f"a_domain_with_a_long_name_{i}" for i in range(12)]
    run = RunFolder.read(fabricate_run(tmp_path / "run", domains=domains, seeds=(0,)))
    for picture in draw_figures(run, "f1").values():
        assert render(picture, "png")


def test_an_error_puts_the_smallest_first_and_says_so_on_its_axis(tmp_path):
    run = RunFolder.read(as_errors(fabricate_run(tmp_path / "run")))
    final = figures.final_scores(run, RMSE)
    widths = [p.get_width() for p in final.axes[0].patches][: len(run.arms)]
    assert widths == sorted(widths)
    matrix = run.scores.matrix
    means = [np.mean([matrix(s, a, "rmse").values[-1].mean() for s in run.seeds]) for a in run.arms]
    assert widths == pytest.approx(sorted(means))  # in px, not in percent
    assert final.axes[0].get_xlabel() == "RMSE after the last domain (px, lower is better)"
    against = figures.forgetting_against_score(run, RMSE)
    assert against is not None
    assert against.axes[0].get_ylabel() == "forgetting, px (lower is better)"
    # What the run scores first leads, without being told its name.
    assert draw_figures(run)["matrices"].axes[-1].get_ylabel() == "RMSE (px, lower is better)"


def test_all_score_matrices_share_the_scale_of_their_colour_bar(tmp_path):
    run = RunFolder.read(as_errors(fabricate_run(tmp_path / "run")))
    *panels, bar = draw_figures(run)["matrices"].axes
    every = [mean_matrix(run, arm, RMSE) for arm in run.scores.arms]
    limits = (np.nanmin(every), np.nanmax(every))
    images = [ax.images[0] for ax in panels if ax.images]
    assert len(images) == len(every)
    assert {image.get_clim() for image in images} == {limits}
    assert bar.get_ylim() == pytest.approx(limits)


def test_numbers_in_a_matrix_are_told_from_their_cells_and_bright_is_good(tmp_path):
    run = RunFolder.read(as_errors(fabricate_run(tmp_path / "run")))
    ax = figures.matrix_figure(run, "ties_w1", RMSE).axes[0]
    matrix = mean_matrix(run, "ties_w1", RMSE)
    (image,) = ax.images
    best, worst = (image.to_rgba(np.array([[v]]))[0, 0, :3].mean() for v in (matrix.min(), 1e3))
    assert best > 0.5 > worst
    for text in ax.texts:
        j, s = (round(v) for v in text.get_position())
        cell = to_hex(image.to_rgba(np.array([[matrix[s, j]]]))[0, 0])
        assert contrast(str(text.get_color()), cell) > 4, (s, j)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        (ACCURACY, "Accuracy (%)"),
        (Metric("r2", "R squared"), "R squared"),
        (Metric("nme", "NME", higher_is_better=False), "NME (lower is better)"),
    ],
)
def test_the_title_of_an_axis(metric, title):
    assert axis_title(metric) == title


def test_scores_below_zero_are_not_cut_off(tmp_path):
    run = RunFolder.read(as_errors(fabricate_run(tmp_path / "run"), Metric("r2", "R²"), -0.5))
    ax = figures.final_scores(run, run.stream.metrics["r2"]).axes[0]
    lowest = min(p.get_width() for p in ax.patches)
    assert lowest < 0
    assert ax.get_xlim()[0] < lowest


def test_a_metric_that_the_run_has_not_is_refused(run_path):
    with pytest.raises(UserError, match="accuracy"):
        draw_figures(RunFolder.read(run_path), "acuracy")


@pytest.fixture(
    scope="module", params=[("all",), ("pairs", "triples"), ("K=1", "K=2", "K=5", "K=10"), "abcdef"]
)
def unordered(request, tmp_path_factory):
    """Runs of one to six stages that do not follow one another, on six experiences."""
    path = fabricate_run(tmp_path_factory.mktemp("unordered") / "run", domains=SIX)
    return RunFolder.read(as_stages(path, dict.fromkeys(request.param)))


def test_without_order_no_figure_shows_time(unordered):
    assert set(draw_figures(unordered)) == {"ranking", "final", "matrices"}


def test_without_order_final_scores_are_those_of_the_last_stage(unordered):
    run = unordered
    ax = figures.final_scores(run, ACCURACY).axes[0]
    last = run.stream.trained_stages[-1]
    assert ax.get_xlabel() == f"Accuracy at stage {last.name} (%)"
    rows = [
        s for s in run.scores if (s.arm, s.stage, s.metric) == ("ties_w1", last.index, "accuracy")
    ]
    names = [t.get_text() for t in ax.get_yticklabels()]
    widths = dict(zip(names, (p.get_width() for p in ax.patches), strict=True))
    assert widths["ties_w1"] == pytest.approx(100 * np.mean([s.value for s in rows]))


def test_without_order_a_matrix_has_a_row_for_each_stage(unordered, monkeypatch):
    run = unordered
    figure = draw_figures(run)["matrices"]
    stages = [s.name for s in run.stream.trained_stages]
    first = figure.axes[0]
    assert first.images[0].get_array().shape == (len(stages), 6)
    assert [t.get_text() for t in first.get_yticklabels()] == stages
    assert figure.get_supylabel() == "stage"
    assert texts_apart(figure, monkeypatch) > 20


def test_an_experience_without_the_metric_is_left_out(tmp_path):
    path = fabricate_run(tmp_path / "run", seeds=(0,))
    stream = json.loads((path / "stream.json").read_text())
    other = {**stream["tasks"][0], "name": "position", "metrics": [RMSE.record()]}
    stream["tasks"].append(other)
    stream["experiences"][1]["task"] = "position"
    (path / "stream.json").write_text(json.dumps(stream))
    scores = ScoreTable.read(path / "scores.csv")
    rows = [
        replace(s, metric="rmse", higher_is_better=False) if s.evaluated == 1 else s
        for s in scores
        if s.evaluated != 1 or s.metric == "accuracy"
    ]
    ScoreTable(rows).write(path / "scores.csv")
    run = RunFolder.read(path)
    for metric, names in (("accuracy", ["photo", "cartoon", "sketch"]), ("rmse", ["art_painting"])):
        drawn = draw_figures(run, metric)
        matrix = drawn["matrices"].axes[0].images[0].get_array()
        assert matrix.shape == (4, len(names))
        assert not np.isnan(np.asarray(matrix, dtype=float)).any()
        legend = [t.get_text() for t in drawn["final"].legends[0].get_texts()]
        assert [t for t in legend if t in run.experiences] == names


def test_the_last_adapter_has_a_whisker_as_it_has_no_line(many):
    figure = figures.coefficients_over_time(many, ACCURACY)
    assert figure is not None
    (bars,) = figure.axes[0].containers
    frame = many.coefficients
    last = frame[(frame["arm"] == "task_arithmetic_adaptive_b1") & (frame["adapter"] == 3)]["value"]
    (segment,) = bars[2][0].get_segments()
    low, high = last.mean() - last.std(), last.mean() + last.std()
    np.testing.assert_allclose(segment[:, 1], [low, high])


def test_coefficients_with_groups_are_averaged(run_path):
    frame = pd.read_csv(run_path / "coefficients.csv")
    low, high = frame.copy(), frame.copy()
    low["group"], high["group"] = "blocks.0", "blocks.1"
    low["value"] -= 0.1
    high["value"] += 0.1
    pd.concat([low, high]).to_csv(run_path / "coefficients.csv", index=False)
    figure = figures.coefficients_over_time(RunFolder.read(run_path), ACCURACY)
    assert figure is not None
    line = next(x for x in figure.axes[0].get_lines() if len(x.get_xdata()) == 4)
    arm = frame[(frame["arm"] == "ta_adaptive_b3") & (frame["adapter"] == 0)]
    np.testing.assert_allclose(line.get_ydata(), arm.groupby("stage")["value"].mean())


def test_coefficients_are_learned_by_any_solver(run_path):
    """Gauss-Newton has no batches, and its coefficients are drawn like those of Adam."""
    run = RunFolder.read(run_path)
    for variant in run.config["variants"].values():
        variant["buffer_batch_size"] = None
    figure = figures.coefficients_over_time(run, ACCURACY)
    assert figure is not None
    assert [ax.get_title() for ax in figure.axes] == ["ta_adaptive_b3"]


def test_a_legend_is_as_wide_as_its_figure():
    assert legend_columns(Figure(figsize=(3.1, 2)), ["photo", "art_painting", "sketch"]) == 1
    assert legend_columns(Figure(figsize=(6.1, 2)), ["base", "last"]) == 2
    assert legend_columns(Figure(figsize=(8.3, 2)), list("abcdefgh"), 5) == 5


@pytest.fixture
def registry(monkeypatch):
    """The registered figures, which are these again after the test."""
    monkeypatch.setattr("cl_lora.reporting.figures.registry.FIGURES", dict(FIGURES))


def test_a_figure_is_one_function(run_path, registry):
    @figure("seeds", "Scores by seed", "A marker per seed.", position=15)
    def seeds(run, metric):
        fig = Figure(figsize=(3, 2))
        finals = [run.scores.matrix(s, "ties_w1", metric.name).values[-1] for s in run.seeds]
        fig.add_subplot().plot(run.seeds, [metric.scale * r.mean() for r in finals], "o")
        return fig

    @figure("nothing", "Nothing", "Never there.")
    def nothing(run, metric):
        return None

    paths = write_figures(RunFolder.read(run_path))
    names = list(dict.fromkeys(p.stem for p in paths))
    assert names[:4] == ["ranking", "final", "seeds", "over_time"]
    assert "nothing" not in names
    assert (run_path / "figures" / "seeds.svg").is_file()


def test_every_figure_has_the_style_wherever_it_is_drawn(run_path):
    """A comparison draws a single one, not all."""
    run = RunFolder.read(run_path)
    (ax, *_) = FIGURES["final"].of(run, ACCURACY).axes
    assert not ax.spines["top"].get_visible()
    assert {t.get_fontsize() for t in ax.get_xticklabels()} == {9}


def test_a_taken_name_is_refused_but_to_the_same_function_again(registry):
    with pytest.raises(UserError, match=r"'final' is registered already, by .*final_scores"):
        figure("final", "Title", "Caption.")(figures.robustness_to_scale)
    figure("final", "Another title", "Caption.")(figures.final_scores)


def test_a_name_that_names_no_file_is_refused(registry):
    with pytest.raises(UserError, match="names the figure's files"):
        figure("../x", "Title", "Caption.")


def test_a_section_that_is_not_there_is_refused(registry):
    with pytest.raises(UserError, match="Unknown section of the report 'budget': did you mean"):
        figure("mine", "Title", "Caption.", section="budget")


def test_every_figure_says_what_it_shows():
    for info in FIGURES.values():
        assert info.caption.endswith("."), info.name
        assert info.title
        assert info.draw.__doc__
