"""The kinds whose targets are numbers, against numpy and scikit-learn in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor

from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Scaling, Task, get_kind

DEGREE = math.pi / 180
AGE = Task("age", get_kind("scalar"))
TURN = Task("turn", get_kind("angle"), period=2 * math.pi)
HALF_TURN = replace(TURN, period=math.pi)
FACE = Task("face", get_kind("points"), ("left", "right", "chin"), normaliser=(0, 1))

finite = st.floats(-1e3, 1e3, width=32)


def numbers(count: int = 41, seed: int = 0) -> np.ndarray:
    """Ages: far from zero, with a deviation that is not one."""
    return (30 + 12 * np.random.default_rng(seed).normal(size=count)).astype(np.float32)


def points(count: int = 41, seed: int = 0) -> np.ndarray:
    """Faces: every coordinate with a mean and a deviation of its own."""
    draw = np.random.default_rng(seed)
    mean = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.9]])
    return (mean + np.array([0.01, 0.03]) * draw.normal(size=(count, 3, 2))).astype(np.float32)


def angles(count: int = 41, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-math.pi, math.pi, count).astype(np.float32)


def scores(task: Task, outputs: Tensor, targets: np.ndarray, size: int = 7) -> dict[str, float]:
    """Return the scores of batches of ``size``."""
    counts = task.accumulator()
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        counts.update(outputs[rows], torch.from_numpy(targets[rows]))
    return dict(counts.scores())


def scaled(task: Task, targets: np.ndarray) -> Task:
    return replace(task, scaling=Scaling.of(targets))


CASES = {
    "scalar": (AGE, numbers()),
    "standardised scalar": (scaled(AGE, numbers()), numbers()),
    "angle": (TURN, angles()),
    "points": (FACE, points()),
    "standardised points": (scaled(FACE, points()), points()),
}
every_kind = pytest.mark.parametrize(("task", "targets"), CASES.values(), ids=CASES)


def outputs_for(task: Task, count: int = 41) -> Tensor:
    return torch.randn(count, task.outputs, generator=torch.Generator().manual_seed(1))


# Scaling -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(2, 9), st.integers(1, 4)), elements=finite))
def test_there_and_back_again_is_where_it_began(targets: np.ndarray) -> None:
    scaling = Scaling.of(targets)
    there = torch.from_numpy(targets)
    torch.testing.assert_close(scaling.back(scaling.to(there)), there, rtol=1e-9, atol=1e-9)


def test_what_is_learned_has_mean_zero_and_deviation_one_in_every_output() -> None:
    targets = points()
    flat = torch.from_numpy(targets).double().flatten(1)
    made = Scaling.of(targets).to(flat).numpy()
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(made.std(axis=0), 1, atol=1e-12)
    assert len(Scaling.of(targets).mean) == 6
    assert Scaling.of(numbers()).mean == (pytest.approx(numbers().astype(float).mean()),)


def test_a_value_that_never_changes_keeps_its_unit() -> None:
    scaling = Scaling.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert scaling == Scaling((2.0, 5.0), (1.0, 1.0))
    assert scaling.to(torch.tensor([[4.0, 6.0]])).tolist() == [[2.0, 1.0]]


# Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardised", [False, True])
def test_loss_of_a_number_is_l1_on_what_is_learned(standardised: bool) -> None:
    targets = numbers()
    task = scaled(AGE, targets) if standardised else AGE
    z, y = outputs_for(task).double().numpy()[:, 0], targets.astype(np.float64)
    wanted = (y - y.mean()) / y.std() if standardised else y
    loss = task.loss(outputs_for(task), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(np.abs(z - wanted).mean(), rel=1e-5)
    assert loss.ndim == 0


@pytest.mark.parametrize("task", [TURN, HALF_TURN])
def test_loss_of_an_angle_is_l1_on_the_circle(task: Task) -> None:
    z, y = outputs_for(task).double().numpy(), angles().astype(np.float64)
    turn = 2 * np.pi * y / task.period
    expected = np.abs(z - np.stack([np.cos(turn), np.sin(turn)], axis=1)).mean()
    found = task.loss(outputs_for(task), torch.from_numpy(angles()))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    # No jump: a whole period further is the same target.
    again = task.loss(outputs_for(task).double(), torch.from_numpy(y + task.period))
    assert again.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("standardised", [False, True])
def test_loss_of_points_is_l1_on_every_coordinate(standardised: bool) -> None:
    targets = points()
    task = scaled(FACE, targets) if standardised else FACE
    z, y = outputs_for(task).double().numpy(), targets.astype(np.float64).reshape(-1, 6)
    wanted = (y - y.mean(axis=0)) / y.std(axis=0) if standardised else y
    loss = task.loss(outputs_for(task), torch.from_numpy(targets))
    assert loss.item() == pytest.approx(np.abs(z - wanted).mean(), rel=1e-5)


@every_kind
def test_a_head_that_says_what_is_wanted_has_no_loss(task: Task, targets: np.ndarray) -> None:
    """And its predictions are the targets, in their own unit and shape."""
    y = torch.from_numpy(targets)
    if task.kind is get_kind("angle"):
        outputs = torch.stack([y.cos(), y.sin()], dim=1)
    else:
        flat = y.reshape(len(y), -1)
        outputs = flat if task.scaling is None else task.scaling.to(flat)
    assert task.loss(outputs, y).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(task.predictions(outputs), y, rtol=1e-5, atol=1e-5)
    found = scores(task, outputs, targets)
    for metric in task.kind.metrics:
        perfect = 1.0 if metric.higher_is_better else 0.0
        assert found[metric.name] == pytest.approx(perfect, abs=1e-4)


# Metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [AGE, scaled(AGE, numbers())])
def test_scores_of_a_number_are_those_of_scikit_learn(task: Task) -> None:
    targets, outputs = numbers(), outputs_for(AGE)
    raw = outputs.double().numpy()[:, 0]
    if task.scaling is not None:
        raw = raw * targets.astype(float).std() + targets.astype(float).mean()
    found = scores(task, outputs, targets)
    assert list(found) == ["rmse", "mae", "r2"]
    assert found["rmse"] == pytest.approx(root_mean_squared_error(targets, raw), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(targets, raw), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(targets, raw), rel=1e-4)


@pytest.mark.parametrize(("task", "targets"), [(AGE, numbers()), (FACE, points())])
def test_metrics_are_in_the_targets_unit_however_it_is_learned(task, targets) -> None:
    """The same predictions, said by a head in raw units and by one in standardised ones."""
    raw = torch.from_numpy(targets).flatten(1) if targets.ndim > 1 else torch.from_numpy(targets)
    raw = raw.reshape(len(targets), -1) + 0.1 * outputs_for(task)
    learned = scaled(task, targets)
    assert learned.scaling is not None
    other = scores(learned, learned.scaling.to(raw.double()), targets)
    for name, value in scores(task, raw, targets).items():
        assert other[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize(
    ("task", "said", "true", "degrees"),
    [
        (TURN, 359, 1, 2),
        (TURN, 1, 359, 2),
        (TURN, -179, 179, 2),
        (TURN, 90, 270, 180),
        (TURN, 10, 40, 30),
        (HALF_TURN, 179, 1, 2),
        (HALF_TURN, 10, 100, 90),
        (HALF_TURN, 0, 180, 0),
    ],
)
def test_the_error_of_an_angle_is_along_the_shortest_way(task, said, true, degrees) -> None:
    turn = torch.tensor([said * DEGREE * 2 * math.pi / task.period], dtype=torch.float64)
    outputs = 3.0 * torch.stack([turn.cos(), turn.sin()], dim=1)  # the length says nothing
    found = scores(task, outputs, np.array([true * DEGREE]))
    assert found["angle_error"] == pytest.approx(degrees, abs=1e-6)
    assert found["angle_rmse"] == pytest.approx(degrees, abs=1e-6)


def test_scores_of_angles_are_mean_and_root_mean_square() -> None:
    turn = torch.deg2rad(torch.tensor([10.0, 350.0, 90.0], dtype=torch.float64))
    outputs = torch.stack([turn.cos(), turn.sin()], dim=1)
    found = scores(TURN, outputs, np.deg2rad([13.0, 354.0, 90.0]), size=2)
    assert found["angle_error"] == pytest.approx((3 + 4 + 0) / 3)
    assert found["angle_rmse"] == pytest.approx(math.sqrt((9 + 16) / 3))


@settings(deadline=None)
@given(st.floats(-720, 720), st.floats(-720, 720), st.integers(-3, 3))
def test_an_angle_and_one_a_period_further_are_the_same(said, true, turns) -> None:
    turn = torch.tensor([said * DEGREE], dtype=torch.float64)
    outputs = torch.stack([turn.cos(), turn.sin()], dim=1)
    one, other = (
        scores(TURN, outputs, np.array([(true + shift) * DEGREE]))["angle_error"]
        for shift in (0, 360 * turns)
    )
    assert one == pytest.approx(other, abs=1e-6)
    assert 0 <= one <= 180 + 1e-9


def test_nme_by_hand() -> None:
    """Eyes 4 apart; errors 0, 1 and 5 (3, 4), so (0 + 1 + 5) / 3 / 4; then 2 apart, all 1."""
    truth = np.array([[[0, 0], [4, 0], [2, 3]], [[0, 0], [0, 2], [1, 1]]], dtype=np.float32)
    said = np.array([[[0, 0], [4, 1], [5, 7]], [[1, 0], [1, 2], [1, 0]]], dtype=np.float32)
    outputs = torch.from_numpy(said).flatten(1)
    for size in (1, 2):
        found = scores(FACE, outputs, truth, size)["nme"]
        assert found == pytest.approx((6 / 3 / 4 + 1 / 2) / 2)


@settings(deadline=None)
@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_nme_has_no_unit(scale: float, shift: float) -> None:
    """It is the same for a larger picture, and for one that is elsewhere."""
    said, truth = points(seed=1)[:5].astype(float), points()[:5].astype(float)

    def nme(change) -> float:
        outputs = torch.from_numpy(change(said)).flatten(1)
        return scores(FACE, outputs, change(truth))["nme"]

    assert nme(lambda p: p * scale + shift) == pytest.approx(nme(lambda p: p), rel=1e-6)


@every_kind
def test_without_samples_there_is_no_score(task: Task, targets: np.ndarray) -> None:
    assert all(math.isnan(value) for value in task.accumulator().scores().values())
    assert [m.name for m in task.kind.metrics] == list(task.accumulator().scores())


def test_one_sample_has_an_error_but_no_r2() -> None:
    found = scores(AGE, torch.tensor([[3.0]]), np.array([5.0], dtype=np.float32))
    assert found["rmse"] == found["mae"] == 2.0
    assert math.isnan(found["r2"])


@every_kind
def test_a_number_is_never_just_right(task: Task, targets: np.ndarray) -> None:
    assert task.kind.hits(outputs_for(task), torch.from_numpy(targets)) is None


# The trivial predictor -----------------------------------------------------------------------


@pytest.mark.parametrize("task", [AGE, scaled(AGE, numbers())])
def test_the_trivial_number_is_the_mean(task: Task) -> None:
    """Its RMSE on what it was made of is the deviation, its R2 is 0."""
    targets = numbers()
    outputs = task.constant(targets).expand(len(targets), -1)
    found = scores(task, outputs, targets)
    assert found["rmse"] == pytest.approx(targets.astype(float).std(), rel=1e-5)
    assert found["r2"] == pytest.approx(0, abs=1e-5)
    mean = targets.astype(float).mean()
    torch.testing.assert_close(task.predictions(outputs)[0].item(), mean, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("task", [FACE, scaled(FACE, points())])
def test_the_trivial_face_is_the_mean_shape(task: Task) -> None:
    targets = points()
    shape = task.predictions(task.constant(targets)[None])[0]
    np.testing.assert_allclose(shape.numpy(), targets.astype(float).mean(axis=0), rtol=1e-5)


def test_the_trivial_angle_is_the_mean_direction() -> None:
    """Around the jump: the mean of 350 and 30 degrees is 10, not 190."""
    outputs = TURN.constant(np.deg2rad([350.0, 30.0]))
    assert outputs.norm().item() == pytest.approx(1)
    assert math.degrees(TURN.predictions(outputs[None])[0]) == pytest.approx(10, abs=1e-4)
    halves = HALF_TURN.constant(np.deg2rad([175.0, 15.0]))
    assert math.degrees(HALF_TURN.predictions(halves[None])[0]) == pytest.approx(5, abs=1e-4)


def test_the_trivial_class_is_the_first_of_the_most_frequent() -> None:
    task = Task("pet", CLASS, ("ape", "bee", "cat"))
    assert task.constant(np.array([2, 1, 2, 0])).tolist() == [0, 0, 1]
    assert task.constant(np.array([2, 1])).tolist() == [0, 1, 0]
    assert task.predictions(task.constant(np.array([1]))[None]).tolist() == [1]


@every_kind
def test_what_is_trivial_of_constant_targets_is_that_target(task, targets) -> None:
    """A fixed point: it says what it was made of, and misses nothing."""
    same = np.repeat(targets[:1], 5, axis=0)
    outputs = task.constant(same)
    assert outputs.shape == (task.outputs,)
    assert outputs.dtype == torch.float32
    said = task.predictions(outputs.expand(5, -1))
    np.testing.assert_allclose(said.numpy(), same, rtol=1e-5, atol=1e-5)
    first = task.kind.metrics[0].name
    assert scores(task, outputs.expand(5, -1), same)[first] == pytest.approx(0, abs=1e-3)


# Draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "targets", "value"),
    [
        (AGE, numbers(40), lambda y: y),
        (TURN, angles(40), lambda y: y),
        (FACE, points(40), lambda y: np.linalg.norm(y[:, 0] - y[:, 1], axis=1)),
    ],
)
def test_a_draw_balances_quarters_of_the_values(task, targets, value) -> None:
    strata, names = task.kind.strata(task, targets)
    values = value(targets.astype(np.float64))
    assert len(names) == 4
    assert strata.dtype == np.int64
    assert np.bincount(strata).tolist() == [10, 10, 10, 10]
    for below, above in ((0, 1), (1, 2), (2, 3)):
        assert values[strata == below].max() < values[strata == above].min()
    assert task.kind.strata(task, targets[:0])[0].tolist() == []


# What a user may give ------------------------------------------------------------------------


@every_kind
def test_a_target_that_is_not_finite_is_refused(task: Task, targets: np.ndarray) -> None:
    task.check_targets(targets, "here")
    for bad in (np.nan, np.inf):
        broken = targets.copy()
        broken.reshape(len(targets), -1)[7, -1] = bad
        with pytest.raises(UserError, match=r"finite targets in here but number 7 of 41 is not"):
            task.check_targets(broken, "here")


def test_points_that_are_one_cannot_normalise() -> None:
    broken = points()
    broken[3, 0] = broken[3, 1]
    with pytest.raises(UserError, match=r"points 'left' and 'right' of here apart .* number 3 of"):
        FACE.check_targets(broken, "here")


@pytest.mark.parametrize(
    ("task", "shape"),
    [(replace(FACE, normaliser=None), (4, 3, 2)), (FACE, (4, 2, 2)), (FACE, (4, 6))],
)
def test_points_of_another_shape_or_without_a_normaliser_are_refused(task, shape) -> None:
    with pytest.raises(UserError, match=r"here to have 3 points .* two that errors are divided by"):
        task.check_targets(np.random.default_rng(0).normal(size=shape), "here")


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan")])
def test_an_angle_needs_a_period(period: float) -> None:
    with pytest.raises(UserError, match="period of task 'turn' to be above 0 radians"):
        replace(TURN, period=period).check_targets(angles(), "here")


@pytest.mark.parametrize("bad", [3, -2])
def test_a_class_outside_the_labels_is_refused(bad: int) -> None:
    task = Task("pet", CLASS, ("ape", "bee", "cat"))
    task.check_targets(np.array([0, 2, -1]), "here")
    with pytest.raises(UserError, match="targets of here from 0 to 2, the labels of task 'pet'"):
        task.check_targets(np.array([0, bad]), "here")


@pytest.mark.parametrize(
    ("kind", "outputs", "names"),
    [("scalar", 1, "rmse mae r2"), ("angle", 2, "angle_error angle_rmse"), ("points", 6, "nme")],
)
def test_kinds_say_what_they_are(kind: str, outputs: int, names: str) -> None:
    task = Task("x", get_kind(kind), FACE.labels, normaliser=(0, 1), period=1.0)
    assert task.outputs == outputs
    assert [m.name for m in task.kind.metrics] == names.split()
    assert task.kind.target_dtype == torch.float32
    better = {m.name: m.higher_is_better for m in task.kind.metrics}
    assert better == {name: name == "r2" for name in better}


# Drawn targets -------------------------------------------------------------------------------


@every_kind
def test_targets_are_drawn_as_the_loss_says(task: Task, targets: np.ndarray) -> None:
    """``exp(-mean_k |z_k - y_k|)`` of K outputs: each deviates by K in the mean, so does the loss.

    Its gradient has random signs over K, and none flows through the draw.
    """
    z = torch.zeros(3000, task.outputs, requires_grad=True)
    loss = task.drawn_loss(z, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == pytest.approx(task.outputs, rel=0.06)
    signs = z.grad * z.numel()
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert signs.mean().item() == pytest.approx(0, abs=0.06)


@every_kind
def test_drawn_targets_do_not_depend_on_batches(task: Task, targets: np.ndarray) -> None:
    z = outputs_for(task)

    def drawn(size: int) -> float:
        generator = torch.Generator().manual_seed(4)
        return sum(len(p) * task.drawn_loss(p, generator).item() for p in z.split(size)) / len(z)

    assert drawn(7) == pytest.approx(drawn(41), rel=1e-5)
