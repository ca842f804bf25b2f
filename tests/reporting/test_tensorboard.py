import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_run
from other_runs import RMSE, as_errors, as_stages
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from cl_lora.evaluation.continual import average_accuracy, forgetting
from cl_lora.evaluation.scores import ScoreTable
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.tensorboard import arms as arms_module
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.layout import FRESH
from cl_lora.run_folder.reader import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunFolder.read(fabricate_run(tmp_path_factory.mktemp("tb") / "run"))
    write_tensorboard(run)
    return run


def read(run, *parts, root="tensorboard"):
    # 0 keeps all: by default one histogram of a tag is kept.
    folder = run.path.joinpath(root, *parts)
    events = EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0})
    events.Reload()
    return events


def details(run, *parts):
    return read(run, *parts, root="tensorboard_details")


def series(events, tag):
    return {e.step: e.value for e in events.Scalars(tag)}


def runs_in(folder):
    """The runs that TensorBoard finds below a folder."""
    return {str(p.parent.relative_to(folder)) for p in folder.rglob("*tfevents*")}


def test_one_run_per_arm_and_the_rest_beside(run):
    assert runs_in(run.path / "tensorboard") == {*ARMS, *REFERENCES, "overview"}
    found = runs_in(run.path / "tensorboard_details")
    seeds = {f"seeds/{arm}/seed-{s}" for arm in (*ARMS, *REFERENCES) for s in (0, 1)}
    assert {x for x in found if x.startswith("seeds/")} == seeds
    assert {x.split("/")[0] for x in found} == {"seeds", "training"}


def test_many_arms_of_three_seeds_open_filled(tmp_path, monkeypatch):
    arms = {f"w{i}": {"method": "task_arithmetic", "coefficients": i / 10} for i in range(1, 41)}
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=arms))
    monkeypatch.setattr(arms_module, "add_drawn", lambda *given: None)
    write_tensorboard(run)
    shown = runs_in(run.path / "tensorboard")
    assert len(shown) == 40  # with one more TensorBoard selects none of them
    assert {"overview", *REFERENCES} <= shown
    left = {*arms} - shown
    assert {x for x in runs_in(run.path / "tensorboard_details") if x.startswith("arms/")} == {
        f"arms/{arm}" for arm in left
    }
    average = {
        arm: np.mean([average_accuracy(run.scores.matrix(s, arm).values) for s in run.seeds])
        for arm in arms
    }
    assert max(average[arm] for arm in left) <= min(average[arm] for arm in {*arms} & shown)
    said = text_of(read(run, "overview"), "arms left out")
    assert all(arm in said for arm in left)


def text_of(events, title):
    (found,) = events.Tensors(f"{title}/text_summary")
    return found.tensor_proto.string_val[0].decode()


def test_the_overview_has_the_words_and_what_to_draw_first(run):
    events = read(run, "overview")
    answers = answers_of(run)
    assert answers
    assert all(f"**{a.question}** {a.sentence}" in text_of(events, "answers") for a in answers)
    assert all(f"**{arm}**" in text_of(events, "arms") for arm in (*ARMS, *REFERENCES))
    assert "seeds:" in text_of(events, "configuration")
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {c.title: c for category in layout.category for c in category.chart}
    margin = charts["Accuracy, average: 95 % interval over seeds"].margin.series[0]
    arm = read(run, "ties_w1").Tags()["scalars"]
    assert {margin.value, margin.lower, margin.upper} <= {*arm}
    for chart in charts.values():
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, tag) for tag in arm), pattern


def test_the_band_is_the_interval_over_seeds(run):
    events = read(run, "ties_w1")
    values = [average_accuracy(run.scores.matrix(s, "ties_w1").values) for s in run.seeds]
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    assert series(events, "interval/accuracy/average/low")[4] == pytest.approx(low)
    assert series(events, "interval/accuracy/average/high")[4] == pytest.approx(high)


def test_scalars_of_one_seed(run):
    events = details(run, "seeds", "ties_w1", "seed-1")
    matrix = run.scores.matrix(1, "ties_w1")
    sketch = series(events, "accuracy/sketch")
    assert sketch[0] == pytest.approx(matrix.baseline[3])
    for t in range(4):
        assert sketch[t + 1] == pytest.approx(matrix.values[t, 3])
    average = series(events, "accuracy/average")
    assert set(average) == {1, 2, 3, 4}
    assert average[2] == pytest.approx(matrix.values[1, :2].mean())
    assert average[4] == pytest.approx(average_accuracy(matrix.values))
    lost = series(events, "forgetting/accuracy")
    assert set(lost) == {2, 3, 4}
    assert lost[4] == pytest.approx(forgetting(matrix.values))
    assert "f1/photo" in events.Tags()["scalars"]


