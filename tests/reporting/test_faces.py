"""A few-shot run by K and in time, by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from fabricate import FEW_SHOT_ARMS, fabricate_few_shot, fabricate_run
from other_runs import as_stages

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.reporting.describe import arm_settings
from cl_lora.reporting.faces import (
    by_shots,
    downstream,
    draws,
    faces,
    in_time,
    is_few_shot,
    upstream,
)
from cl_lora.reporting.shots import (
    best_at,
    classifier_arm,
    cost_of,
    groups_of,
    lora_from_scratch,
    scores_by_shots,
)
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import StageRecord

ALL = {"classifier": FEW_SHOT_ARMS["classifier"], "uniform": FEW_SHOT_ARMS["uniform"]}

# Added by three commands: K = 5 first, then all, then K = 1, and K = 0 last of all. Two data sets.
STAGES = [
    StageRecord(0, "K=5", (0, 1), (2,), (2,), 5.0, 0),
    StageRecord(1, "K=5", (0, 1), (3,), (3,), 5.0, 0),
    StageRecord(2, "K=all", (0, 1), (2,), (2,), 3.0, 0),
    StageRecord(3, "K=all", (0, 1), (3,), (3,), 9.0, 0),
    StageRecord(4, "K=1", (0, 1), (2,), (2,), 1.0, 0),
    StageRecord(5, "K=1", (0, 1), (2,), (2,), 1.0, 1),
    StageRecord(6, "K=1", (0, 1), (3,), (3,), 1.0, 0),
    StageRecord(7, "K=1", (0, 1), (3,), (3,), 1.0, 1),
    StageRecord(8, "K=0", (0, 1), (2,), (), 0.0, 0),
    StageRecord(9, "K=0", (0, 1), (3,), (), 0.0, 0),
]
# stage -> score of uniform, of seeds 0 and 1
UNIFORM = {
    0: (0.6, 0.8),
    1: (0.4, 0.6),
    2: (0.9, 0.9),
    3: (0.7, 0.7),
    4: (0.2, 0.4),
    5: (0.4, 0.4),
    6: (0.1, 0.3),
    7: (0.3, 0.3),
    8: (0.1, 0.1),
    9: (0.2, 0.2),
}


@pytest.fixture
def by_hand(tmp_path):
    path = fabricate_few_shot(tmp_path / "run", arms=ALL, seeds=(0, 1), held=(2, 3))
    stream = json.loads((path / "stream.json").read_text())
    stream["stages"] = [vars(s) for s in STAGES]
    (path / "stream.json").write_text(json.dumps(stream))
    rows = [
        Score(
            seed, "uniform", stage.index, stage.evaluated[0], "accuracy", UNIFORM[stage.index][seed]
        )
        for seed in (0, 1)
        for stage in STAGES
    ]
    # The classifier lacks K = 0, and seed 1 lacks the second draw of K = 1 on one data set.
    rows += [
        Score(seed, "classifier", s.index, s.evaluated[0], "accuracy", 0.5)
        for seed in (0, 1)
        for s in STAGES
        if s.x and not (seed == 1 and s.index == 7)
    ]
    ScoreTable(rows).write(path / "scores.csv")
    coefficients = [
        (seed, "uniform", s.index, "all", i, 0.1 * s.index + i)
        for seed in (0, 1)
        for s in STAGES
        for i in (0, 1)
    ]
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    pd.DataFrame(coefficients, columns=columns).to_csv(path / "coefficients.csv", index=False)
    accounts = [(0, "uniform", s.index, "seconds", float(s.index)) for s in STAGES]
    columns = ["seed", "arm", "stage", "quantity", "value"]
    pd.DataFrame(accounts, columns=columns).to_csv(path / "accounts.csv", index=False)
    return RunFolder.read(path, allow_unfinished=True)


def test_every_k_is_one_stage_and_the_whole_pool_the_last_though_it_is_small(by_hand):
    stages = by_shots(by_hand).stream.trained_stages
    assert [(s.name, s.x) for s in stages] == [("K=0", 0), ("K=1", 1), ("K=5", 5), ("K=all", 6)]
    assert [s.index for s in stages] == [0, 1, 2, 3]
    assert {s.evaluated for s in stages} == {(2, 3)}
    assert not by_shots(by_hand).stream.ordered
    assert (upstream(by_hand), downstream(by_hand), draws(by_hand)) == ((0, 1), (2, 3), 2)


def test_draws_are_averaged_within_a_seed_then_data_sets(by_hand):
    face = by_shots(by_hand)
    found = {(s.seed, s.stage, s.evaluated): s.value for s in face.scores if s.arm == "uniform"}
    assert found[0, 1, 2] == pytest.approx((0.2 + 0.4) / 2)
    assert found[1, 1, 3] == pytest.approx((0.3 + 0.3) / 2)
    shots = scores_by_shots(face, ACCURACY)
    np.testing.assert_allclose(shots.values["uniform"][0], [0.15, 0.25, 0.5, 0.8])
    np.testing.assert_allclose(shots.values["uniform"][1], [0.15, 0.35, 0.7, 0.8])
    # The seed is the unit: two numbers a K, whatever the number of draws and data sets.
    at_one = shots.estimates(shots.at(1))["uniform"]
    assert (at_one.mean, at_one.seeds) == (pytest.approx(0.3), 2)
    assert at_one.deviation == pytest.approx(np.std([0.25, 0.35], ddof=1))
    # Over every K of at least 1: (0.25 + 0.5 + 0.8) / 3 and (0.35 + 0.7 + 0.8) / 3.
    assert shots.average()["uniform"] == pytest.approx({0: 1.55 / 3, 1: 1.85 / 3})
    assert shots.smallest == 1


def test_what_lacks_a_draw_is_undefined_rather_than_averaged(by_hand):
    shots = scores_by_shots(by_shots(by_hand), ACCURACY)
    np.testing.assert_array_equal(np.isnan(shots.values["classifier"][0]), [True, *[False] * 3])
    np.testing.assert_array_equal(
        np.isnan(shots.values["classifier"][1]), [True, True, False, False]
    )
    assert shots.estimates(shots.at(1))["classifier"].seeds == 1
    # Fewer seeds than another arm: it is not ranked, though its mean is higher.
    assert best_at(shots, 1, ("classifier", "uniform")) == "uniform"
    assert best_at(shots, 2, ("classifier", "uniform")) == "uniform"


def test_one_data_set_alone(by_hand):
    face = by_shots(by_hand, (3,))
    assert [(s.name, s.x) for s in face.stream.trained_stages][-1] == ("K=all", 9)
    shots = scores_by_shots(face, ACCURACY)
    np.testing.assert_allclose(shots.values["uniform"][0], [0.2, 0.2, 0.4, 0.7])


def test_coefficients_and_accounts_are_averaged_alike(by_hand):
    face = by_shots(by_hand)
    rows = face.coefficients
    found = rows[(rows["seed"] == 0) & (rows["stage"] == 1) & (rows["adapter"] == 1)]["value"]
    assert found.to_list() == pytest.approx([1 + 0.1 * (4 + 5 + 6 + 7) / 4])
    spent = face.accounts.set_index("stage")["value"].to_dict()
    assert spent == {0: 8.5, 1: 5.5, 2: 0.5, 3: 2.5}
    assert cost_of(face, "uniform", "seconds") == pytest.approx((8.5 + 5.5 + 0.5 + 2.5) / 4)
    assert np.isnan(cost_of(face, "classifier", "seconds"))


def test_a_stream_of_few_shot_tasks_has_two_faces(tmp_path):
    path = fabricate_few_shot(tmp_path / "run", in_time=True, references=("base", "joint"))
    run = RunFolder.read(path)
    shots, time = faces(run)
    assert (shots.kind, time.kind) == ("shots", "time")
    assert set(shots.run.arms) == set(FEW_SHOT_ARMS)
    assert shots.run.references == ()
    assert (time.run.arms, time.run.references) == (("uniform",), ("base", "joint"))
    assert time.run.stream.ordered
    assert [s.name for s in time.run.stream.trained_stages] == list(run.experiences)
    # As in the file, at the stages in time.
    raw = [s.index for s in run.stream.stages if s.x is None]
    assert time.stages == tuple((i,) for i in raw)
    for seed in run.seeds:
        matrix = time.run.scores.matrix(seed, "uniform", "accuracy").values
        for t, index in enumerate(raw):
            for j in range(t + 1):
                (row,) = (
                    s
                    for s in run.scores
                    if (s.seed, s.arm, s.stage, s.evaluated, s.metric)
                    == (seed, "uniform", index, j, "accuracy")
                )
                assert matrix[t, j] == row.value


def test_without_an_arm_that_serves_one_merge_there_is_no_time(tmp_path):
    arms = {"lora": FEW_SHOT_ARMS["lora"]}
    run = RunFolder.read(fabricate_few_shot(tmp_path / "run", arms=arms, in_time=True))
    assert [face.kind for face in faces(run)] == ["shots"]


def test_a_run_that_adapts_to_nothing_is_its_own_face(tmp_path):
    run = RunFolder.read(fabricate_run(tmp_path / "run"))
    (face,) = faces(run)
    assert face.kind == "whole"
    assert face.run is run
    with pytest.raises(ValueError, match="stages in time"):
        in_time(RunFolder.read(fabricate_few_shot(tmp_path / "few")))
    # Stages that count something, but of experiences that are merged: nothing is adapted to.
    counted = RunFolder.read(as_stages(fabricate_run(tmp_path / "c"), {"pair": 2, "all": 4}))
    assert not is_few_shot(counted)
    assert faces(counted)[0].run is counted


def test_arms_are_known_by_what_they_train_and_from_where(tmp_path):
    # Not by their names.
    arms = {f"x{i}": settings for i, settings in enumerate(FEW_SHOT_ARMS.values())}
    run = RunFolder.read(fabricate_few_shot(tmp_path / "run", arms=arms))
    assert (classifier_arm(run), lora_from_scratch(run)) == ("x0", "x2")
    assert list(groups_of(run).values()) == [["x0", "x1", "x2"], ["x3", "x4"], ["x5"]]
    bare = arm_settings(run, "x1")
    assert (bare.method, bare.rule, bare.adapt, bare.start) == ("", "", "full", "base")
    assert bare.family() == "adapts full from the bare backbone"
    assert arm_settings(run, "x5").family() == "task_arithmetic, softmax, adapts lora"
