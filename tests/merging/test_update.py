"""An update on its own: dense access, truncation, and the PEFT folder peft itself reads."""

import copy

import pytest
import torch
from merge_reference import SHAPES, Toy, toy_adapters

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import Update, merge
from cl_lora.support.errors import UserError


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return Toy()


def _added(base, update):
    """The model with W0 + delta, so that each layer gives base + x @ delta.T."""
    model = copy.deepcopy(base)
    for module in update.modules():
        model.get_submodule(module).weight.data += update.delta(module)
    return model


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    ("method", "ranks"), [("task_arithmetic", (2, 3)), ("ties", (2, 3)), ("cat", (1, 1))]
)
def test_peft_reads_a_saved_update_and_computes_the_same(base, tmp_path, method, ranks, rank):
    from peft import PeftModel

    update = merge(toy_adapters(2, ranks), method)
    update.save(tmp_path / "merged", rank)
    expected = _added(base, update if rank is None else update.truncate(rank))
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "merged")
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-4)
    layer, plain = model.get_submodule("base_model.model.out"), base.out
    torch.testing.assert_close(
        layer(x), plain(x) + x @ expected.out.weight.sub(plain.weight).T, rtol=1e-4, atol=1e-4
    )


def test_a_dense_delta_is_stored_exactly(tmp_path):
    update = merge(toy_adapters(2), "ties")
    update.save(tmp_path / "merged")
    loaded = Adapter.load(tmp_path / "merged")
    for module, shape in SHAPES.items():
        assert torch.equal(loaded.factors[module].delta(), update.delta(module))
        assert loaded.factors[module].rank == min(shape)
    assert loaded.training["merge"]["method"] == "ties"
    assert loaded.training["merge"]["divisor"] == "count"


def test_an_unknown_module_is_named():
    update = merge(toy_adapters(1))
    with pytest.raises(UserError, match=r"'blocks.0.k'.*did you mean.*blocks.0.q"):
        update.delta("blocks.0.k")


@pytest.mark.parametrize("rank", [0, -1])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_rank_below_one_is_refused(method, rank):
    with pytest.raises(UserError, match=f"rank of at least 1 but got {rank}"):
        merge(toy_adapters(2), method).truncate(rank)


def test_truncation_is_recorded_and_leaves_the_original_alone():
    update = Update({"m": torch.diag(torch.tensor([3.0, 2.0, 1.0]))}, {"method": "x", "rank": None})
    small = update.truncate(2)
    torch.testing.assert_close(small.delta("m"), torch.diag(torch.tensor([3.0, 2.0, 0.0])))
    assert (small.variant["rank"], update.variant["rank"]) == (2, None)
    assert isinstance(small.entries["m"], LoRAFactors)
    torch.testing.assert_close(update.truncate(9).delta("m"), update.delta("m"))


def test_an_update_keeps_the_head_that_serves_it(tmp_path):
    update = merge(toy_adapters(2))
    head = {"weight": torch.randn(3, 5), "bias": torch.zeros(3)}
    update.save(tmp_path / "merged", head=head)
    loaded = Adapter.load(tmp_path / "merged")
    assert loaded.head.keys() == head.keys()
    assert all(torch.equal(loaded.head[key], value) for key, value in head.items())