def test_the_arm_itself_is_the_mean_over_seeds(run):
    mean = series(read(run, "ties_w1"), "accuracy/photo")
    seeds = [
        series(details(run, "seeds", "ties_w1", f"seed-{s}"), "accuracy/photo") for s in (0, 1)
    ]
    for step, value in mean.items():
        assert value == pytest.approx(np.mean([s[step] for s in seeds]), abs=1e-6)


def test_coefficients(run):
    events = details(run, "seeds", "ta_adaptive_b3", "seed-0")
    found = series(events, "coefficients/01-art_painting")
    frame = run.coefficients
    rows = frame[(frame.arm == "ta_adaptive_b3") & (frame.seed == 0) & (frame.adapter == 1)]
    assert found == pytest.approx({t + 1: v for t, v in zip(rows.stage, rows.value, strict=True)})


def test_coefficients_of_groups_have_a_histogram(tmp_path):
    path = fabricate_run(tmp_path / "run", seeds=(0,))
    frame = pd.read_csv(path / "coefficients.csv")
    parts = [frame.assign(group=f"blocks.{i}", value=frame["value"] + i) for i in range(3)]
    pd.concat(parts).to_csv(path / "coefficients.csv", index=False)
    run = RunFolder.read(path)
    write_tensorboard(run)
    events = read(run, "ties_w1")
    assert [h.step for h in events.Histograms("coefficients")] == [1, 2, 3, 4]
    assert series(events, "coefficients/00-photo")[1] == pytest.approx(2.0)
    # One seed needs no runs of its own, and has no interval.
    assert not (path / "tensorboard_details" / "seeds").exists()
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("interval")]


def test_the_score_matrix_is_an_image(run):
    events = read(run, "joint")
    (image,) = events.Images("scores/accuracy")
    assert image.step == 4
    assert min(Image.open(io.BytesIO(image.encoded_image_string)).size) > 200


def test_training_curves(run):
    curve = next(c for c in run.curves if (c.seed, c.bank, c.experience) == (1, "sequential", 2))
    events = details(run, "training", "seed-1", "sequential", "02-cartoon")
    assert series(events, "training/loss") == pytest.approx(
        dict(zip(curve.epochs, curve.losses, strict=True))
    )
    assert series(events, "training/accuracy") == pytest.approx(
        dict(zip(curve.epochs, curve.values, strict=True))
    )


def test_a_training_curve_is_called_by_its_metric(tmp_path):
    path = as_errors(fabricate_run(tmp_path / "run", seeds=(0,)))
    trained = path / "adapters" / "seed-0" / "00-photo" / "training.json"
    trained.write_text(json.dumps({"metric": "rmse", "loss": [{"epoch": 1, "loss": 2, "rmse": 7}]}))
    old = path / "adapters" / "seed-0" / "01-art_painting" / "training.json"
    old.write_text(json.dumps({"loss": [{"epoch": 1, "loss": 2}]}))
    run = RunFolder.read(path)
    write_tensorboard(run)
    events = details(run, "training", "seed-0", FRESH, "00-photo")
    assert set(events.Tags()["scalars"]) == {"training/loss", "training/rmse"}
    assert series(events, "training/rmse") == {1: 7.0}
    events = details(run, "training", "seed-0", FRESH, "01-art_painting")
    assert events.Tags()["scalars"] == ["training/loss"]


def _hparams(events, kind):
    content = events.SummaryMetadata(kind).plugin_data.content
    return metadata._parse_plugin_data_as(
        content, "experiment" if kind == metadata.EXPERIMENT_TAG else "session_start_info"
    )


def test_hparams_sort_the_arms_by_result(run):
    settings = ("W", "b_max", "coefficients", "density", "granularity", "lr", "method", "space")
    settings += ("spc", "steps", "trim")
    columns = set()
    for arm in (*ARMS, *REFERENCES):
        events = read(run, arm)
        experiment = _hparams(events, metadata.EXPERIMENT_TAG)
        columns.add(tuple(sorted(h.name for h in experiment.hparam_infos)))
        start = _hparams(events, metadata.SESSION_START_INFO_TAG)
        assert start.group_name == arm  # the column 'Trial ID'
        # What the table sorts by is a scalar of the same run.
        result = series(events, "result/average")[4]
        finals = [average_accuracy(run.scores.matrix(s, arm).values) for s in run.seeds]
        assert result == pytest.approx(np.mean(finals))
        assert "result/average" in {m.name.tag for m in experiment.metric_infos}
    assert columns == {settings}
    start = _hparams(read(run, "ta_adaptive_b3"), metadata.SESSION_START_INFO_TAG)
    assert start.hparams["b_max"].number_value == 3
    assert "density" not in start.hparams


