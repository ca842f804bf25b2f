"""A seed of a tiny run of unlike tasks: random adapters, a head for each, dense float64 beside."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from bench import random_adapter
from sklearn.metrics import accuracy_score, root_mean_squared_error
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter
from cl_lora.benchmarks import Benchmark, Experience
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arm
from cl_lora.experiment.serving import Workbench
from cl_lora.experiment.stages import Outline, Stage, get_protocol
from cl_lora.models.backbones import Backbone
from cl_lora.models.compute import Compute
from cl_lora.models.head_policies import get_head_policy
from cl_lora.models.heads import new_head
from cl_lora.models.images import ImageBackbone
from cl_lora.strategies.config import TrainingConfig
from cl_lora.tasks import CLASS, Scaling, Task, get_kind

TRAINING = TrainingConfig(
    epochs=2, batch_size=8, head_lr=0.02, head="own", head_shape="mlp", head_hidden=6
)
TRAIN, VAL, TEST = np.arange(24), np.arange(24, 32), np.arange(32, 44)


def unlike_tasks() -> Benchmark:
    """Three tasks on pictures of 16 px: which of three classes, how bright, where four points are.

    Every picture is noise around a level that decides its targets, so that all can be learned.
    """
    draw = np.random.default_rng(0)
    classes = np.arange(44) % 3
    level = 40 + 60 * classes + draw.integers(0, 50, 44)
    images = (level[:, None, None, None] + draw.integers(-30, 30, (44, 16, 16, 3))).clip(0, 255)
    bright = (level / 10).astype(np.float32)
    spread = (0.2 + level / 1000)[:, None, None]
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    points = (0.5 + spread * square + 0.01 * draw.normal(size=(44, 4, 2))).astype(np.float32)

    def experience(name: str, kind: str, targets: np.ndarray, **more: Any) -> Experience:
        task = Task(name, get_kind(kind), **more)
        if kind != "class":
            task = replace(task, scaling=Scaling.of(targets[TRAIN]))
        return Experience(name, task, images.astype(np.uint8), targets, TRAIN, VAL, TEST)

    tasks = (
        experience("pet", CLASS.name, classes, labels=("ape", "bee", "cat")),
        experience("light", "scalar", bright),
        experience("square", "points", points, labels=tuple("abcd"), normaliser=(0, 2)),
    )
    return Benchmark("unlike", tasks, "x")


def with_noise_as_test(benchmark: Benchmark) -> Benchmark:
    """Return the benchmark with noise in place of all test inputs and targets."""
    draw = np.random.default_rng(1)
    experiences = []
    for e in benchmark.experiences:
        inputs, targets = e.inputs.copy(), e.targets.copy()
        inputs[e.test] = draw.integers(0, 256, inputs[e.test].shape)
        targets[e.test] = draw.permutation(targets[e.test]) if targets.ndim == 1 else 1 / 3
        experiences.append(replace(e, inputs=inputs, targets=targets))
    return replace(benchmark, experiences=tuple(experiences))


def bench_of(benchmark: Benchmark, backbone: Backbone, **more: Any) -> Workbench:
    """Return a seed with a random adapter and head for each task, and those of another seed."""
    settings = {"training": TRAINING, **more}

    def bank(first: int) -> tuple[Adapter, ...]:
        made = []
        for t, e in enumerate(benchmark.experiences):
            head = new_head("mlp", backbone.features, e.task.outputs, first + t, 6)
            nn.init.normal_(head.out.weight, std=0.3, generator=torch.Generator().manual_seed(t))
            adapter = random_adapter(backbone, first + t)
            made.append(replace(adapter, name=e.name, head=head.state_dict()))
        return tuple(made)

    return Workbench(
        benchmark=benchmark,
        backbone=backbone,
        banks={"fresh": bank(0)},
        compute=Compute(torch.device("cpu"), bf16=False),
        seed=0,
        policy=get_head_policy("own"),
        buffers={spc: draw_buffer(benchmark, spc, 0) for spc in (1, 2)},
        spc=2,
        batch_size=5,
        head_lr=0.1,
        relative=True,
        partners=bank(50),
        **settings,
    )


def arm(**settings: Any) -> Arm:
    """Return an arm under heads of their own; 2 samples a stratum, large steps."""
    return make_arm("x", settings, ArmDefaults(spc=2, buffer_batch_size=100, head="own"))


def stages(bench: Workbench, protocol: str = "subsets") -> dict[str, Stage]:
    """Return the stages of a protocol by name."""
    made = get_protocol(protocol).stages(Outline(bench.benchmark.names))
    return {stage.name: stage for stage in made}


# Plain float64 -------------------------------------------------------------------------------


def dense_backbone(backbone: Backbone, adapters: Sequence[Adapter], weights: Any) -> Backbone:
    """Return a float64 copy with ``W0 + sum_i w_i s_i B_i A_i`` written into its weights."""
    own = copy.deepcopy(backbone).double()
    with torch.no_grad():
        for module in adapters[0].factors if adapters else ():
            weight = own.network.get_submodule(module).weight
            for w, adapter in zip(weights, adapters, strict=True):
                f = adapter.factors[module]
                weight += float(w) * f.scaling * f.B.double() @ f.A.double()
    return own


def head_outputs(state: dict[str, Tensor], features: np.ndarray) -> np.ndarray:
    """Return the outputs of a head of either shape, in numpy."""
    w = {k: v.detach().double().numpy() for k, v in state.items()}
    if "weight" in w:
        return features @ w["weight"].T + w["bias"]
    unit = features - features.mean(1, keepdims=True)
    unit = unit / np.sqrt(np.square(unit).mean(1, keepdims=True) + 1e-5)
    hidden = (unit * w["norm.weight"] + w["norm.bias"]) @ w["hidden.weight"].T + w["hidden.bias"]
    return np.maximum(hidden, 0) @ w["out.weight"].T + w["out.bias"]


def outputs_of(
    own: Backbone, state: dict[str, Tensor], experience: Experience, rows: np.ndarray
) -> np.ndarray:
    """Return float64 outputs of a dense backbone and a head on some samples."""
    with torch.no_grad():
        images = ImageBackbone.encode(experience.inputs[rows]).double()
        return head_outputs(state, own.network(own.normalise(images)).numpy())


def score_by_hand(task: Task, outputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the primary metric, counted by scikit-learn or numpy."""
    if task.kind is CLASS:
        return float(accuracy_score(targets, outputs.argmax(1)))
    if task.kind.name == "angle":
        said = np.arctan2(outputs[:, 1], outputs[:, 0]) * task.period / (2 * np.pi)
        away = np.abs(said - targets) % task.period
        return float(np.degrees(np.minimum(away, task.period - away)).mean())
    if task.scaling is not None:
        outputs = outputs * np.array(task.scaling.deviation) + np.array(task.scaling.mean)
    if task.kind.name == "scalar":
        return float(root_mean_squared_error(targets, outputs[:, 0]))
    said, (a, b) = outputs.reshape(targets.shape), task.normaliser
    apart = np.linalg.norm(targets[:, a] - targets[:, b], axis=1)
    return float((np.linalg.norm(said - targets, axis=2).mean(1) / apart).mean())


def loss_by_hand(task: Task, outputs: Tensor, targets: np.ndarray) -> Tensor:
    """Return a task's loss of float64 outputs; differentiable."""
    if task.kind is CLASS:
        return F.nll_loss(outputs.log_softmax(1), torch.from_numpy(targets))
    y = torch.from_numpy(targets).double()
    if task.kind.name == "angle":
        turn = y * 2 * math.pi / task.period
        return (outputs - torch.stack([turn.cos(), turn.sin()], dim=1)).abs().mean()
    wanted = y.reshape(len(y), -1)
    if task.scaling is not None:
        mean, deviation = (
            torch.tensor(v).double() for v in (task.scaling.mean, task.scaling.deviation)
        )
        wanted = (wanted - mean) / deviation
    return (outputs - wanted).abs().mean()
