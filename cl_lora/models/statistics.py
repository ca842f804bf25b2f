"""Statistics of a served model that merges need: running sums, gathered in one pass over data.

What is kept are sums of something per token or per sample, and how many there were. So sums of two
passes can be joined, and a stream never needs its old samples again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cl_lora.adapters.entries import entry_name
from cl_lora.adapters.injection import is_transposed
from cl_lora.models.base import Backbone
from cl_lora.models.compute import Batch, Compute
from cl_lora.models.weights import Change, changed
from cl_lora.support.errors import UserError
from cl_lora.support.registry import check_free, look_up
from cl_lora.support.seeding import numpy_generator, torch_generator
from cl_lora.tasks import Task

TRAIN, VAL = "train", "val"
"""The parts of an experience that a statistic may see."""

_REMEDIES = {TRAIN: "give it some", VAL: "set benchmark.val_fraction=0.1"}

_SAMPLES = 16
"""Samples whose activations are held at a time."""

_NUMBERS = 2**20
"""Numbers of per-sample gradients of a layer that are held at a time."""


@dataclass(frozen=True, eq=False)
class Observed:
    """The model that a statistic is gathered of, and for what.

    Attributes:
        backbone: in eval mode.
        compute: where and how precisely.
        change: what it serves with, such as the update of one adapter.
        head: outputs of features, on the device.
        task: whose targets the samples have.
        entries: names of the adapter's entries: linear layers, or any parameters without their
            ``.weight``.
        seed: of the run, for statistics that draw.
        keys: what further tells the draws apart, such as the experience's number.
        draws: how many targets are drawn for each sample, where they are.
        experience: index of the experience whose samples are looked at.
    """

    backbone: Backbone
    compute: Compute
    change: Change
    head: nn.Module
    task: Task
    entries: tuple[str, ...]
    seed: int
    keys: tuple[int | str, ...] = ()
    draws: int = 1
    experience: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(
                f"Expected at least one draw of targets for a sample but got {self.draws}"
            )


class Sums(Protocol):
    """What one pass over data has summed: it can be joined with that of another pass."""

    def merge(self, other: Any) -> None:
        """Add all that another pass of the same statistic has summed."""

    def result(self) -> dict[str, Tensor]:
        """Return what is kept, by name.

        Raises:
            UserError: if there was no sample, or a number is not finite.
        """


class RunningMeans:
    """Means of tensors by name, as float64 sums and counts that can go on or be joined."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @classmethod
    def of(cls, means: Mapping[str, Tensor], count: int) -> RunningMeans:
        """Return the sums behind means of ``count`` things, to go on with them."""
        sums = cls()
        for name, mean in means.items():
            sums.add(name, mean.double() * count, count)
        return sums

    def add(self, name: str, total: Tensor, count: int) -> None:
        """Add ``total``, the sum of ``count`` tensors of one name."""
        if name in self._sums:
            self._sums[name].add_(total)
        else:
            self._sums[name] = total.detach().to(torch.float64, copy=True)
        self._counts[name] = self._counts.get(name, 0) + count

    def merge(self, other: RunningMeans) -> None:
        """Add all that another pass has summed."""
        for name, total in other._sums.items():
            self.add(name, total, other._counts[name])

    def result(self) -> dict[str, Tensor]:
        """Return the means, float32 on the CPU.

        Raises:
            UserError: if there was no sample, or a mean is not finite.
        """
        if not self._sums:
            raise UserError("Expected at least one sample to gather a statistic of but got none")
        means = {
            name: (total / self._counts[name]).float().cpu() for name, total in self._sums.items()
        }
        for name, mean in means.items():
            if not bool(mean.isfinite().all()):
                raise UserError(
                    f"Expected a finite statistic but that of {name!r} holds NaN or infinity; "
                    "use precision=fp32, or train with a smaller learning rate"
                )
        return means


Gather: TypeAlias = Callable[..., Sums]
"""(model, batches of inputs and targets) -> the sums of one pass over them."""