def test_hparams_tell_a_tuned_head_and_a_head_of_its_own(tmp_path):
    arms = {"plain": ARMS["ties_w1"], "other": {**ARMS["ties_w1"], "head": "shared"}}
    arms["tuned"] = {**ARMS["ties_w1"], "tune_head": True}
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=arms, seeds=(0,)))
    write_tensorboard(run)
    found = {a: _hparams(read(run, a), metadata.SESSION_START_INFO_TAG).hparams for a in arms}
    assert "head" not in found["plain"]
    assert found["other"]["head"].string_value == "shared"
    assert found["tuned"]["tune_head"].string_value == "yes"
    assert "tune_head" not in found["plain"]


def test_writing_again_leaves_everything_once(run_path):
    run = RunFolder.read(run_path)
    folders = write_tensorboard(run)

    def counts():
        found = {}
        for folder in folders:
            for name in runs_in(folder):
                events = EventAccumulator(str(folder / name))
                events.Reload()
                tags = events.Tags()["scalars"]
                found[folder, name] = {t: len(events.Scalars(t)) for t in tags}
        return found

    before = counts()
    (run_path / "tensorboard" / "an arm that is gone").mkdir()
    assert write_tensorboard(run) == folders
    assert counts() == before
    assert not (run_path / "tensorboard" / "an arm that is gone").exists()
    assert not list(run_path.glob(".tensorboard*"))


def test_an_arm_called_overview_keeps_its_folder(tmp_path):
    arms = {"overview": ARMS["ties_w1"]}
    path = fabricate_run(tmp_path / "run", arms=arms, references=(), seeds=(0,))
    run = RunFolder.read(path)
    write_tensorboard(run)
    assert "accuracy/photo" in read(run, "overview").Tags()["scalars"]
    assert runs_in(path / "tensorboard") == {"overview", "overview_"}
    assert run.experiences == DOMAINS


def test_without_order_steps_are_stages_and_nothing_is_forgotten(tmp_path):
    path = fabricate_run(tmp_path / "run", seeds=(0,))
    run = RunFolder.read(as_stages(path, {"pairs": None, "all": None}))
    write_tensorboard(run)
    events = read(run, "ties_w1")
    values = {(s.stage, s.evaluated): s.value for s in run.scores if unit(s) == "ties_w1 accuracy"}
    sketch = series(events, "accuracy/sketch")
    assert sketch == pytest.approx({1: values[0, 3], 2: values[1, 3], 0: sketch[0]})
    # All that the stage evaluates, as there is no "so far".
    average = series(events, "accuracy/average")
    assert average == pytest.approx(
        {s + 1: np.mean([values[s, j] for j in range(4)]) for s in (0, 1)}
    )
    tags = events.Tags()["scalars"]
    assert not [tag for tag in tags if "forgetting" in tag or "transfer" in tag]
    assert series(events, "result/average") == pytest.approx({2: average[2]})
    experiment = _hparams(events, metadata.EXPERIMENT_TAG)
    assert [m.name.tag for m in experiment.metric_infos] == ["result/average"]
    (image,) = events.Images("scores/accuracy")
    assert image.step == 2


def unit(score):
    return f"{score.arm} {score.metric}"


@pytest.mark.parametrize(
    ("counted", "steps"),
    [((1.0, 5.0, 20.0), {1, 5, 20}), ((0.5, 1.0, 2.0), {1, 2, 3}), ((0.0, 1.0, 2.0), {1, 2, 3})],
)
def test_steps_are_what_the_protocol_counts(tmp_path, counted, steps):
    path = fabricate_run(tmp_path / "run", arms={"ta_w1": ARMS["ta_w1"]}, references=("base",))
    run = RunFolder.read(as_stages(path, {f"K={x:g}": x for x in counted}))
    write_tensorboard(run)
    assert set(series(read(run, "ta_w1"), "accuracy/average")) == steps
    # Step 0 is before any training.
    assert set(series(details(run, "seeds", "ta_w1", "seed-1"), "accuracy/photo")) == {0, *steps}


def test_the_first_metric_of_the_run_makes_the_result(tmp_path):
    # In the file a metric stands by its name: "a_metric" before "rmse", which leads.
    path = as_errors(fabricate_run(tmp_path / "run", references=(), seeds=(0,)))
    stream = json.loads((path / "stream.json").read_text())
    second = replace(RMSE, name="a_metric").record()
    stream["tasks"][0]["metrics"].append(second)
    (path / "stream.json").write_text(json.dumps(stream))
    scores = ScoreTable.read(path / "scores.csv")
    scores.append([replace(s, metric="a_metric", value=s.value / 2) for s in scores])
    scores.write(path / "scores.csv")
    run = RunFolder.read(path)
    write_tensorboard(run)
    events = read(run, "ties_w1")
    assert series(events, "result/average")[4] == pytest.approx(series(events, "rmse/average")[4])
    assert set(series(events, "forgetting/a_metric")) == {2, 3, 4}
