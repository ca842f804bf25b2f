"""What a person sees of a few-shot run: tables, figures, the page, TensorBoard, the comparison."""

import io
import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from fabricate import FEW_SHOT_ARMS, fabricate_few_shot, fabricate_hits, fabricate_run
from matplotlib.text import Text
from PIL import Image
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_figures import texts_apart
from test_html import Checker

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting.compare import RENDERERS, compare_runs, comparison_figure, comparison_table
from cl_lora.reporting.figures import draw_figures, render, weights_figure
from cl_lora.reporting.figures.shots_axis import places
from cl_lora.reporting.html import render_html
from cl_lora.reporting.tables import Column, main_tables, shots_table, tables_by_experience
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord
from cl_lora.support.errors import UserError

SIX = ("dtd", "eurosat", "flowers", "mnist", "svhn", "gtsrb")
MERGE = {"method": "task_arithmetic"}
SIXTEEN = {
    **FEW_SHOT_ARMS,
    "lora_from_uniform": {**MERGE, "coefficients": "uniform", "adapt": "lora"},
    "lora_from_best": {**MERGE, "coefficients": "best", "adapt": "lora"},
    **{
        f"learned_{rule}": {**MERGE, "coefficients": {"name": rule}, "adapt": "coefficients"}
        for rule in ("layer", "adapter", "unbounded", "ties", "adaptive")
    },
    "means_base": {"adapt": "none"},
    "means_uniform": {**MERGE, "coefficients": "uniform", "adapt": "none"},
    "lora_truncated": {**MERGE, "coefficients": "uniform", "adapt": "lora"},
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One data set held out, three seeds, two draws."""
    return RunFolder.read(fabricate_few_shot(tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixteen arms, six data sets held out in turn, seven K."""
    path = tmp_path_factory.mktemp("many") / "run"
    shots = (0, 1, 2, 5, 10, 20, "all")
    return RunFolder.read(
        fabricate_few_shot(path, arms=SIXTEEN, names=SIX, held=range(6), shots=shots, seeds=(0, 1))
    )


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A stream of few-shot tasks, with reference rows in time."""
    path = tmp_path_factory.mktemp("stream") / "run"
    return RunFolder.read(fabricate_few_shot(path, in_time=True, references=("base", "joint")))


def frame(run, in_time=False):
    """Return the accuracies from the files alone, with K of their stages; or those in time."""
    stages = {s["index"]: s for s in json.loads((run.path / "stream.json").read_text())["stages"]}
    scores = pd.read_csv(run.path / "scores.csv").query("metric == 'accuracy'")
    scores["K"] = [stages[i]["name"] for i in scores["stage"]]
    scores["x"] = [stages[i]["x"] for i in scores["stage"]]
    return scores[scores["x"].isna()] if in_time else scores.dropna(subset="x")


def test_the_table_by_an_independent_way(one):
    """From the files with pandas: draws first, then data sets, then seeds."""
    (table,) = main_tables(one, ACCURACY)
    by_seed = frame(one).groupby(["arm", "K", "evaluated", "seed"])["value"].mean()
    by_seed = by_seed.groupby(["arm", "K", "seed"]).mean()
    mean, deviation = (by_seed.groupby(["arm", "K"]).agg(f).unstack() for f in ("mean", "std"))
    assert [c.key for c in table.columns[:4]] == ["K=1", "K=5", "K=all", "average"]
    for j, k in enumerate(("K=1", "K=5", "K=all")):
        np.testing.assert_allclose(table.mean[:, j], mean.loc[list(table.rows), k])
        np.testing.assert_allclose(table.spread[:, j], deviation.loc[list(table.rows), k])
    over = by_seed.groupby(["arm", "seed"]).mean().groupby("arm")
    np.testing.assert_allclose(table.mean[:, 3], over.mean()[list(table.rows)])
    np.testing.assert_allclose(table.spread[:, 3], over.std()[list(table.rows)])
    lora = table.rows.index("lora")
    assert table.is_best(lora, 2)
    assert not table.is_best(lora, 0)
    assert [table.cell(lora, j)[0] for j in (4, 7)] == ["74k", "3"]
    assert table.cell(table.rows.index("full"), 4)[0] == "5.5M"
    seconds = pd.read_csv(one.path / "accounts.csv").query("quantity == 'seconds'")
    stages = {s.index: s.name for s in one.stream.stages}
    by_k = seconds.assign(K=seconds["stage"].map(stages)).groupby(["arm", "K"])["value"].mean()
    np.testing.assert_allclose(table.mean[:, 5], by_k.groupby("arm").mean()[list(table.rows)])


def test_the_table_of_sixteen_arms_and_seven_k_fits_80_columns(many):
    (table,) = main_tables(many, ACCURACY)
    text = table.text(80)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    head = " ".join(lines[2:rule])
    for heading in ("Arm", "K=0", "K=1", "K=2", "K=5", "K=10", "K=20", "K=all", "Average", "n"):
        assert heading in head
    for arm in SIXTEEN:
        assert re.search(rf"^{arm} ", text, re.MULTILINE), arm
    assert "Average: over every K but 0." in text
    assert "|Θ|" in text.partition("Not shown at this width: ")[2]
    wide = table.text(140)
    assert "Not shown" not in wide
    assert "peak MB" in wide
    for line in (x for x in wide.splitlines() if x.startswith("means_base")):
        assert line.split()[-4:] == ["–", "–", "–", "2"]


def test_every_data_set_has_a_table_of_its_own(many, one):
    tables = tables_by_experience(many, ACCURACY)
    assert [t.title.split(" from ")[0] for t in tables] == [f"Accuracy in % on {n}" for n in SIX]
    rows = frame(many).query("arm == 'lora' and K == 'K=5' and evaluated == 3")
    table = tables[3]
    j = [c.key for c in table.columns].index("K=5")
    expected = rows.groupby("seed")["value"].mean().mean()
    assert table.mean[table.rows.index("lora"), j] == pytest.approx(expected)
    # Their mean is what the main table shows.
    (main,) = main_tables(many, ACCURACY)
    means = [[t.mean[t.rows.index(arm), :7] for arm in main.rows] for t in tables]
    np.testing.assert_allclose(np.mean(means, axis=0), main.mean[:, :7])
    assert tables_by_experience(one, ACCURACY) == []


def test_a_stream_has_a_table_by_k_and_one_in_time(stream):
    shots, time = main_tables(stream, ACCURACY)
    assert {*shots.rows} == {*FEW_SHOT_ARMS}
    assert (time.rows[0], {*time.rows}) == ("uniform", {"uniform", "base", "joint"})
    assert time.references == 2
    assert {"forgetting", "backward_transfer"} <= {c.key for c in time.columns}


@pytest.mark.parametrize("render", ["markdown", "latex", "csv"])
def test_renderings(one, render):
    text = getattr(shots_table(one, ACCURACY), render)()
    assert "lora_from_learned" in text.replace("\\", "")
    if render == "latex":
        assert r"$|$$\Theta$$|$" in text
        assert text.isascii()
    if render == "csv":
        found = pd.read_csv(io.StringIO(text)).set_index("arm")
        assert found.loc["lora", "trainable_parameters"] == 73_728


def test_one_seed_has_no_deviation_and_says_so(tmp_path):
    path = fabricate_few_shot(tmp_path / "run", seeds=(4,), draws=1)
    run = RunFolder.read(path)
    (table,) = main_tables(run, ACCURACY)
    assert table.title.endswith("from K samples per class, seed 4")
    assert "±" not in table.text(80)
    page = render_html(run, {})
    assert "no intervals: training noise is unknown with one seed." in page
    assert "of the average at K=1 of one seed, without an interval." in unescape(page)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.02, "<0.1"),
        (0.25, "0.2"),
        (9.96, "10"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (1e9, "1.0G"),
    ],
)
def test_amounts(value, shown):
    assert Column("k", "t", "s", form="amount").number(value) == shown


def test_places_on_the_axis_of_k():
    def at(*xs):
        return [StageRecord(0, name, (), (), (), x) for name, x in xs]

    assert places(at(("K=0", 0.0), ("K=1", 1.0), ("K=4", 4.0), ("K=all", 32.0))) == [-1, 0, 2, 5]
    # A pool that is no larger than the largest K has a place of its own all the same.
    assert places(at(("K=4", 4.0), ("K=all", 4.5))) == [2, 3]
    assert places(at(("K=all", 8.0))) == [3]
    assert places(at(("K=0", 0.0))) == [-1]


@pytest.fixture(scope="module")
def drawn(one, many, stream):
    return {"one": draw_figures(one), "many": draw_figures(many), "stream": draw_figures(stream)}


def test_which_figures_a_run_has(drawn):
    assert list(drawn["one"]) == [
        "ranking",
        "shots",
        "gain",
        "coefficients_by_shots",
        "weights",
    ]
    every = ["ranking", "shots", "shots_by_data", "gain", "coefficients_by_shots", "weights"]
    assert list(drawn["many"]) == every
    found = set(drawn["stream"])
    assert found >= {"shots", "shots_by_data", "gain", "transfer", "weights"}
    assert found >= {"final", "over_time", "forgetting", "matrices"}


@pytest.mark.parametrize(
    "name", ["shots", "shots_by_data", "gain", "coefficients_by_shots", "weights"]
)
def test_no_two_texts_overlap_with_sixteen_arms(drawn, name, monkeypatch):
    assert texts_apart(drawn["many"][name], monkeypatch) > 20


def test_no_two_texts_overlap_as_the_stream_goes_on(drawn, monkeypatch):
    assert texts_apart(drawn["stream"]["transfer"], monkeypatch) > 12


def test_the_lines_are_the_means_of_the_table(one, drawn):
    figure = drawn["one"]["shots"]
    (table,) = main_tables(one, ACCURACY)
    lines = {line.get_label(): line for ax in figure.axes for line in ax.get_lines()}
    for i, arm in enumerate(table.rows):
        np.testing.assert_allclose(lines[arm].get_ydata(), 100 * table.mean[i, :3])
        np.testing.assert_allclose(lines[arm].get_xdata(), np.log2([1, 5, 43]))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "5", "all"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "From the bare backbone",
        "Composition",
        "Trained on from a composition",
    ]


def test_the_gain_is_paired_within_seeds(many, drawn):
    ax = drawn["many"]["gain"].axes[0]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert "classifier" not in names
    assert not {"means_base", "means_uniform"} & set(names)  # nothing of them is trained
    rows = frame(many).query("K == 'K=1'").groupby(["arm", "evaluated", "seed"])["value"].mean()
    gain = rows["uniform"] - rows["classifier"]
    bar = ax.patches[names.index("uniform")]
    assert bar.get_width() == pytest.approx(100 * gain.mean())
    by_seed = gain.groupby("seed").mean()
    (segment,) = [
        c[2][0].get_segments()[0]
        for c in ax.containers
        if hasattr(c, "has_xerr") and c[2][0].get_segments()[0][0, 1] == names.index("uniform")
    ]
    assert segment[1, 0] - segment[0, 0] == pytest.approx(2 * 100 * by_seed.std())


def test_weights_and_cka_by_hand(one, drawn):
    figure = drawn["one"]["weights"]
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(images) == 6
    stages = {s.index for s in one.stream.stages if s.name == "K=5"}  # the middle one
    rows = one.coefficients
    rows = rows[(rows["arm"] == "learned") & rows["stage"].isin(stages)]
    similar = one.similarity
    weights = np.array(
        [
            [
                rows[(rows["group"] == f"blocks.{x}.attn.qkv.q") & (rows["adapter"] == i)][
                    "value"
                ].mean()
                for i in (0, 1, 2)
            ]
            for x in range(4)
        ]
    )
    np.testing.assert_allclose(images[0], weights)
    cka = np.array(
        [
            [
                similar[(similar["group"] == f"blocks.{x}.attn.qkv.q") & (similar["adapter"] == i)][
                    "value"
                ].mean()
                for i in (0, 1, 2)
            ]
            for x in range(4)
        ]
    )
    np.testing.assert_allclose(images[3], cka)
    rho = stats.spearmanr(weights.ravel(), cka.ravel()).statistic
    titles = {t.get_text() for t in figure.findobj(Text)}
    assert f"q CKA\nρ = {rho:.2f}".replace("-", "−") in titles
    assert any(t.startswith("art_painting: weights of learned at K=5, ρ = ") for t in titles)


def test_weights_without_cka_stand_alone_and_uniform_ones_are_not_drawn(tmp_path):
    run = RunFolder.read(fabricate_few_shot(tmp_path / "run", similarity=False))
    figure = draw_figures(run)["weights"]
    assert len([ax for ax in figure.axes if ax.images]) == 3
    assert weights_figure(run, "uniform", [3]) is None
    assert "weights" not in draw_figures(
        RunFolder.read(
            fabricate_few_shot(tmp_path / "two", arms={"uniform": FEW_SHOT_ARMS["uniform"]})
        )
    )


def test_learned_coefficients_against_k_by_hand(one, drawn):
    figure = drawn["one"]["coefficients_by_shots"]
    # What is uniform is not learned.
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["learned", "lora_from_learned"]
    names = {s.index: s.name for s in one.stream.stages}
    rows = one.coefficients.assign(K=one.coefficients["stage"].map(names))
    rows = rows[(rows["arm"] == "learned") & (rows["adapter"] == 1)]
    by_draw = rows.groupby(["K", "seed", "stage"])["value"].mean()
    means = by_draw.groupby(["K", "seed"]).mean().groupby("K").mean()
    _, _, line, *_ = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), means[["K=1", "K=5", "K=all"]])
    np.testing.assert_allclose(line.get_xdata(), np.log2([1, 5, 43]))


def test_transfer_has_a_panel_per_k_and_a_point_per_task(stream, drawn):
    figure = drawn["stream"]["transfer"]
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == ["K=1", "K=5", "K=all"]
    rows = frame(stream).query("K == 'K=5' and arm == 'learned'")
    expected = rows.groupby(["evaluated", "seed"])["value"].mean().groupby("evaluated").mean()
    k = list(FEW_SHOT_ARMS).index("learned")
    np.testing.assert_allclose(panels[1].get_lines()[k].get_ydata(), 100 * expected)


def test_the_same_run_gives_the_same_figures(one, drawn):
    first, second = (
        {name: render(figure, "svg") for name, figure in figures.items()}
        for figures in (drawn["one"], draw_figures(one))
    )
    assert first == second


@pytest.fixture(scope="module")
def page(one, drawn):
    return render_html(one, drawn["one"])


def parsed(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert {a[1:] for a in checker.addresses if a.startswith("#")} <= checker.ids
    return checker


def test_the_answers_name_the_best_at_every_k_and_its_gain(one, page):
    text = unescape(page).replace("\N{NO-BREAK SPACE}", " ")
    means = frame(one).groupby(["arm", "K", "seed"])["value"].mean().groupby(["arm", "K"]).mean()
    means = 100 * means.unstack()
    for k in ("K=1", "K=5", "K=all"):
        best = means[k].idxmax()
        assert f"{best} at {k.replace('=', ' = ')} ({means[k][best]:.1f} %" in text
    for k in ("K=1", "K=5"):
        gain = means[k].max() - means[k]["lora"]
        assert f"{gain:.1f} points at {k.replace('=', ' = ')}" in text


def test_the_page_shows_every_raw_score_with_k_and_draw(one, page):
    (numbers,) = (
        t for t in parsed(page).tables if t[0][:5] == ["Arm", "Seed", "Metric", "Stage", "Draw"]
    )
    shown = {
        (row[0], int(row[1]), row[2], row[3], int(row[4]), numbers[0][5 + j], cell)
        for row in numbers[1:]
        for j, cell in enumerate(row[5:])
        if cell != "–"
    }
    stages = {s.index: s for s in one.stream.stages}
    expected = {
        (
            s.arm,
            s.seed,
            s.metric,
            stages[s.stage].name,
            stages[s.stage].draw,
            one.experiences[s.evaluated],
            f"{s.value:.4f}",
        )
        for s in one.scores
    }
    assert shown == expected


def test_the_page_has_differences_costs_facts_and_definitions(one, page):
    found = parsed(page)
    assert {"differences", "adapting"} <= found.ids
    assert "<caption>Differences to lora, over K</caption>" in page
    assert "<caption>Differences to lora, at K=1</caption>" in page
    assert "<dt>Upstream</dt><dd>photo (1000 train" in page
    assert "<dt>Downstream</dt><dd>art_painting (1000 train" in page
    assert "<dt>Support draws</dt><dd>2</dd>" in page
    assert "<caption>Seconds per adaptation</caption>" in page
    assert "trainable parameters without the head (Asadi et al. 2024)" in page
    averages = frame(one).groupby(["arm", "K", "seed"])["value"].mean()
    at_one = averages.xs("K=1", level="K")
    test = stats.ttest_rel(at_one["uniform"], at_one["lora"])
    tables = [t for t in found.tables if t[0][:2] == ["Arm", "Difference, points"]]
    captions = re.findall(r"<caption>Differences to (.*?)</caption>", page)
    (row,) = (row for row in tables[captions.index("lora, at K=1")] if row[0] == "uniform")
    low, high = test.confidence_interval(0.95)
    assert [float(x.replace("−", "-")) for x in row[2:4]] == pytest.approx(
        [100 * low, 100 * high], abs=0.051
    )


def test_the_page_of_many_data_sets_and_of_a_stream(many, stream, drawn):
    page = render_html(many, drawn["many"])
    titles = re.findall(r"<caption>(.*?)</caption>", page)
    for name in SIX:
        assert any(t.startswith(f"Accuracy in % on {name} from K") for t in titles)
    assert "<dt>Held out in turn</dt>" in page
    assert len(page.encode()) < 3_000_000
    page = render_html(stream, drawn["stream"])
    assert "In time: The only arm, uniform, reaches " in unescape(page)
    assert "<caption>Differences to base, in time</caption>" in page
    assert "<dt>Tasks in order</dt>" in page
    parsed(page)


def test_one_seed_in_time_has_an_interval_over_the_images_of_its_last_stage(tmp_path):
    path = fabricate_few_shot(tmp_path / "run", in_time=True, references=("base",), seeds=(0,))
    fabricate_hits(path, (0,), ("uniform", "base"))
    run = RunFolder.read(path)
    tables = [t for t in parsed(render_html(run, {})).tables if "Difference, points" in t[0]]
    assert {t[0][4] for t in tables[:-1]} == {"n (seeds)", "n (test samples)"}
    assert tables[-1][0][4] == "n (test samples)"
    (row,) = tables[-1][1:]
    assert row[0] == "uniform"
    assert row[4] == "1200"
    time = frame(run, in_time=True)
    last = time[time["stage"] == time["stage"].max()].groupby("arm")["value"].mean()
    shown = float(row[1].replace("−", "-"))
    assert shown == pytest.approx(100 * (last["uniform"] - last["base"]), abs=0.051)


def events(run, *parts, root="tensorboard"):
    found = EventAccumulator(str(run.path.joinpath(root, *parts)))
    found.Reload()
    return found


def series(found, tag):
    return {e.step: e.value for e in found.Scalars(tag)}


def test_tensorboard_steps_are_k(one):
    write_tensorboard(one)
    found = events(one, "learned")
    (table,) = main_tables(one, ACCURACY)
    i = table.rows.index("learned")
    # The pool has 43 samples a class.
    assert series(found, "accuracy/average") == pytest.approx(
        dict(zip((1, 5, 43), table.mean[i, :3], strict=True))
    )
    assert series(found, "accuracy/art_painting") == series(found, "accuracy/average")
    assert series(found, "accounts/trainable_parameters") == {1: 48, 5: 48, 43: 48}
    assert set(series(found, "coefficients/00-photo")) == {1, 5, 43}
    assert series(found, "result/average") == pytest.approx({43: table.mean[i, 3]})
    (image,) = found.Images("weights/art_painting")
    assert min(Image.open(io.BytesIO(image.encoded_image_string)).size) > 200
    assert "weights/art_painting" not in events(one, "uniform").Tags()["images"]
    seed = series(
        events(one, "seeds", "learned", "seed-2", root="tensorboard_details"), "accuracy/average"
    )
    raw = frame(one).query("arm == 'learned' and seed == 2").groupby("K")["value"].mean()
    assert seed == pytest.approx({1: raw["K=1"], 5: raw["K=5"], 43: raw["K=all"]})


def test_tensorboard_steps_stay_distinct(tmp_path):
    # The pool, of 43 samples a class, comes after the largest K.
    path = fabricate_few_shot(tmp_path / "run", shots=(0, 1, 43, "all"), seeds=(0,))
    run = RunFolder.read(path)
    write_tensorboard(run)
    assert set(series(events(run, "lora"), "accuracy/average")) == {0, 1, 43, 44}


def test_tensorboard_of_a_stream_keeps_k_and_time_apart(stream):
    write_tensorboard(stream)
    found = events(stream, "uniform")
    assert set(series(found, "accuracy/sketch")) == {1, 5, 42}
    assert set(series(found, "in_time/accuracy/sketch")) == {3, 4}
    assert set(series(found, "in_time/forgetting/accuracy")) == {2, 3, 4}
    assert set(series(found, "coefficients/sketch/00-photo")) == {1, 5, 42}
    tags = events(stream, "lora").Tags()["scalars"]
    assert not [t for t in tags if t.startswith("in_time")]
    assert not [t for t in events(stream, "joint").Tags()["scalars"] if t.startswith("accuracy")]


def test_few_shot_runs_are_compared_by_k(one, tmp_path):
    more = RunFolder.read(fabricate_few_shot(tmp_path / "more", seeds=(3, 4)))
    comparison = compare_runs([one, more], reference="lora")
    assert len(comparison.conditions) == 1
    table = comparison_table(comparison)
    assert [c.title for c in table.columns] == [
        "K=1",
        "K=5",
        "K=all",
        "average (%)",
        "n",
        "vs lora",
        "p",
    ]
    both = pd.concat([frame(one), frame(more)]).groupby(["arm", "K", "seed"])["value"].mean()
    for j, k in enumerate(("K=1", "K=5", "K=all")):
        expected = both.xs(k, level="K").groupby("arm").mean()
        np.testing.assert_allclose(table.mean[:, j], expected[list(table.rows)])
    over = both.groupby(["arm", "seed"]).mean()
    test = stats.ttest_rel(over["uniform"], over["lora"])
    found = comparison.difference(comparison.conditions[0], "uniform")
    assert (found.n, found.p) == (5, pytest.approx(test.pvalue))
    assert max(map(len, table.text(80).splitlines())) <= 80
    assert "from K = 1, 5, all" in " ".join(comparison.notes)
    rows = pd.read_csv(io.StringIO(RENDERERS["csv"](comparison)))
    assert {"K=1", "K=1 std", "average"} <= set(rows.columns)
    assert render(comparison_figure(comparison), "png")


def test_what_cannot_be_compared_is_refused_in_one_sentence(one, tmp_path):
    domains = RunFolder.read(fabricate_run(tmp_path / "domains"))
    for runs in ([one, domains], [domains, one]):
        with pytest.raises(UserError, match="is a few-shot run, with scores by K") as caught:
            compare_runs(runs)
        assert "\n" not in str(caught.value)
    path = fabricate_few_shot(tmp_path / "other", shots=(1, 2, "all"), name="other")
    other = RunFolder.read(path)
    # Other K stand beside it, and averages over other K are no pairs.
    assert len(compare_runs([one, other]).conditions) == 2
    with pytest.raises(UserError, match="not pairs"):
        compare_runs([one, other], reference="few_shot:lora")


def test_in_time_is_not_compared_and_said_so(stream):
    comparison = compare_runs([stream])
    assert comparison.arms == tuple(FEW_SHOT_ARMS)
    assert "By K: the scores in time stand in the report of each run." in comparison.notes
    with pytest.raises(UserError, match="Unknown arm 'joint'"):
        compare_runs([stream], reference="joint")
