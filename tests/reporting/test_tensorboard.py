import io

import numpy as np
import pandas as pd
import pytest
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator
from tensorboard.plugins.hparams import metadata

from cl_lora.evaluation.continual import average_accuracy, forgetting
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.layout import FRESH
from cl_lora.run_folder.reader import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = RunFolder.read(fabricate_run(tmp_path_factory.mktemp("tb") / "run"))
    write_tensorboard(run)
    return run


def read(run, *parts):
    # 0 keeps all: by default one histogram of a tag is kept.
    folder = run.path.joinpath("tensorboard", *parts)
    events = EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0})
    events.Reload()
    return events


def series(events, tag):
    return {e.step: e.value for e in events.Scalars(tag)}


def test_one_run_per_arm_with_its_seeds_below(run):
    root = run.path / "tensorboard"
    assert {p.name for p in root.iterdir()} == {*ARMS, *REFERENCES, "training"}
    assert {p.name for p in (root / "ties_w1").iterdir() if p.is_dir()} == {"seed-0", "seed-1"}


def test_scalars_of_one_seed(run):
    events = read(run, "ties_w1", "seed-1")
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
    seeds = [series(read(run, "ties_w1", f"seed-{s}"), "accuracy/photo") for s in (0, 1)]
    for step, value in mean.items():
        assert value == pytest.approx(np.mean([s[step] for s in seeds]), abs=1e-6)


def test_coefficients(run):
    events = read(run, "ta_adaptive_b3", "seed-0")
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
    # One seed needs no runs below the arm's.
    assert not any(p.is_dir() for p in (path / "tensorboard" / "ties_w1").iterdir())


def test_the_score_matrix_is_an_image(run):
    events = read(run, "joint")
    (image,) = events.Images("scores/accuracy")
    assert image.step == 4
    assert min(Image.open(io.BytesIO(image.encoded_image_string)).size) > 200


def test_training_curves(run):
    curve = next(c for c in run.curves if (c.seed, c.bank, c.experience) == (1, "sequential", 2))
    events = read(run, "training", "seed-1", "sequential", "02-cartoon")
    assert series(events, "training/loss") == pytest.approx(
        dict(zip(curve.epochs, curve.losses, strict=True))
    )
    assert set(series(events, "training/accuracy")) == set(curve.epochs)


def _hparams(events, kind):
    content = events.SummaryMetadata(kind).plugin_data.content
    return metadata._parse_plugin_data_as(
        content, "experiment" if kind == metadata.EXPERIMENT_TAG else "session_start_info"
    )


def test_hparams_sort_the_arms_by_result(run):
    settings = ("W", "b_max", "coefficients", "density", "method", "space", "spc")
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


def test_writing_again_leaves_everything_once(run_path):
    run = RunFolder.read(run_path)
    folders = write_tensorboard(run)
    before = {f: EventAccumulator(str(f)) for f in folders}
    counts = {}
    for folder, events in before.items():
        events.Reload()
        counts[folder] = {t: len(events.Scalars(t)) for t in events.Tags()["scalars"]}
    assert write_tensorboard(run) == folders
    for folder in folders:
        events = EventAccumulator(str(folder))
        events.Reload()
        assert {t: len(events.Scalars(t)) for t in events.Tags()["scalars"]} == counts[folder]
    assert not list((run_path / "tensorboard").glob(".*"))


def test_an_arm_called_training_keeps_its_folder(tmp_path):
    arms = {"training": ARMS["ties_w1"]}
    path = fabricate_run(tmp_path / "run", arms=arms, references=(), seeds=(0,))
    run = RunFolder.read(path)
    write_tensorboard(run)
    assert "accuracy/photo" in read(run, "training").Tags()["scalars"]
    assert (path / "tensorboard" / "training_" / "seed-0" / FRESH / "00-photo").is_dir()
    assert run.experiences == DOMAINS
