"""A seed of a tiny run with random adapters, for tests of what is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, LoRAFactors, entry_name
from cl_lora.adapters.injection import LoRAConfig, applied, target_modules
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.batches import target_tensor
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arm
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import Served, Workbench
from cl_lora.experiment.stages import Outline, Stage, get_protocol
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.head_policies import get_head_policy
from cl_lora.models.heads import new_linear_head
from cl_lora.support.seeding import torch_generator

LORA = LoRAConfig(rank=2, lora_alpha=4, targets=("qkv", "fc1"), dropout=0.0)


class Counting(Compute):
    """Counts the passes over an experience or a buffer."""

    passes = 0

    def features(self, backbone: Backbone, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Count, and do as always."""
        type(self).passes += 1
        return super().features(backbone, batches)


def random_adapter(backbone: Backbone, number: int) -> Adapter:
    """Return an adapter as training would leave it, but at random: s = 2, rank 2."""
    generator = torch_generator(number, "adapter")
    factors = {}
    for name in target_modules(backbone.network, LORA.targets):
        out, into = backbone.network.get_submodule(name).weight.shape
        factors[name] = LoRAFactors(
            torch.randn(2, into, generator=generator) / 4,
            torch.randn(out, 2, generator=generator) / 4,
            2.0,
        )
    head = new_linear_head(backbone.features, 3, seed=number).state_dict()
    return Adapter(f"a{number}", factors, head)


def random_model(backbone: Backbone, number: int) -> Adapter:
    """Return a whole model as full fine-tuning would leave it, but at random."""
    generator = torch_generator(number, "model")
    deltas = {
        entry_name(name): torch.randn(p.shape, generator=generator) / 50
        for name, p in backbone.network.named_parameters()
    }
    head = new_linear_head(backbone.features, 3, seed=number).state_dict()
    return Adapter(f"m{number}", {}, head, deltas=deltas)


def workbench(benchmark: Benchmark, backbone: Backbone, head: str = "shared") -> Workbench:
    """Return a seed at random: fresh adapters 0 to 2, sequential 10 to 12, joint 20, models 30."""
    Counting.passes = 0
    fresh, sequential = (
        tuple(random_adapter(backbone, first + i) for i in range(3)) for first in (0, 10)
    )
    return Workbench(
        benchmark=benchmark,
        backbone=backbone,
        banks={
            "fresh": fresh,
            "sequential": sequential,
            "joint": (random_adapter(backbone, 20),),
            "full": tuple(random_model(backbone, 30 + i) for i in range(3)),
        },
        compute=Counting(torch.device("cpu"), bf16=False),
        seed=0,
        policy=get_head_policy(head),
        buffers={spc: draw_buffer(benchmark, spc, 0) for spc in (1, 2, 4)},
        spc=2,
        batch_size=5,
        head_lr=0.1,
    )


def stage(bench: Workbench, t: int) -> Stage:
    """Return the stage after experience ``t``; -1 is before any training."""
    return get_protocol("prefixes").stages(Outline(bench.benchmark.names))[t + 1]


def arm(bench: Workbench | None = None, **settings: Any) -> Arm:
    """Return an arm of these settings; 2 samples a class, the whole buffer a step."""
    head = "shared" if bench is None else bench.policy.name
    return make_arm("x", settings, ArmDefaults(spc=2, buffer_batch_size=100, head=head))


def serve(bench: Workbench, t: int, **settings: Any) -> Served:
    """Return what an arm of these settings serves after experience ``t``."""
    return serve_arm(bench, arm(bench, **settings), stage(bench, t))


def features(backbone: Backbone, update: Any, inputs: Tensor) -> Tensor:
    """Return features of the backbone with an update, in one batch."""
    with applied(backbone.network, update), torch.no_grad():
        return backbone(inputs)


def samples_of_test(bench: Workbench, j: int) -> Batch:
    """Return all test inputs and targets of an experience."""
    experience = bench.benchmark.experiences[j]
    inputs = bench.backbone.encode(experience.inputs[experience.test])
    return inputs, target_tensor(experience, experience.test)


def support(bench: Workbench, spc: int, upto: int) -> Batch:
    """Return the buffer's inputs and targets of the experiences 0 to ``upto``, drawn here."""
    drawn = draw_buffer(bench.benchmark, spc, bench.seed)[: upto + 1]
    parts = [
        (bench.backbone.encode(e.inputs[rows]), target_tensor(e, rows))
        for e, rows in zip(bench.benchmark.experiences, drawn, strict=False)
    ]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def dense(bench: Workbench, weights: list[float], module: str) -> Tensor:
    """Return ``sum_i w_i s_i B_i A_i`` of the fresh adapters, float64."""
    parts = [a.factors[module] for a in bench.banks["fresh"][: len(weights)]]
    return sum(
        (w * f.scaling * f.B.double() @ f.A.double() for w, f in zip(weights, parts, strict=True)),
        start=torch.zeros(()),
    )


def with_noise_as_test(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with noise in place of all test inputs and targets."""
    generator = torch_generator(0, "noise")
    experiences = []
    for e in benchmark.experiences:
        inputs, targets = e.inputs.copy(), e.targets.copy()
        noise = torch.randint(0, 256, inputs[e.test].shape, generator=generator)
        inputs[e.test] = noise.numpy().astype(inputs.dtype)
        targets[e.test] = torch.randint(0, 3, (len(e.test),), generator=generator).numpy()
        experiences.append(replace(e, inputs=inputs, targets=targets))
    return replace(benchmark, experiences=tuple(experiences))
