"""Routing: tokens of a block, the style of an image, and passes with adapters for each image."""

from __future__ import annotations

import pytest
import torch
from tiny_vit import tiny_backbone
from torch import Tensor

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import applied, module_weight
from cl_lora.experiment.serving import OwnUpdate
from cl_lora.models.base import Backbone
from cl_lora.models.bottleneck import Bottleneck, mixed
from cl_lora.models.compute import Compute
from cl_lora.models.gaussians import Moments
from cl_lora.models.routing import Router, style, styles
from cl_lora.support.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()


def adapters(backbone: Backbone, count: int, blocks: tuple[int, ...] = (0, 1)) -> list[Adapter]:
    generator = torch.Generator().manual_seed(1)

    def factors(module: str, rank: int) -> LoRAFactors:
        d_out, d_in = module_weight(backbone.network, module).shape
        A, B = (torch.randn(*s, generator=generator) for s in ((rank, d_in), (d_out, rank)))
        return LoRAFactors(A, B, 0.3)

    names = [f"blocks.{k}.{layer}" for k in blocks for layer in ("attn.qkv", "mlp.fc1")]
    return [Adapter(str(i), {name: factors(name, 1 + i) for name in names}) for i in range(count)]


@pytest.mark.parametrize("block", [0, 1])
def test_going_on_from_the_tokens_of_a_block_is_the_whole_pass(
    backbone: Backbone, images: Tensor, block: int
) -> None:
    with torch.no_grad():
        tokens = backbone.tokens(images, block)
        assert tokens.shape == (6, 5, 16)  # four patches and the class
        torch.testing.assert_close(backbone.resume(tokens, block), backbone(images))
    assert not backbone.network.blocks[block]._forward_pre_hooks  # type: ignore[union-attr, index]


def test_tokens_of_block_0_are_the_embedded_patches(backbone: Backbone, images: Tensor) -> None:
    vit = backbone.network
    with torch.no_grad():
        embedded = vit._pos_embed(vit.patch_embed(backbone.normalise(images)))  # type: ignore[operator]
        torch.testing.assert_close(backbone.tokens(images, 0), embedded)
        torch.testing.assert_close(backbone.patches(embedded), embedded[:, 1:])


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_is_refused(
    backbone: Backbone, images: Tensor, block: int
) -> None:
    with pytest.raises(UserError, match=f"a block {block}"):
        backbone.tokens(images, block)


def test_style_is_mean_and_deviation_over_patches() -> None:
    patches = torch.randn(3, 7, 4)
    expected = [[*p.mean(0), *p.std(0, unbiased=False)] for p in patches]
    torch.testing.assert_close(style(patches), torch.tensor(expected))


def test_styles_do_not_depend_on_the_batches(backbone: Backbone, images: Tensor) -> None:
    compute, labels = Compute(CPU, bf16=False), torch.arange(6)
    whole = next(styles(compute, backbone, [(images, labels)], 1))[0]
    parts = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    torch.testing.assert_close(
        torch.cat([z for z, _ in styles(compute, backbone, parts, 1)]), whole
    )


def test_the_router_tells_domains_apart_whatever_the_classes_are() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(60) % 3
    classes = 20 * torch.randn(3, 4, generator=generator)  # far more apart than the domains

    def domain(shift: float) -> Tensor:
        noise = torch.randn(60, 4, generator=generator)
        return classes[labels] + noise + shift * torch.tensor([1.0, 0, 0, 0])

    results = []
    for shift in (-4.0, 4.0):
        moments = Moments(3, 4)
        moments.add(domain(shift), labels)
        results.append(moments.result())
    router = Router(results)
    assert (router.hard(domain(-4.0)) == 0).float().mean() > 0.98
    assert (router.hard(domain(4.0)) == 1).float().mean() > 0.98
    soft = router.soft(domain(4.0), temperature=1e6)
    torch.testing.assert_close(soft, torch.full_like(soft, 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(soft.sum(1), torch.ones(60))


def test_one_pass_with_weights_of_every_image_is_each_image_merged_by_itself(
    backbone: Backbone, images: Tensor
) -> None:
    made = adapters(backbone, 3)
    weights = torch.rand(6, 3, generator=torch.Generator().manual_seed(3))
    network = backbone.network
    with torch.no_grad():
        bare = backbone(images)
        with mixed(network, Bottleneck.of(network, made)) as weigh:
            weigh(weights)
            together = backbone(images)
        assert backbone(images).equal(bare)
        for image, row, found in zip(images, weights, together, strict=True):
            dense = {
                m: sum(w * a.factors[m].delta() for w, a in zip(row, made, strict=True))
                for m in made[0].factors
            }
            with applied(network, OwnUpdate(Adapter("sum", {}, deltas=dense))):
                torch.testing.assert_close(found, backbone(image[None])[0], atol=1e-4, rtol=1e-4)
