import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torchmetrics.functional.classification import multiclass_f1_score

from cl_lora.evaluation.classification import (
    ClassificationCounts,
    accuracy,
    confusion_matrix,
    macro_f1,
)

# Few samples and many classes: classes absent from targets, predictions or both are common.
samples = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(samples)
def test_equal_to_scikit_learn_and_torchmetrics(pairs):
    targets, predictions = (torch.tensor(x) for x in zip(*pairs, strict=True))
    confusion = confusion_matrix(predictions, targets, 7)
    assert confusion.tolist() == sklearn_confusion(targets, predictions, labels=range(7)).tolist()
    assert accuracy(confusion) == accuracy_score(targets, predictions)
    f1 = macro_f1(confusion)
    assert f1 == pytest.approx(f1_score(targets, predictions, average="macro"), abs=1e-12)
    torch_f1 = multiclass_f1_score(predictions, targets, num_classes=7, average="macro")
    assert f1 == pytest.approx(float(torch_f1), abs=1e-6)


def test_absent_classes_are_left_out_not_counted_as_zero():
    targets, predictions = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    f1 = macro_f1(confusion_matrix(predictions, targets, 5))
    assert f1 == pytest.approx(2 / 3)
    with_zeros = f1_score(
        targets, predictions, labels=range(5), average="macro", zero_division=np.nan
    )
    assert f1 == pytest.approx(with_zeros)
    assert f1 != f1_score(targets, predictions, labels=range(5), average="macro", zero_division=0)


@given(samples, st.integers(1, 11))
def test_batches_add_up(pairs, size):
    counts = ClassificationCounts(7)
    whole = ClassificationCounts(7)
    targets, predictions = (torch.tensor(x) for x in zip(*pairs, strict=True))
    whole.update(predictions, targets)
    for p, t in zip(predictions.split(size), targets.split(size), strict=True):
        counts.update(p, t)
    assert torch.equal(counts.confusion, whole.confusion)
    assert counts.scores() == whole.scores()


def test_logits_are_taken_by_their_largest_entry():
    logits = torch.tensor([[0.1, 2.0, 0.3], [5.0, 1.0, 1.0]])
    targets = torch.tensor([1, 2])
    assert torch.equal(
        confusion_matrix(logits, targets, 3), confusion_matrix(torch.tensor([1, 0]), targets, 3)
    )


def test_no_samples_is_undefined():
    scores = ClassificationCounts(3).scores()
    assert all(math.isnan(v) for v in scores.values())


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (torch.tensor([0]), torch.tensor([0, 1]), r"shapes \(1,\) and \(2,\)"),
        (torch.tensor([3]), torch.tensor([0]), r"predictions in 0\.\.2 but got values in 3\.\.3"),
        (torch.tensor([0]), torch.tensor([-1]), r"targets in 0\.\.2 but got values in -1"),
        (torch.zeros(1, 4), torch.tensor([0]), r"scores of 3 classes but got shape \(1, 4\)"),
    ],
)
def test_misfits_are_named(predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predictions, targets, 3)


def test_a_class_count_must_be_positive():
    with pytest.raises(ValueError, match="positive integer but got 0"):
        ClassificationCounts(0)