@dataclass(frozen=True)
class Statistic:
    """A statistic that is kept beside an adapter.

    Attributes:
        name: what it is called, and its file.
        summary: one sentence.
        part: the part of an experience that it sees, ``train`` or ``val``.
        gather: makes it; entries that it does not exist for are left out.
        takes_number: whether there is one for every number, called ``name@number``, which
            ``gather`` takes as its third argument.
        needs_classes: whether it exists for tasks with class labels only.
    """

    name: str
    summary: str
    part: str
    gather: Gather
    takes_number: bool = False
    needs_classes: bool = False

    def choose(
        self,
        indices: npt.NDArray[np.int64],
        experience: str,
        seed: int,
        limit: int | None = None,
    ) -> npt.NDArray[np.int64]:
        """Return the samples of :attr:`part` that are looked at, sorted.

        Args:
            indices: int64 (N,), that part of the experience.
            experience: its name.
            seed: of the run; the choice depends on it and on the experience alone.
            limit: how many at most; None takes all.

        Raises:
            UserError: if there are none, or the limit is below 1.
        """
        if not len(indices):
            raise UserError(
                f"Expected {self.part} samples of {experience!r} to gather the statistic "
                f"{self.name!r} of but there are none; {_REMEDIES[self.part]}"
            )
        if limit is not None and limit < 1:
            raise UserError(
                f"Expected at least 1 sample to gather the statistic {self.name!r} of but the "
                f"limit is {limit}"
            )
        if limit is None or limit >= len(indices):
            return indices
        # Not by the statistic's name: those of one part look at the same samples.
        draw = numpy_generator(seed, "statistics", self.part, experience)
        return np.sort(draw.choice(indices, limit, replace=False))


STATISTICS: dict[str, Statistic] = {}
"""Every statistic by name."""


def register_statistic(
    name: str,
    *,
    summary: str,
    part: str,
    takes_number: bool = False,
    needs_classes: bool = False,
) -> Callable[[Gather], Gather]:
    """Register the decorated function as a statistic; arguments as of :class:`Statistic`.

    Raises:
        UserError: if another function is registered by this name.
    """

    def decorate(gather: Gather) -> Gather:
        taken = STATISTICS.get(name)
        check_free("statistic", name, taken.gather if taken else None, gather)
        STATISTICS[name] = Statistic(name, summary, part, gather, takes_number, needs_classes)
        return gather

    return decorate


def get_statistic(name: str) -> Statistic:
    """Return the statistic called ``name``.

    Raises:
        UserError: if there is none; names the nearest known.
    """
    kind, at, number = name.partition("@")
    if at and number.isdigit() and kind in STATISTICS and STATISTICS[kind].takes_number:
        found = STATISTICS[kind]
        return replace(found, name=name, gather=partial(_with_number, found.gather, int(number)))
    return look_up("statistic", STATISTICS, name)


def _with_number(gather: Gather, number: int, observed: Observed, batches: Iterable[Batch]) -> Sums:
    return gather(observed, batches, number)


def linear_layers(network: nn.Module, entries: Iterable[str]) -> dict[str, nn.Module]:
    """Return the entries that are linear layers of a network, by name."""
    modules = dict(network.named_modules())
    found = {name: modules[name] for name in entries if name in modules}
    return {
        name: module
        for name, module in found.items()
        if isinstance(module, nn.Linear) or is_transposed(module)
    }


# Gram matrices ----------------------------------------------------------------------------------


