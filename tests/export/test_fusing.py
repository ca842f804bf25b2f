"""q, k and v as one module, and what is lost by cutting, against dense float64 formulas."""

import pytest
import torch

from cl_lora.adapters import LoRAFactors
from cl_lora.export.fusing import fused, low_rank
from cl_lora.merging.update import entry_delta
from cl_lora.support.errors import UserError

D = 12


def factors(rank, seed, d_out=D, d_in=D):
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, d_in, generator=draw)
    return LoRAFactors(A, torch.randn(d_out, rank, generator=draw), 1.5)


def dense(seed, d_out=D):
    return torch.randn(d_out, D, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "parts",
    [
        {"q": factors(2, 0), "k": factors(3, 1), "v": factors(1, 2)},
        {"v": factors(2, 0)},
        {"v": factors(2, 0), "q": factors(1, 1)},
        {"q": dense(0), "v": factors(2, 1)},
        {"k": dense(3)},
    ],
    ids=["three", "v", "v and q", "mixed", "dense"],
)
def test_the_fused_update_stacks_those_of_q_k_and_v(parts):
    entries = {f"blocks.0.attn.qkv.{part}": entry for part, entry in parts.items()}
    entries["blocks.0.mlp.fc1"] = factors(2, 9)
    found = fused(entries)
    assert list(found) == ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]
    nothing = torch.zeros(D, D)
    wanted = torch.cat([entry_delta(parts[p]) if p in parts else nothing for p in "qkv"])
    torch.testing.assert_close(entry_delta(found["blocks.0.attn.qkv"]), wanted)
    assert found["blocks.0.mlp.fc1"] is entries["blocks.0.mlp.fc1"]
    if not any(isinstance(entry, torch.Tensor) for entry in parts.values()):
        assert found["blocks.0.attn.qkv"].rank == sum(entry.rank for entry in parts.values())


def test_a_fused_module_that_was_adapted_as_one_stays_as_it_is():
    entries = {"blocks.0.attn.qkv": factors(2, 0, d_out=3 * D)}
    assert fused(entries) == entries


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_of_cutting_is_that_of_a_dense_svd(rank):
    entries = {"a": factors(5, 0), "b": dense(1, d_out=20), "c": factors(2, 2)}
    found = low_rank(entries, rank, dense=False)
    lost = total = 0.0
    for module, entry in entries.items():
        singular = torch.linalg.svdvals(entry_delta(entry).double())
        lost += float(singular[rank:].square().sum())
        total += float(singular.square().sum())
        assert found.factors[module].rank <= rank
    assert found.error == pytest.approx((lost / total) ** 0.5, rel=1e-5)


def test_without_cutting_nothing_is_lost():
    entries = {"a": factors(3, 0), "b": dense(1)}
    found = low_rank(entries, None, dense=True)
    assert (found.error, found.dense, found.full) == (0.0, 1, 0)
    assert found.ranks == (3, D)
    for module, entry in entries.items():
        torch.testing.assert_close(found.factors[module].delta(), entry_delta(entry))


def test_ranks_that_add_up_beyond_the_matrix_are_written_as_its_rank():
    entries = {"a": factors(30, 0)}
    found = low_rank(entries, None, dense=False)
    assert (found.ranks, found.full) == ((D, D), 1)
    torch.testing.assert_close(
        found.factors["a"].delta(), entries["a"].delta(), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rank", "as_dense", "message"),
    [
        (None, False, r"dense in 1 of its 2 modules \(e.g. b\).*--rank R.*--dense"),
        (0, False, "--rank to be at least 1 but got 0"),
        (3, True, "give one of the two"),
    ],
)
def test_what_does_not_go_is_one_sentence(rank, as_dense, message):
    with pytest.raises(UserError, match=message):
        low_rank({"a": factors(1, 0), "b": dense(1)}, rank, as_dense)
