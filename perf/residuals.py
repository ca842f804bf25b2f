"""The residuals of adapters (PERU-LoRA): QR of the factors against the SVD of dense products."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_lora import Adapter
from cl_lora.merging.residuals import Residue, SingularDelta, make_residual
from perf.common import interleaved, random_adapters, report

ADAPTERS, RANK, Q = 8, 128, 16
WIDTH, HIDDEN, BLOCKS = 768, 3072, 12
DENSE_BLOCKS = 3
"""Of the blocks, how many both sides of the ratio decompose: all take the dense one minutes."""


def shapes(blocks: int) -> dict[str, tuple[int, int]]:
    """Return the (d_out, d_in) of every linear layer in the blocks of ViT-B."""
    layers = {
        **{f"attn.qkv.{p}": (WIDTH, WIDTH) for p in "qkv"},
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (HIDDEN, WIDTH),
        "mlp.fc2": (WIDTH, HIDDEN),
    }
    return {f"blocks.{b}.{name}": shape for b in range(blocks) for name, shape in layers.items()}


def through_factors(adapters: list[Adapter]) -> list[Residue]:
    residual = make_residual({"name": "low_rank", "q": Q})
    return [residual.take(adapter.factors) for adapter in adapters]


def through_dense(adapters: list[Adapter], modules: list[str]) -> list[Residue]:
    return [Residue({m: truncated_svd(a.factors[m].delta()) for m in modules}) for a in adapters]


def truncated_svd(delta: Tensor) -> SingularDelta:
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return SingularDelta(u[:, :Q].clone(), s[:Q].clone(), vh[:Q].clone())


def relative(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def main() -> None:
    every, some = shapes(BLOCKS), list(shapes(DENSE_BLOCKS))
    adapters = random_adapters(ADAPTERS, RANK, every)
    subset = [Adapter(a.name, {module: a.factors[module] for module in some}) for a in adapters]
    result: dict[str, list[Residue]] = {}

    def ours() -> None:
        result["ours"] = through_factors(subset)

    def dense() -> None:
        result["dense"] = through_dense(subset, some)

    # No warm-up of its own: each dense decomposition takes seconds and all repeats are shown.
    found = interleaved({"QR of factors": ours, "SVD of dense products": dense}, warmup=False)
    whole = interleaved({"QR of factors, all blocks": lambda: through_factors(adapters)}, 1, False)
    worst, index, module = max(
        (relative(a.delta(module), b.delta(module)), i, module)
        for i, (a, b) in enumerate(zip(result["ours"], result["dense"], strict=True))
        for module in some
    )
    # Where the two differ most: how far either is from the same in float64.
    f = subset[index].factors[module]
    exact = truncated_svd(f.scaling * f.B.double() @ f.A.double()).delta()
    report(
        "residuals",
        f"PERU-LoRA: {ADAPTERS} rank-{RANK} adapters of every linear layer of ViT-B truncated to "
        f"q = {Q}; both sides of the ratio on {DENSE_BLOCKS} of {BLOCKS} blocks",
        [{"case": name, **values} for name, values in {**found, **whole}.items()],
        times_faster=found["SVD of dense products"]["cpu_s"] / found["QR of factors"]["cpu_s"],
        largest_relative_difference=worst,
        there_to_float64={
            name: relative(result[key][index].delta(module).double(), exact)
            for key, name in (("ours", "QR of factors"), ("dense", "SVD of dense products"))
        },
        aim=">= 20 times, difference < 1e-4",
    )


if __name__ == "__main__":
    main()