@register_statistic(
    "gram",
    summary="Gram matrix of the inputs of each linear layer, X^T X / N over all tokens",
    part=TRAIN,
)
def gram(observed: Observed, batches: Iterable[Batch]) -> RunningMeans:
    """Sum ``G = X^T X`` (d_in, d_in) of each linear layer over the N tokens of its inputs.

    The inputs are those of the model as it is served. Where a model pads inputs of unlike length,
    it sees them one by one, so that no padding counts.

    Raises:
        UserError: if no entry is a linear layer, or the backbone is in training mode.
    """
    require_eval(observed.backbone)
    network = observed.backbone.network
    layers = linear_layers(network, observed.entries)
    if not layers:
        raise UserError(
            "Expected entries that are linear layers, to gather Gram matrices of their inputs, "
            f"but found none among {', '.join(observed.entries[:3]) or 'no entries'}; choose a "
            "method that needs none"
        )
    sums, products = RunningMeans(), _Products()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            product, count = products.of(inputs[0])
            sums.add(name, product, count)

        return hook

    with contextlib.ExitStack() as stack:
        stack.enter_context(changed(network, observed.change))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        if observed.backbone.pads:
            batches = _pieces(batches, 1)
        for _ in observed.compute.features(observed.backbone, batches):
            pass  # the hooks have seen what matters
    return sums


class _Products:
    """``X^T X`` of inputs, made once for layers that see the same tensor one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor, int] | None = None

    def of(self, inputs: Tensor) -> tuple[Tensor, int]:
        """Return the product of inputs (..., d) and the number of tokens."""
        if self._last is not None:
            seen, version, product, count = self._last
            # An input that was overwritten in the meantime is another one.
            if seen is inputs and version == inputs._version:
                return product, count
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            product = rows.T @ rows
        self._last = (inputs, inputs._version, product, len(rows))
        return product, len(rows)


# Fisher information -----------------------------------------------------------------------------


@register_statistic(
    "fisher_model",
    summary="diagonal of the Fisher information, with labels drawn from the model's predictions",
    part=VAL,
)
def fisher_model(observed: Observed, batches: Iterable[Batch]) -> RunningMeans:
    """Sum ``E_y (d log p(y | x_n) / dW)^2`` over samples, with y drawn from the model itself.

    ``p(y | x) ~ exp(-loss)`` of the task; see :meth:`~cl_lora.tasks.TaskKind.drawn_loss`.

    Raises:
        UserError: if the task's kind cannot draw, or as :func:`fisher_data`.
    """
    generator = torch_generator(observed.seed, "fisher_model", *observed.keys)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return observed.task.drawn_loss(outputs, generator)

    return _squares(observed, batches, loss, observed.draws)


@register_statistic(
    "fisher_data",
    summary="diagonal of the empirical Fisher information, with the labels of the data",
    part=VAL,
)
def fisher_data(observed: Observed, batches: Iterable[Batch]) -> RunningMeans:
    """Sum ``(d log p(y_n | x_n) / dW)^2`` over samples (x_n, y_n), exactly for each sample.

    Raises:
        UserError: if the model has no parameter of an entry's name, samples cannot be told apart in
            a layer, or the backbone is in training mode.
    """
    return _squares(observed, batches, observed.task.loss, 1)


Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> the mean loss of the batch."""


def _squares(observed: Observed, batches: Iterable[Batch], loss: Loss, draws: int) -> RunningMeans:
    require_eval(observed.backbone)
    network = observed.backbone.network
    own = {entry_name(name): parameter for name, parameter in network.named_parameters()}
    for name in observed.entries:
        if name not in own:
            raise UserError(
                f"The backbone has no parameter of the entry {name!r}; the adapter belongs to "
                "another backbone"
            )
    layers = linear_layers(network, observed.entries)
    sums, device = RunningMeans(), observed.compute.device
    with changed(network, observed.change), torch.enable_grad():
        # Few at a time, so that memory does not depend on the batches.
        for some, theirs in _pieces(batches, _SAMPLES):
            inputs, targets = some.to(device), theirs.to(device)
            if len(layers) == len(observed.entries):
                _add_layers(sums, observed, layers, inputs, targets, loss, draws)
            else:
                parameters = {name: own[name] for name in observed.entries}
                _add_parameters(sums, observed, parameters, inputs, targets, loss, draws)
    return sums


