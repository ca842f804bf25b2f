"""DARE: drop entries at random, rescale the rest, then merge by sum or by TIES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_lora.merging.kernels import Mask, Pipeline, Sparsify
from cl_lora.merging.pruning import densities
from cl_lora.merging.registry import DENSITY, IN_DELTA, Kernel, OptionSpec, is_count, register
from cl_lora.merging.spaces import SPACES, Sources, Stack
from cl_lora.merging.ties import ELECTION, FIXED_ELECTION, disjoint, is_fixed
from cl_lora.support.ranges import LARGEST_SEED
from cl_lora.support.seeding import torch_generator

DROP = {
    "density": DENSITY,
    "mask_seed": OptionSpec(
        0,
        lambda v: is_count(v, least=0),
        "an integer of at least 0",
        "the seed of the random masks; in a run they depend on the run's seed too",
        most=LARGEST_SEED,
    ),
}


def dare_mask(
    shape: torch.Size, density: float, mask_seed: int, *site: int | str, seed: int | None = None
) -> Tensor:
    """Return the bool mask that keeps each entry with probability ``density``.

    The generator is derived from mask_seed, the run's seed and the site, so the mask of one tensor
    depends on no other: adding an adapter or a module leaves earlier masks alone.

    Args:
        shape: of the tensor.
        density: the probability.
        mask_seed: the method's own seed.
        *site: the adapter's index, the module and the side (``delta``, ``A`` or ``B``).
        seed: the run's seed, so that the spread over seeds holds that of the masks; None outside
            a run.
    """
    return dare_draws(mask_seed, *site, seed=seed)(shape) < density


def dare_draws(
    mask_seed: int, *site: int | str, seed: int | None = None
) -> Callable[[torch.Size], Tensor]:
    """Return what draws the numbers in [0, 1) behind :func:`dare_mask`, row after row.

    The generator goes on where it stopped: a tensor that is drawn in parts is the same as a whole.
    """
    keys = site if seed is None else ("seed", seed, *site)
    generator = torch_generator(mask_seed, "dare", *keys)
    return lambda shape: torch.rand(shape, generator=generator)


def drop_and_rescale(sources: Sources, options: Mapping[str, Any]) -> Sparsify:
    """Return the sparsifier that keeps entries by :func:`dare_mask` and divides by the density.

    Args:
        sources: the adapters and the run's seed.
        options: ``density`` and ``mask_seed``.
    """
    each, mask_seed, seed = densities(options, sources.n), options["mask_seed"], sources.seed

    def sparsify(stack: Stack, module: str, side: str) -> Mask:
        draws = [dare_draws(mask_seed, index, module, side, seed=seed) for index in range(stack.n)]

        def mask(rows: Tensor) -> Tensor:
            for tensor, draw, density in zip(rows, draws, each, strict=True):
                tensor.mul_((draw(tensor.shape) < density).to(tensor.device)).div_(density)
            return rows

        return mask

    return sparsify


@register(
    "dare_linear",
    summary="drop entries at random, rescale the rest by 1/density, then the weighted sum",
    formula="sum_i alpha_i z_i dW_i / density, z_i ~ Bernoulli(density)",
    paper="Yu et al. 2024",
    linearity=IN_DELTA,
    random=lambda options: True,
    options=DROP,
)
def _dare_linear(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare randomly sparsified tensors for their sum."""
    return Pipeline(SPACES[space](sources), drop_and_rescale(sources, options), fixed=True)


@register(
    "dare_ties",
    summary="drop entries at random and rescale, then elect signs and average as TIES does",
    formula="sum_i alpha_i m_i T_i / sum_i m_i, T_i = z_i dW_i / density, "
    "m_i = [sign(T_i) = sign(sum_j T_j)]",
    paper="Yu et al. 2024; Yadav et al. 2023",
    linearity=FIXED_ELECTION,
    random=lambda options: True,
    options={**DROP, **ELECTION},
)
def _dare_ties(sources: Sources, space: str, options: Mapping[str, Any]) -> Kernel:
    """Prepare randomly sparsified tensors for their election."""
    return Pipeline(
        SPACES[space](sources),
        drop_and_rescale(sources, options),
        disjoint(options),
        by_rows=True,
        fixed=is_fixed(options),
    )
