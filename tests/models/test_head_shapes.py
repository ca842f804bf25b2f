"""Shapes of heads: what they compute, how they are drawn, and what lies of them on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPRegressor
from torch import nn

from cl_lora.models.heads import (
    HEAD_SHAPES,
    ConstantHead,
    MLPHead,
    head_of,
    new_head,
    new_linear_head,
)
from cl_lora.strategies.config import TrainingConfig
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import torch_generator

MLP_KEYS = {"norm.weight", "norm.bias", "hidden.weight", "hidden.bias", "out.weight", "out.bias"}
FEATURES = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)) * 50 + 3


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_linear_head_is_drawn_as_it_always_was() -> None:
    """Bit for bit: runs of before shapes could be chosen go on with the head they began with."""
    for keys in ((), ("apart", "1")):
        weight = torch.empty(3, 4)
        generator = torch_generator(7, "head", *keys)
        nn.init.trunc_normal_(weight, std=0.02, generator=generator)
        head = new_head("linear", 4, 3, seed=7, keys=keys)
        assert torch.equal(head.weight, weight)
        assert not head.bias.any()
    assert same(new_linear_head(4, 3, seed=7), new_head("linear", 4, 3, seed=7, hidden=9))


@pytest.mark.parametrize("shape", HEAD_SHAPES)
def test_a_head_depends_on_the_seed_and_the_keys_alone(shape: str) -> None:
    torch.manual_seed(1)
    one = new_head(shape, 4, 3, 0, 5)
    torch.manual_seed(2)
    assert same(one, new_head(shape, 4, 3, 0, 5))
    assert not same(one, new_head(shape, 4, 3, 1, 5))
    assert not same(one, new_head(shape, 4, 3, 0, 5, ("other",)))


def test_an_mlp_is_a_normalisation_and_two_layers() -> None:
    """In numpy; behind the normalisation scikit-learn's perceptron computes the same."""
    head = new_head("mlp", 6, 2, seed=0, hidden=5)
    assert isinstance(head, MLPHead)
    with torch.no_grad():
        head.norm.weight.uniform_(0.5, 2)
        head.norm.bias.uniform_(-1, 1)
        head.hidden.bias.uniform_(-1, 1)
        head.out.bias.uniform_(-1, 1)
    w = {k: v.double().numpy() for k, v in head.state_dict().items()}
    x = FEATURES.double().numpy()
    unit = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = unit * w["norm.weight"] + w["norm.bias"]
    hidden = np.maximum(normed @ w["hidden.weight"].T + w["hidden.bias"], 0)
    expected = hidden @ w["out.weight"].T + w["out.bias"]
    found = head(FEATURES).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    other = MLPRegressor(hidden_layer_sizes=(5,), activation="relu", max_iter=1)
    other.partial_fit(normed, np.zeros((len(x), 2)))
    other.coefs_ = [w["hidden.weight"].T, w["out.weight"].T]
    other.intercepts_ = [w["hidden.bias"], w["out.bias"]]
    np.testing.assert_allclose(other.predict(normed), found, rtol=1e-4, atol=1e-6)


def test_large_features_do_not_silence_the_hidden_units() -> None:
    """What the normalisation is for: the size and the offset of features make no difference."""
    head = new_head("mlp", 6, 2, seed=0)
    torch.testing.assert_close(head(FEATURES * 1000 + 1e4), head(FEATURES), rtol=1e-2, atol=1e-3)
    hidden = torch.relu(head.hidden(head.norm(FEATURES)))
    assert 0.3 < (hidden > 0).float().mean() < 0.7
    # He et al.: the mean square of a unit before ReLU is twice that of the input.
    big = new_head("mlp", 256, 2, seed=0)
    normed = big.norm(torch.randn(64, 256, generator=torch.Generator().manual_seed(1)))
    assert big.hidden(normed).square().mean().item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("shape", "keys"), [("linear", {"weight", "bias"}), ("mlp", MLP_KEYS)])
def test_what_lies_on_disk_makes_the_same_head(shape: str, keys: set[str]) -> None:
    head = new_head(shape, 6, 3, seed=2, hidden=5)
    state = head.state_dict()
    again = head_of(state)
    assert set(state) == keys
    assert type(again) is type(head)
    assert same(head, again)
    assert torch.equal(head(FEATURES), again(FEATURES))
    # A copy: training it leaves what was read as it was.
    with torch.no_grad():
        next(iter(again.parameters())).add_(1)
    assert same(head, head_of(state))


@pytest.mark.parametrize(
    ("keys", "got"),
    [((), "none"), (("weight",), "weight"), (("norm.weight", "hidden.weight"), "hidden.weight")],
)
def test_a_state_that_is_of_no_head_is_refused(keys: tuple[str, ...], got: str) -> None:
    state = {key: torch.zeros(2, 2) for key in keys}
    with pytest.raises(UserError, match=f"Expected the weights of a head, .* but got {got}"):
        head_of(state)


def test_a_constant_says_the_same_of_everything() -> None:
    outputs = torch.tensor([1.0, -2.0])
    assert ConstantHead(outputs)(FEATURES).tolist() == [[1.0, -2.0]] * len(FEATURES)
    assert ConstantHead(outputs)(FEATURES[:0]).shape == (0, 2)


def test_the_training_says_which_head() -> None:
    config = TrainingConfig(head="own", head_shape="mlp", head_hidden=5)
    assert same(config.new_head(6, 3, 2, "key"), new_head("mlp", 6, 3, 2, 5, ("key",)))
    assert TrainingConfig().new_head(6, 3, 2).weight.shape == (3, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_shape": "mpl"}, r"Unknown strategy\.head_shape 'mpl': did you mean 'mlp'"),
        ({"head_hidden": 0}, r"strategy\.head_hidden to be at least 1 but got 0"),
        ({"patience": 0}, r"strategy\.patience to be at least 1 but got 0"),
        (
            {"head": "per_experience", "head_shape": "mlp"},
            r"head=per_experience does not go with head_shape=mlp, whose weighted sum is no head",
        ),
    ],
)
def test_heads_that_cannot_be(settings, message) -> None:
    with pytest.raises(UserError, match=message):
        TrainingConfig(**settings)


def test_heads_that_are_summed_are_those_whose_sum_is_a_head() -> None:
    """What ``mixes`` says, of the weights and of the outputs."""
    for name, shape in HEAD_SHAPES.items():
        heads = [new_head(name, 6, 2, seed=s, hidden=5) for s in range(2)]
        total = {k: sum(h.state_dict()[k] for h in heads) for k in heads[0].state_dict()}
        outputs = sum(head(FEATURES) for head in heads)
        equal = torch.allclose(head_of(total)(FEATURES), outputs, rtol=1e-3, atol=1e-4)
        assert equal == shape.mixes
