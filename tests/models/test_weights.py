"""What is done to a backbone while it serves is taken back bit for bit."""

from __future__ import annotations

import pytest
import torch

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.models.backbones import Backbone
from cl_lora.models.bottleneck import Bottleneck
from cl_lora.models.weights import Weights, changed
from cl_lora.support.errors import UserError

# Not the same in all entries: normalised inputs have the mean 0.
ROW = torch.linspace(-1, 1, 16)[None] ** 2


class One:
    """An update of one layer."""

    def modules(self):
        return ("blocks.0.mlp.fc1",)

    def delta(self, module):
        return 0.1 * ROW.expand(64, 16)


def composition(backbone: Backbone):
    factors = {"blocks.0.mlp.fc1": LoRAFactors(ROW, torch.ones(64, 1), 0.1)}
    bottleneck = Bottleneck.of(backbone.network, [Adapter("a", factors)])
    return bottleneck.weighted(torch.tensor([1.0]))


def other_weights(backbone: Backbone) -> Weights:
    kept = Weights.of(backbone.network)
    return Weights({name: value + 0.1 for name, value in kept.values.items()})


@pytest.mark.parametrize("make", [lambda b: One(), composition, other_weights])
def test_a_change_serves_and_is_taken_back(backbone: Backbone, make) -> None:
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    images = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    plain = backbone(images)
    with changed(backbone.network, make(backbone)):
        assert not torch.allclose(backbone(images), plain)
    assert torch.equal(backbone(images), plain)
    with pytest.raises(RuntimeError, match="inside"), changed(backbone.network, make(backbone)):
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_adapters_apart_serve_what_their_sum_serves(backbone: Backbone) -> None:
    images = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    with changed(backbone.network, One()):
        merged = backbone(images)
    with changed(backbone.network, composition(backbone)):
        torch.testing.assert_close(backbone(images), merged, rtol=1e-5, atol=1e-5)


def test_nothing_is_changed_by_none(backbone: Backbone) -> None:
    images = torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8)
    plain = backbone(images)
    with changed(backbone.network, None):
        assert torch.equal(backbone(images), plain)


def test_weights_of_another_network_are_refused_before_any_is_written(backbone: Backbone) -> None:
    plain = Weights.of(backbone.network)
    alien = Weights({**plain.values, "blocks.0.norm1.weight": torch.ones(3)})
    refused = pytest.raises(UserError, match=r"'blocks\.0\.norm1\.weight'")
    with refused, changed(backbone.network, alien):
        pass
    assert all(torch.equal(p, plain.values[n]) for n, p in backbone.network.named_parameters())
