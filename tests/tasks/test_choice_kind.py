"""The kind of multiple choice in words, against a whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cl_lora.evaluation.metrics import EXACT_MATCH, OPTION_ACCURACY
from cl_lora.models.heads import TokenHead, head_of
from cl_lora.models.language import token_features
from cl_lora.support.errors import UserError
from cl_lora.tasks import CHOICE, LETTERS, Task

TASK = Task("quiz", CHOICE, LETTERS[:3])


def outputs_of(logits: torch.Tensor, letters: list[int]) -> torch.Tensor:
    """Return what the head of these letters makes of a vocabulary's logits."""
    tokens = torch.tensor(letters)
    made: torch.Tensor = TokenHead(tokens)(token_features(logits, tokens))
    return made


def test_a_hand_worked_example() -> None:
    # Tokens: B, x, A, y. The letters are 2 and 0; the rest has log(e^1 + e^3), at most 3.
    logits = torch.tensor([[0.5, 1.0, 2.0, 3.0]])
    found = token_features(logits, torch.tensor([2, 0]))
    assert found.tolist() == [[2.0, 0.5, pytest.approx(math.log(math.e + math.e**3)), 3.0]]
    task = Task("two", CHOICE, LETTERS[:2])
    assert task.outputs == 4
    expected = math.log(sum(math.exp(v) for v in (0.5, 1, 2, 3))) - 2.0
    assert float(task.loss(found, torch.tensor([0]))) == pytest.approx(expected)
    # A is likelier than B, but y is likelier than both.
    assert CHOICE.predictions(task, found).tolist() == [-1]
    assert CHOICE.hits(found, torch.tensor([0])).tolist() == [False]


@given(st.integers(0, 2**31), st.integers(2, 5))
def test_the_loss_is_that_of_the_whole_vocabulary(seed: int, options: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 12, generator=generator, dtype=torch.float64) * 4
    letters = torch.randperm(12, generator=generator)[:options]
    right = torch.randint(0, options, (6,), generator=generator)
    task = Task("quiz", CHOICE, LETTERS[:options])
    outputs = outputs_of(logits, letters.tolist())
    assert outputs.shape == (6, task.outputs)
    whole = F.cross_entropy(logits, letters[right])
    torch.testing.assert_close(task.loss(outputs, right), whole)
    likeliest = logits.argmax(dim=1) == letters[right]
    assert torch.equal(CHOICE.hits(outputs, right), likeliest)
    counts = task.accumulator()
    counts.update(outputs[:4], right[:4])
    counts.update(outputs[4:], right[4:])
    among = (logits[:, letters].argmax(dim=1) == right).double().mean()
    assert counts.scores() == {
        EXACT_MATCH.name: pytest.approx(float(likeliest.double().mean())),
        OPTION_ACCURACY.name: pytest.approx(float(among)),
    }


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_letters_that_a_task_has_not_are_among_the_rest(seed: int, options: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    letters = torch.randperm(12, generator=generator)[:6]
    few = TokenHead(letters[:options])(token_features(logits, letters))
    torch.testing.assert_close(few, outputs_of(logits, letters[:options].tolist()))


def test_the_gradient_is_that_of_the_whole_vocabulary() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    letters, right = torch.tensor([7, 2, 4]), torch.tensor([0, 2, 1, 1])
    loss = TASK.loss(outputs_of(logits, letters.tolist()), right)
    (found,) = torch.autograd.grad(loss, logits)
    (whole,) = torch.autograd.grad(F.cross_entropy(logits, letters[right]), logits)
    torch.testing.assert_close(found, whole)


def test_a_head_comes_back_from_its_state() -> None:
    head = TokenHead(torch.tensor([7, 2, 4]))
    again = head_of(head.state_dict())
    features = torch.randn(3, 8)
    torch.testing.assert_close(again(features), head(features))
    assert not list(again.parameters())


def test_the_trivial_predictor_answers_the_commonest_letter() -> None:
    outputs = TASK.constant(np.array([2, 1, 2, 0]))
    assert outputs.shape == (5,)
    assert CHOICE.predictions(TASK, outputs[None]).tolist() == [2]


def test_strata_are_the_letters_that_are_right() -> None:
    strata, names = CHOICE.strata(TASK, np.array([2, 0, 2]))
    assert strata.tolist() == [1, 0, 1]
    assert names == ("A", "C")


def test_answers_are_drawn_as_the_model_gives_them() -> None:
    # With all weight on one letter that letter is drawn, so the loss is that of its own.
    outputs = torch.tensor([[50.0, 0.0, 0.0, 0.0, 0.0]]).repeat(3, 1)
    drawn = TASK.drawn_loss(outputs, torch.Generator().manual_seed(0))
    assert float(drawn) == pytest.approx(0.0, abs=1e-6)


def test_no_samples_have_no_score() -> None:
    assert all(math.isnan(value) for value in TASK.accumulator().scores().values())


def test_targets_are_letters_of_the_task() -> None:
    with pytest.raises(UserError, match="from 0 to 2, the labels of task 'quiz', but got 0 to 3"):
        TASK.check_targets(np.array([0, 3]), "quiz")
