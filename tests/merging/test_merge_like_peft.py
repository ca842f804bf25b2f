"""Parity with peft's add_weighted_adapter on the same adapters, method by method."""

import copy

import pytest
import torch
from merge_reference import SHAPES, Toy, relative_error, toy_adapters

from cl_lora.merging import merge
from cl_lora.merging.dare import dare_mask

pytestmark = pytest.mark.filterwarnings("ignore:The density 1.0:UserWarning")

WEIGHTS = [[1.0, 1.0, 1.0], [0.7, 0.1, 1.9], [1.3, -0.4, 0.25]]
MASK_SEED = 7


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def with_peft(base, tmp_path):
    """Return a function: adapters -> a peft model that has them as e0, e1, ..."""
    from peft import PeftModel

    def load(adapters):
        for i, adapter in enumerate(adapters):
            adapter.save(tmp_path / f"e{i}")
        model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "e0", adapter_name="e0")
        for i in range(1, len(adapters)):
            model.load_adapter(tmp_path / f"e{i}", adapter_name=f"e{i}")
        return model

    return load


def _peft_merge(model, n, weights, kind, **options):
    names = [f"e{i}" for i in range(n)]
    model.base_model.add_weighted_adapter(names, weights, "merged", kind, **options)
    layers = model.base_model.model
    return {m: layers.get_submodule(m).get_delta_weight("merged").detach() for m in SHAPES}


def _compare(update, theirs):
    for module, delta in theirs.items():
        assert relative_error(update.delta(module), delta) < 1e-5, module


@pytest.fixture
def same_masks(monkeypatch):
    """Let peft's DARE draw our masks, in the order in which it asks for them."""
    from peft.utils import merge_utils

    def install(n, sides):
        sites = ((i, m, side) for m in SHAPES for side in sides for i in range(n))

        def random_pruning(tensor, density, rescale):
            mask = dare_mask(tensor.shape, density, MASK_SEED, *next(sites))
            return tensor * mask / density if rescale else tensor * mask

        monkeypatch.setattr(merge_utils, "random_pruning", random_pruning)

    return install


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_linear_in_factors(with_peft, method, rank, weights):
    adapters = toy_adapters(3, rank)
    theirs = _peft_merge(with_peft(adapters), 3, weights, "linear")
    _compare(merge(adapters, method, weights, space="factors"), theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("space", ["factors", "delta"])
@pytest.mark.parametrize("ranks", [3, (1, 4, 2)])
def test_cat(with_peft, ranks, space, weights):
    adapters = toy_adapters(3, ranks)
    theirs = _peft_merge(with_peft(adapters), 3, weights, "cat")
    _compare(merge(adapters, "cat", weights, space=space), theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("elect", ["total", "frequency"])
def test_ties_in_factors(with_peft, elect, rank, density, weights):
    adapters = toy_adapters(3, rank)
    theirs = _peft_merge(
        with_peft(adapters), 3, weights, "ties", density=density, majority_sign_method=elect
    )
    ours = merge(adapters, "ties", weights, space="factors", density=density, elect=elect)
    _compare(ours, theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_magnitude_prune_in_factors(with_peft, density, weights):
    adapters = toy_adapters(3, 4)
    theirs = _peft_merge(with_peft(adapters), 3, weights, "magnitude_prune", density=density)
    _compare(merge(adapters, "magnitude_prune", weights, space="factors", density=density), theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_in_factors(with_peft, same_masks, method, density, weights):
    adapters = toy_adapters(3, 4)
    model = with_peft(adapters)
    same_masks(3, ("A", "B"))
    theirs = _peft_merge(model, 3, weights, method, density=density)
    ours = merge(adapters, method, weights, space="factors", density=density, mask_seed=MASK_SEED)
    _compare(ours, theirs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("ranks", [3, (1, 4, 2)])
@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "dare_linear", "dare_ties", "svd"])
def test_truncated_merges_in_delta_are_its_svd_merges(
    with_peft, same_masks, method, ranks, rank, weights
):
    adapters = toy_adapters(3, ranks)
    model = with_peft(adapters)
    same_masks(3, ("delta",))
    options = {} if method == "svd" else {"density": 0.4}
    kind = method if method == "svd" else f"{method}_svd"
    theirs = _peft_merge(model, 3, weights, kind, svd_rank=rank, **options)
    seed = {"mask_seed": MASK_SEED} if method.startswith("dare") else {}
    _compare(merge(adapters, method, weights, rank=rank, **options, **seed), theirs)


def test_svd_without_a_rank_takes_the_largest_as_peft_does(with_peft):
    adapters = toy_adapters(3, (1, 4, 2))
    theirs = _peft_merge(with_peft(adapters), 3, [1.0, 0.5, 2.0], "svd")
    update = merge(adapters, "svd", [1.0, 0.5, 2.0])
    assert update.variant["rank"] == "largest"
    assert {entry.rank for entry in update.entries.values()} == {4}
    _compare(update, theirs)


def test_an_adapter_twice_gives_four_times_its_update_in_factors():
    (adapter,) = toy_adapters(1)
    update = merge([adapter, adapter], "linear", [1.0, 1.0], space="factors")
    for module, f in adapter.factors.items():
        torch.testing.assert_close(update.delta(module), 4 * f.delta())
