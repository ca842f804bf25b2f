"""One step of learning coefficients (TIES in delta), without the model: plan against fresh merge.

Measured: from alpha to the dense weights W0 + delta, and from a given gradient of these weights
back to alpha. The model's forward and backward lie between the two and are left out of both.
"""

from __future__ import annotations

import torch

from cl_lora.merging import Plan, prepare
from perf.common import interleaved, report, vit_base_adapters


def main() -> None:
    adapters = vit_base_adapters(4)
    modules = adapters[0].modules()
    weights = {m: torch.randn(768, 768) for m in modules}
    gradient = torch.randn(768, 768)
    plan = prepare(adapters, "ties")
    ready = plan.materialise()

    def step(current: Plan, *, add: bool) -> torch.Tensor:
        alpha = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
        update = current.combine(alpha)
        outputs = [(weights[m] if add else 0) + update.delta(m) for m in modules]
        torch.autograd.backward(outputs, [gradient] * len(outputs))
        assert alpha.grad is not None
        return alpha.grad

    def afresh(*, add: bool) -> torch.Tensor:
        return step(prepare(adapters, "ties"), add=add)

    torch.testing.assert_close(step(ready, add=True), afresh(add=True), rtol=1e-4, atol=1e-3)
    found = interleaved(
        {
            "materialised plan": lambda: step(ready, add=True),
            "trim and elect afresh": lambda: afresh(add=True),
            "materialise (once)": plan.materialise,
        },
        repeats=5,
    )
    rows = [{"case": name, **values} for name, values in found.items()]
    ratio = found["trim and elect afresh"]["cpu_s"] / found["materialised plan"]["cpu_s"]
    report(
        "coefficient_step",
        "TIES, delta, 4 adapters of rank 16, q k v of 12 ViT-B blocks (36 modules 768 x 768)",
        rows,
        times_less=ratio,
        aim=">= 5",
    )


if __name__ == "__main__":
    main()
