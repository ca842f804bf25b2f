"""The model and the data of somebody else's script, as what merging and serving work on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cl_lora.adapters.injection import TARGETS, LoRAConfig, parts_of_qkv, split_qkv, target_modules
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.benchmarks.draw import draw_buffer
from cl_lora.models.base import Backbone
from cl_lora.models.compute import Batch
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

_NONE = np.empty(0, dtype=np.int64)


class ScriptBackbone(Backbone):
    """All of a classifier but its last layer, the head: what the head is given are the features.

    Unlike other backbones it has the whole model as its network, so that weights keep the names
    that the script knows them by.

    Args:
        model: the classifier, which stays where it is.
        head: name of its last layer.
        lora: the shape of its adapters; where q, k or v is adapted by itself, the fused projection
            of a timm model is taken apart, in place.

    Raises:
        UserError: if the model has no such head, or none of the layers that are to be adapted.
    """

    def __init__(self, model: nn.Module, head: str, lora: LoRAConfig) -> None:
        if hasattr(model, "peft_config"):
            raise UserError(
                "Expected a model without adapters but peft has put some into it; give the plugin "
                "the model as it was before"
            )
        layer = _checked_head(model, head)
        super().__init__(model, layer.in_features, _patterns(model, lora.targets, head))
        self.head_name = head
        self.modules_adapted = target_modules(model, lora.targets, self.targets, lora.first_block)

    @property
    def head(self) -> nn.Module:
        """The last layer of the model, as it is now."""
        return self.network.get_submodule(self.head_name)

    @property
    def outputs(self) -> int:
        """How many outputs the model has."""
        return len(self.head.state_dict()["weight"])

    def encode(self, samples: npt.NDArray[Any]) -> Tensor:
        """Return samples as a tensor: the script has transformed them already."""
        return torch.from_numpy(samples)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the head is given for a batch of inputs.

        Raises:
            UserError: if the model does not return what its head gives.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self.head.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
        try:
            outputs = self.network(inputs)
        finally:
            handle.remove()
        if len(seen) != 1 or outputs is not seen[0][1]:
            raise UserError(
                f"Expected the model to return what its layer {self.head_name!r} gives, but it "
                "does something else with it; coefficients and class means need features with the "
                "head last: give head=NAME, or an arm with fixed coefficients"
            )
        return seen[0][0]

    def put_head(self, head: nn.Module) -> None:
        """Put a head into the place of the model's, on its device."""
        holder, _, last = self.head_name.rpartition(".")
        device = next(self.head.parameters()).device
        setattr(self.network.get_submodule(holder), last, head.to(device))


def _checked_head(model: nn.Module, name: str) -> nn.Linear:
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    layer = dict(model.named_modules()).get(name)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        return layer
    found = "none of that name" if layer is None else f"{type(layer).__name__} there"
    if isinstance(layer, nn.Linear):
        found = "one without a bias"
    raise UserError(
        f"Expected the classifier of the model to be a linear layer {name!r} with a bias but found "
        f"{found}; give head=NAME, of its linear layers {_few(linear[::-1])}"
    )


def _patterns(model: nn.Module, targets: Sequence[str], head: str) -> Mapping[str, str]:
    """Return target -> a regular expression of the full names of its layers in the model.

    Targets are those of timm's Vision Transformers, wherever in the model one is, or the end of
    the layers' names, as peft takes them.
    """
    patterns = {t: _pattern(model, t, head) for t in targets}
    if any(p is None for p in patterns.values()) and parts_of_qkv(targets):
        with contextlib.suppress(UserError):  # it has no such projection: said below
            split_qkv(model)
            patterns = {t: _pattern(model, t, head) for t in targets}
    found = {t: p for t, p in patterns.items() if p is not None}
    missing = [t for t in targets if t not in found]
    if missing:
        there = dict.fromkeys(name.rpartition(".")[2] for name in _linear(model, head))
        raise UserError(
            f"Expected the model to have layers for the LoRA target {missing[0]!r} but no linear "
            f"layer is called so; give lora=LoRAConfig(targets=...) of what its linear layers are "
            f"called: {_few(list(there))}"
        )
    return found


def _pattern(model: nn.Module, target: str, head: str) -> str | None:
    """Return the first way of reading a target that matches a layer."""
    known = [TARGETS[target]] if target in TARGETS else []
    for pattern in (rf"(?:.*\.)?(?:{p})" for p in (*known, re.escape(target))):
        if any(re.fullmatch(pattern, name) for name in _linear(model, head)):
            # The head is trained whole.
            return rf"(?!{re.escape(head)}$){pattern}"
    return None


def _linear(model: nn.Module, head: str) -> list[str]:
    """Return the full names of all linear layers but the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != head
    ]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return f"{shown}, and {len(names) - 8} more" if len(names) > 8 else shown


def remembered(dataset: Any, task: Task, name: str, spc: int, seed: int) -> Experience:
    """Return the buffer of an experience: so many samples of each class that it has, transformed.

    They are those that a run with this seed and these names draws.

    Args:
        dataset: of an Avalanche experience; items are (input, class, ...), transformed as for
            evaluation.
        task: the classes.
        name: of the experience.
        spc: samples per class.
        seed: of the draw.

    Raises:
        UserError: if there are no classes or inputs are no tensors, or a class has too few samples.
    """
    targets = _classes(dataset, task, name)
    present, places = np.unique(targets, return_inverse=True)
    drawn_of = Task(task.name, CLASS, tuple(task.labels[c] for c in present))
    everything = np.arange(len(targets))
    whole = Experience(name, drawn_of, everything, places, everything, _NONE, _NONE)
    (rows,) = draw_buffer(Benchmark(name, (whole,), fingerprint=""), spc, seed)
    samples = dataset.eval()
    kept = _stacked([samples[int(row)][0] for row in rows], name).numpy()
    indices = np.arange(len(rows))
    return Experience(name, task, kept, targets[rows], indices, _NONE, _NONE)


def batches_of(dataset: Any, size: int, name: str) -> Iterator[Batch]:
    """Yield all inputs and classes of a dataset, transformed as for evaluation.

    Args:
        dataset: of an Avalanche experience.
        size: samples of a batch; the last may have fewer.
        name: of the experience, for errors.

    Raises:
        UserError: if an input is no tensor.
    """
    samples = dataset.eval()
    for start in range(0, len(samples), size):
        items = [samples[i] for i in range(start, min(start + size, len(samples)))]
        yield _stacked([x for x, *_ in items], name), torch.tensor([int(y) for _, y, *_ in items])


def _stacked(inputs: Sequence[Any], name: str) -> Tensor:
    odd = [x for x in inputs if not isinstance(x, Tensor)]
    if odd:
        raise UserError(
            f"Expected the inputs of {name!r} to be tensors but got {type(odd[0]).__name__}; "
            "give the dataset a transform, such as torchvision's ToTensor"
        )
    return torch.stack(list(inputs)).cpu()


def _classes(dataset: Any, task: Task, name: str) -> npt.NDArray[np.int64]:
    try:
        targets = np.array([int(target) for target in dataset.targets], dtype=np.int64)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"Expected whole numbers as targets of {name!r}, the classes that its buffer balances, "
            f"but could not read them ({error}); make it by as_classification_dataset, or give an "
            "arm with fixed coefficients"
        ) from error
    task.check_targets(targets, repr(name))
    return targets
