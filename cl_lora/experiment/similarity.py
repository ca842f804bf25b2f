"""How alike upstream adapters and one of a downstream task make the outputs of adapted layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cl_lora.adapters import Adapter
from cl_lora.adapters.injection import applied
from cl_lora.benchmarks.batches import batches
from cl_lora.benchmarks.splits import Indices
from cl_lora.evaluation.similarity import linear_cka
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.serving import OwnUpdate, Workbench
from cl_lora.experiment.stages import Stage, shots_of
from cl_lora.run_folder.records import Similarity
from cl_lora.support.seeding import numpy_generator

_SAMPLES = 200
"""Train samples of the downstream task on which features are compared."""

Pair = tuple[int, tuple[int, ...]]
"""A downstream experience and its upstream ones."""


def pairs_of(stages: Sequence[Stage]) -> tuple[Pair, ...]:
    """Return each downstream experience with the members that are adapted to it."""
    found = ((s.evaluated[0], s.members) for s in stages if shots_of(s) is not None)
    return tuple(dict.fromkeys(found))


def similarities(
    bench: Workbench, pair: Pair, advance: Callable[[], None] = lambda: None
) -> Iterator[Similarity]:
    """Yield the linear CKA of every upstream adapter with the downstream one, by module.

    Compared are the outputs of each adapted layer, the mean over tokens, on train samples of the
    downstream experience: one model with the upstream adapter alone, one with the adapter that was
    trained on the whole downstream task (Asadi et al. 2024).

    Args:
        bench: a seed of a run, whose bank has an adapter of the downstream experience too.
        pair: the downstream experience, and the upstream ones.
        advance: called after each adapter.
    """
    j, members = pair
    pool = bench.benchmark.experiences[j].train
    chosen = numpy_generator(bench.seed, "similarity", j).permutation(pool)[:_SAMPLES]
    indices: Indices = np.sort(chosen)
    bank = bench.banks[FRESH.name]
    target = _outputs(bench, bank[j], j, indices)
    for m in members:
        outputs = _outputs(bench, bank[m], j, indices)
        advance()
        # A language model's first decoder block reads the same start token whatever the question.
        differing = [k for k in outputs if _differ(outputs[k]) and _differ(target[k])]
        for module in differing or list(outputs)[:1]:
            value = linear_cka(outputs[module], target[module])
            yield Similarity(bench.seed, j, module, m, value)


def _differ(outputs: NDArray[Any]) -> bool:
    return bool((outputs != outputs[0]).any())


def _outputs(
    bench: Workbench, adapter: Adapter, j: int, indices: Indices
) -> dict[str, NDArray[Any]]:
    """Return the outputs (N, d_out) of every adapted layer under one adapter."""
    # The mean over tokens must not be one over the padding that others of a batch ask for.
    size = 1 if bench.backbone.pads else bench.batch_size
    backbone, found = bench.backbone, {m: list[Tensor]() for m in adapter.modules()}

    def keep(module: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda _layer, _inputs, output: found[module].append(
            output.detach().float().mean(dim=1).cpu()
        )

    with ExitStack() as hooks, applied(backbone.network, OwnUpdate(adapter)):
        for module in adapter.modules():
            layer = backbone.network.get_submodule(module)
            hooks.callback(layer.register_forward_hook(keep(module)).remove)
        experience = bench.benchmark.experiences[j]
        for _ in bench.compute.features(
            backbone, batches(experience, indices, size, backbone.encode)
        ):
            pass
    return {module: torch.cat(parts).numpy() for module, parts in found.items()}
