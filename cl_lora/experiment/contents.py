"""What is served, told by its numbers: parts of one content give the same scores, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from cl_lora.experiment.serving import Part
from cl_lora.models.bottleneck import Composition
from cl_lora.models.weights import Weights


def content_of(part: Part) -> Hashable | None:
    """Return a digest of all that decides the outputs of a part; None where that cannot be told.

    The dense update counts and not how it is written: that is what is added to the weights.
    """
    update = part.update
    if part.answers is not None or isinstance(update, Composition | Weights):
        return None
    head = _of_module(part.head)
    if head is None:
        return None
    if part.features is not None and part.key is None:
        return ("features", part.features, head)  # which are there: scoring takes no pass at all
    hasher = hashlib.blake2b(head, digest_size=16)
    if update is not None:
        for module in update.modules():
            hasher.update(module.encode())
            _add(hasher, update.delta(module))
    return hasher.hexdigest()


def _of_module(module: nn.Module) -> bytes | None:
    """Return a digest of a head: its structure and its tensors; None where some are not known."""
    if any(_hidden(part) for part in module.modules()):
        return None
    hasher = hashlib.blake2b(digest_size=16)
    for name, part in module.named_modules():
        kind = type(part)
        hasher.update(f"{name}:{kind.__module__}.{kind.__qualname__}:{part.extra_repr()}".encode())
    for name, tensor in module.state_dict().items():
        hasher.update(name.encode())
        _add(hasher, tensor)
    return hasher.digest()


def _hidden(module: nn.Module) -> bool:
    """Return whether a module has more than its registered tensors tell, such as a plain tensor."""
    known = set(nn.Module().__dict__)
    more = {name: value for name, value in module.__dict__.items() if name not in known}
    # Numbers of torch's own layers are in what they say of themselves.
    own = type(module).__module__.startswith(("torch.", "cl_lora."))
    return not own or any(isinstance(value, Tensor) for value in more.values())


def _add(hasher: hashlib.blake2b, tensor: Tensor) -> None:
    values = tensor.detach().cpu().contiguous()
    hasher.update(f"{values.dtype}{tuple(values.shape)}".encode())
    hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
