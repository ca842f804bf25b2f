"""One step of learning coefficients (TIES in delta), without the model: plan against fresh merge.

Measured: from alpha to the dense weights W0 + delta, and from a given gradient of these weights
back to alpha. The model's forward and backward lie between the two and are left out of both.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cl_lora.merging import Plan, prepare
from perf.common import interleaved, report, vit_base_adapters

SHAPES = "4 adapters of rank 16, q k v of 12 ViT-B blocks (36 modules 768 x 768)"


def step(plan: Plan, weights: Mapping[str, torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the coefficients for a given one of every merged weight."""
    alpha = torch.full((plan.n,), 0.5, dtype=torch.float64, requires_grad=True)
    update = plan.combine(alpha)
    merged = [weight + update.delta(module) for module, weight in weights.items()]
    torch.autograd.backward(merged, [gradient] * len(merged))
    assert alpha.grad is not None
    return alpha.grad


def main() -> None:
    adapters = vit_base_adapters(4)
    weights = {m: torch.randn(768, 768) for m in adapters[0].modules()}
    gradient = torch.randn(768, 768)
    plan = prepare(adapters, "ties")
    ready = plan.materialise()

    def with_plan() -> torch.Tensor:
        return step(ready, weights, gradient)

    def afresh() -> torch.Tensor:
        return step(prepare(adapters, "ties"), weights, gradient)

    torch.testing.assert_close(with_plan(), afresh(), rtol=1e-4, atol=1e-3)
    found = interleaved(
        {
            "materialised plan": with_plan,
            "trim and elect afresh": afresh,
            "materialise (once)": plan.materialise,
        },
        repeats=5,
    )
    rows = [{"case": name, **values} for name, values in found.items()]
    ratio = found["trim and elect afresh"]["cpu_s"] / found["materialised plan"]["cpu_s"]
    report(
        "coefficient_step",
        f"TIES, delta, {SHAPES}",
        rows,
        times_less=ratio,
        aim=">= 5",
    )


if __name__ == "__main__":
    main()
