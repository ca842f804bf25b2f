"""Exact algebra on low-rank factors."""

import pytest
import torch

from cl_lora.adapters import LoRAFactors, concatenate, truncate
from cl_lora.support.errors import UserError


def _factors(rank, shape=(9, 6), scaling=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LoRAFactors(
        torch.randn(rank, shape[1], generator=generator, dtype=torch.float64),
        torch.randn(shape[0], rank, generator=generator, dtype=torch.float64),
        scaling,
    )


def test_delta_worked_by_hand():
    f = LoRAFactors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), 0.5)
    assert f.delta().tolist() == [[1.5, 3.0], [2.0, 4.0]]
    assert (f.rank, f.shape) == (1, (2, 2))


def test_concatenation_is_the_weighted_sum():
    parts = [_factors(r, scaling=s, seed=r) for r, s in ((1, 0.5), (3, 2.0), (2, -1.0))]
    total = concatenate(parts, torch.tensor([1.0, -0.5, 2.0]))
    expected = parts[0].delta() - 0.5 * parts[1].delta() + 2 * parts[2].delta()
    torch.testing.assert_close(total.delta(), expected)
    assert total.rank == 6


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (4, 4)])
@pytest.mark.parametrize("own", [3, 8, 12])
@pytest.mark.parametrize("rank", [1, 2, 5, 7, 10, 20])
def test_truncation_is_the_truncated_svd(rank, own, shape):
    f = _factors(own, shape, scaling=-0.7)
    u, s, vh = torch.linalg.svd(f.delta(), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close(truncate(f, rank).delta(), expected)
    # Stacked factors may have more rows than the weight: no more than its rank is then left.
    assert truncate(f, rank).rank == (own if rank >= own else min(rank, *shape))


@pytest.mark.parametrize("rank", [0, -3])
def test_a_truncation_rank_below_one(rank):
    with pytest.raises(UserError, match=f"at least 1 but got {rank}"):
        truncate(_factors(2), rank)


@pytest.mark.parametrize(
    ("A", "B"), [((2, 5), (4, 3)), ((5,), (4, 1)), ((2, 5, 1), (4, 2)), ((2, 5), (2, 4))]
)
def test_factors_that_do_not_share_a_rank(A, B):
    with pytest.raises(UserError, match="with one rank r but got"):
        LoRAFactors(torch.ones(A), torch.ones(B))
