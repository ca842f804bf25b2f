"""What can be done to a backbone while it serves: an update of some weights, or weights of its own.

Each is taken back bit for bit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cl_lora.adapters.injection import SupportsDelta, applied, module_weight
from cl_lora.models.bottleneck import Composition, composed
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights that take the place of a network's own, as full fine-tuning leaves them.

    Attributes:
        values: name of a parameter -> its tensor.
    """

    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module, names: Collection[str] | None = None) -> Weights:
        """Return copies of the parameters of a network with these names; of all where None."""
        return cls(
            {
                name: p.detach().clone()
                for name, p in network.named_parameters()
                if names is None or name in names
            }
        )

    def write(self, network: nn.Module) -> None:
        """Write the weights into the network's parameters."""
        _write(dict(network.named_parameters()), self.values)


Change = SupportsDelta | Composition | Weights | None
"""An update that is added to the weights, adapters that stay apart, other weights, or nothing."""


_BLOCK = re.compile(r"blocks\.(\d+)\.")

NO_BLOCK = 1_000_000
"""Above the block of every network: where nothing is changed."""


def lowest_block(modules: Iterable[str]) -> int:
    """Return the first block that has one of these modules; -1 where one is outside all blocks.

    What a network computes below it is the same whatever is done to the modules; below block 0 is
    the embedding.
    """
    found = (_BLOCK.match(module) for module in modules)
    return min((int(block[1]) if block else -1 for block in found), default=NO_BLOCK)


def begins_at(change: Change) -> int:
    """Return the first block that a change touches, as :func:`lowest_block`."""
    if change is None:
        return NO_BLOCK
    if isinstance(change, Composition):
        return lowest_block(change.bottleneck.modules)
    if isinstance(change, Weights):
        return lowest_block(change.values)
    return lowest_block(change.modules())


@contextlib.contextmanager
def changed(network: nn.Module, change: Change) -> Iterator[None]:
    """Serve ``network`` with a change, and give it back bit for bit.

    Raises:
        UserError: if the change does not fit the network.
    """
    if isinstance(change, Composition):
        with composed(network, change):
            yield
        return
    if not isinstance(change, Weights):
        with applied(network, change):
            yield
        return
    own = dict(network.named_parameters())
    for name, value in change.values.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(
                f"Expected weights of this backbone but {name!r} is missing in it or has another "
                "shape; they belong to another one"
            )
    kept = {name: own[name].detach().clone() for name in change.values}
    try:
        _write(own, change.values)
        yield
    finally:
        _write(own, kept)


def add_deltas(network: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Add dense deltas, by name of their entry, to the network's parameters for good.

    Raises:
        UserError: if the network has no such parameter.
    """
    with torch.no_grad():
        for name, delta in deltas.items():
            weight = module_weight(network, name)
            weight.add_(delta.to(weight))


@contextlib.contextmanager
def restored(network: nn.Module) -> Iterator[None]:
    """Give a network that is trained inside its parameters back bit for bit, frozen."""
    kept = Weights.of(network)
    parameters = dict(network.named_parameters())
    try:
        yield
    finally:
        _write(parameters, kept.values)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