def _pieces(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the same samples ``size`` at a time."""
    for inputs, targets in batches:
        yield from zip(torch.split(inputs, size), torch.split(targets, size), strict=True)


def _outputs(observed: Observed, inputs: Tensor) -> Tensor:
    made: Tensor = observed.head(observed.compute.trained_features(observed.backbone, inputs))
    return made


def _add_layers(
    sums: RunningMeans,
    observed: Observed,
    layers: Mapping[str, nn.Module],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    draws: int,
) -> None:
    """Add squared gradients of weights (d_out, d_in) of linear layers, all samples in one pass.

    The gradient of sample n is ``sum_t g_nt x_nt^T`` over its tokens, with the layer's inputs x
    and the gradient g at its outputs. The weights themselves need no gradient.
    """
    with _probed(layers) as calls:
        outputs = _outputs(observed, inputs)
        # The mean of the batch times its size: the gradient of each sample is that of its own loss.
        losses = [len(inputs) * loss(outputs, targets) for _ in range(draws)]
    probes = [probe for of_layer in calls.values() for _, probe in of_layer]
    for draw, total in enumerate(losses):
        found = iter(torch.autograd.grad(total, probes, retain_graph=draw + 1 < draws))
        for name, of_layer in calls.items():
            pairs = [
                (_by_sample(next(found), len(inputs), name), _by_sample(x, len(inputs), name))
                for x, _ in of_layer
            ]
            sums.add(name, _summed_squares(pairs), len(inputs))


def _summed_squares(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ``sum_n (sum_calls g_n^T x_n)^2`` of pairs g (n, T, d_out) and x (n, T, d_in)."""
    gradients, inputs = pairs[0]
    d_out, d_in = gradients.shape[2], inputs.shape[2]
    total = inputs.new_zeros(d_out, d_in)
    few = max(1, _NUMBERS // (d_out * d_in))
    for start in range(0, len(inputs), few):
        rows = slice(start, start + few)
        each = sum(torch.bmm(g[rows].transpose(1, 2), x[rows]) for g, x in pairs)
        assert isinstance(each, Tensor)
        total += each.square_().sum(dim=0)
    return total


def _by_sample(tensor: Tensor, samples: int, name: str) -> Tensor:
    """Return a layer's tokens (..., d) as float (samples, tokens, d)."""
    if len(tensor) % samples:
        raise UserError(
            f"Expected inputs of layer {name!r} that can be told apart by sample but got "
            f"{tuple(tensor.shape)} for {samples} samples; choose a method that needs no Fisher "
            "information"
        )
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.to(dtype).reshape(samples, -1, tensor.shape[-1])


@contextlib.contextmanager
def _probed(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Collect for each layer the inputs of every call and a zero added to its output.

    The gradient of the zero is that of the output.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            calls.setdefault(name, []).append((inputs[0].detach(), probe))
            return output + probe

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(watch(name)).remove)
        yield calls


def _add_parameters(
    sums: RunningMeans,
    observed: Observed,
    parameters: Mapping[str, nn.Parameter],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    draws: int,
) -> None:
    """Add squared gradients of any parameters, in their own shape, one sample after the other."""
    asked = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for sample, target in _pieces([(inputs, targets)], 1):
            outputs = _outputs(observed, sample)
            for draw in range(draws):
                found = torch.autograd.grad(
                    loss(outputs, target),
                    list(parameters.values()),
                    retain_graph=draw + 1 < draws,
                    allow_unused=True,
                )
                for name, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:  # a part that the model does not use
                        # Not in place: gradients of summed parameters may share their memory.
                        sums.add(name, gradient.square(), 1)
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(asked[name])


def require_eval(backbone: Backbone) -> None:
    """Raise ``UserError`` if a part of a backbone is in training mode."""
    if any(module.training for module in backbone.modules()):
        raise UserError(
            "Expected a backbone in eval mode, to gather statistics of what it serves, but part of "
            "it is in training mode; call eval() first"
        )
