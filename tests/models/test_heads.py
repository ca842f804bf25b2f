from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn.functional import normalize

from cl_lora.models.heads import PrototypeHead, head_of, merge_heads, new_linear_head


def test_new_head_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = new_linear_head(4, 3, seed=0)
    torch.manual_seed(2)
    two, other = new_linear_head(4, 3, seed=0), new_linear_head(4, 3, seed=1)
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)


def test_merged_heads_are_the_weighted_sum() -> None:
    heads = [new_linear_head(4, 3, seed=s).state_dict() for s in range(3)]
    x = torch.randn(5, 4)
    alpha = torch.tensor([0.5, -1.0, 2.0])
    merged = head_of(merge_heads(heads, alpha))
    expected = sum(a * head_of(h)(x) for a, h in zip(alpha, heads, strict=True))
    torch.testing.assert_close(merged(x), expected)
    per_module = torch.stack([alpha + 1, alpha - 1])
    again = merge_heads(heads, per_module)
    torch.testing.assert_close(again["weight"], merged.weight.detach())


def test_prototypes_are_the_nearest_class_mean_by_cosine() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(30, 6), torch.arange(30) % 3
    head = PrototypeHead(features, labels, classes=3)
    unit = normalize(features).numpy()
    means = np.stack([unit[labels.numpy() == c].mean(0) for c in range(3)])
    query = torch.randn(9, 6)
    expected = cosine_similarity(query.numpy(), means)
    np.testing.assert_allclose(head(query).detach().numpy() / head.scale, expected, atol=1e-5)
