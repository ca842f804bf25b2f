"""LoRA in a frozen network through peft: layers by name, such as q, k, v, proj, fc1 and fc2."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cl_lora.adapters.factors import LoRAFactors
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.ranges import at_most

TARGETS: Mapping[str, str] = {
    "qkv": r"blocks\..*attn\.qkv",
    "q": r"blocks\..*attn\.qkv\.q",
    "k": r"blocks\..*attn\.qkv\.k",
    "v": r"blocks\..*attn\.qkv\.v",
    "proj": r"blocks\..*attn\.proj",
    "fc1": r"blocks\..*mlp\.fc1",
    "fc2": r"blocks\..*mlp\.fc2",
}
"""The layers of timm's Vision Transformers: target -> a regular expression of their full names."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_SPLIT = ("q", "k", "v")
ADAPTER_NAME = "default"


@dataclass(frozen=True)
class LoRAConfig:
    """The shape of a LoRA adapter (Hu et al. 2022).

    Attributes:
        rank: r of the factors.
        lora_alpha: numerator of the scaling ``lora_alpha / r`` (``/ sqrt(r)`` with rsLoRA).
        dropout: probability of dropping an input of A while training.
        targets: which layers of every block, by the names that the backbone gives them; of q, k,
            v, proj, fc1, fc2, or ``qkv`` for one adapter on the fused projection of timm's.
        rslora: scale by ``1 / sqrt(r)`` (Kalajdzievski 2023).
        first_block: blocks below this one have no adapter: what they compute is the same under
            every adapter.
    """

    rank: int = at_most(10_000, 8)
    lora_alpha: float = at_most(1_000_000, 32.0)
    dropout: float = at_most(1, 0.05)
    targets: tuple[str, ...] = ("qkv",)
    rslora: bool = False
    first_block: int = at_most(10_000, 0)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(
                f"Expected the LoRA rank to be at least 1 but got {self.rank}; raise it"
            )
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise UserError(
                f"Expected lora_alpha to be above 0 but got {self.lora_alpha}; give such as 32"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"Expected LoRA dropout to be in [0, 1) but got {self.dropout}; give such as 0.05"
            )
        if not self.targets:
            raise UserError("Expected at least one LoRA target, such as q, but got none; name one")
        if len(set(self.targets)) != len(self.targets):
            raise UserError(f"A LoRA target is named twice in {list(self.targets)}; remove one")
        if "qkv" in self.targets and set(_SPLIT) & set(self.targets):
            raise UserError(
                "Choose either the fused LoRA target 'qkv' or some of q, k, v; not both"
            )
        if self.first_block < 0:
            raise UserError(
                f"Expected first_block to be the number of a block from 0 but got "
                f"{self.first_block}; give 0 for adapters in all blocks"
            )

    @property
    def scaling(self) -> float:
        """The factor s in front of ``B @ A``."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def check_targets(targets: Sequence[str], known: Mapping[str, str]) -> None:
    """Check that a backbone has such LoRA targets.

    Args:
        targets: names.
        known: those of the backbone.

    Raises:
        UserError: for a name that is not known.
    """
    for target in targets:
        if target not in known:
            raise unknown_name("LoRA target", target, known)


def parts_of_qkv(targets: Sequence[str]) -> bool:
    """Return whether q, k or v is adapted by itself."""
    return bool(set(_SPLIT) & set(targets))


class SplitQKV(nn.Module):
    """timm's fused projection as three linear layers ``q``, ``k`` and ``v``.

    The output is the same (batch, tokens, 3 * width) tensor, so attention need not know; the
    weights are the chunks of the fused ones.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights = fused.weight.detach().chunk(3)
        biases = fused.bias.detach().chunk(3) if fused.bias is not None else (None,) * 3
        for name, weight, bias in zip(_SPLIT, weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=fused.weight.requires_grad)
            if bias is not None:
                layer.bias = nn.Parameter(bias.clone(), requires_grad=fused.weight.requires_grad)
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return q, k and v of tokens x (batch, tokens, width), joined in the last axis."""
        return torch.cat([getattr(self, name)(x) for name in _SPLIT], dim=-1)


def split_qkv(vit: nn.Module) -> None:
    """Replace every fused ``qkv`` of ``vit`` by a :class:`SplitQKV`, in place.

    Raises:
        UserError: if the model has no fused ``attn.qkv`` linear layer.
    """
    fused = [
        (name, module)
        for name, module in vit.named_modules()
        if name.endswith("attn.qkv") and isinstance(module, nn.Linear)
    ]
    if not fused:
        raise UserError(
            "Expected blocks with a fused attn.qkv linear layer to adapt q, k or v but found none; "
            "choose a timm Vision Transformer"
        )
    for name, module in fused:
        parent = vit.get_submodule(name.rpartition(".")[0])
        parent.qkv = SplitQKV(module).train(module.training)


def target_modules(
    network: nn.Module,
    targets: Sequence[str],
    patterns: Mapping[str, str] = TARGETS,
    first_block: int = 0,
) -> tuple[str, ...]:
    """Return the full names of the linear layers that ``targets`` names, in the network's order.

    Args:
        network: whose layers they are.
        targets: names of targets.
        patterns: target -> a regular expression of full names, as the backbone gives them.
        first_block: layers of blocks below this one are left out.

    Raises:
        UserError: for a target that is not known, or matches no linear layer of the network; or
            for a first block above the last.
    """
    check_targets(targets, patterns)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    found: set[str] = set()
    for target in targets:
        names = [name for name in layers if re.fullmatch(patterns[target], name)]
        if not names:
            raise UserError(
                f"The LoRA target {target!r} matches no linear layer of this backbone; "
                f"choose among {', '.join(patterns)} what its blocks have"
            )
        found.update(names)
    return _from_block(first_block, tuple(name for name in layers if name in found))


def _from_block(first_block: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the layers that lie in a block from this one on, by the number in their names."""
    if not first_block:
        return names
    blocks = {name: _BLOCK.match(name) for name in names}
    odd = next((name for name, block in blocks.items() if block is None), None)
    if odd is not None:
        raise UserError(
            f"first_block={first_block} counts blocks by names such as blocks.{first_block}. but "
            f"this backbone has the layer {odd!r}; leave first_block out, or choose a Vision "
            "Transformer of timm"
        )
    numbers = {name: int(block[1]) for name, block in blocks.items() if block is not None}
    if max(numbers.values()) < first_block:
        raise UserError(
            f"Expected first_block to be at most {max(numbers.values())}, the last block of this "
            f"backbone, but got {first_block}; lower it"
        )
    return tuple(name for name in names if numbers[name] >= first_block)


def inject(
    network: nn.Module,
    config: LoRAConfig,
    start: Mapping[str, LoRAFactors] | None,
    patterns: Mapping[str, str] = TARGETS,
) -> Any:
    """Wrap ``network`` in a peft model with one active, trainable adapter.

    Args:
        network: of the frozen backbone; q, k and v already split if ``config`` asks for them.
        config: the adapter's shape.
        start: factors to go on from; None draws A as peft does (from torch's global generator)
            and sets B to zero, so that the wrapped model starts as the bare one.
        patterns: the backbone's targets; see :func:`target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=list(target_modules(network, config.targets, patterns, config.first_block)),
        use_rslora=config.rslora,
    )
    model = get_peft_model(network, peft_config, adapter_name=ADAPTER_NAME)
    if start is not None:
        for name, layer in _lora_layers(model):
            with torch.no_grad():
                layer.lora_A[ADAPTER_NAME].weight.copy_(start[name].A)
                layer.lora_B[ADAPTER_NAME].weight.copy_(start[name].B)
    return model


def extract(model: Any) -> dict[str, LoRAFactors]:
    """Return copies of the trained factors of a model made by :func:`inject`, on the CPU."""
    return {
        name: LoRAFactors(
            layer.lora_A[ADAPTER_NAME].weight.detach().cpu().clone(),
            layer.lora_B[ADAPTER_NAME].weight.detach().cpu().clone(),
            float(layer.scaling[ADAPTER_NAME]),
        )
        for name, layer in _lora_layers(model)
    }


def train_dropout(model: Any) -> None:
    """Switch the dropout of the adapter on, and nothing else of the model to training."""
    for name, module in model.named_modules():
        if ".lora_dropout." in name:
            module.train()


def adapter_parameters(model: Any) -> list[nn.Parameter]:
    """Return the trainable factors of a model made by :func:`inject`."""
    return [
        factor[ADAPTER_NAME].weight
        for _, layer in _lora_layers(model)
        for factor in (layer.lora_A, layer.lora_B)
    ]


@contextlib.contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Take the adapter out for a while; its layers come back as the same objects.

    Meanwhile the network has the modules that it had before it was injected, under their names, so
    that an optimizer that holds the adapter's parameters need not know.
    """
    layers = dict(_lora_layers(model))
    network = model.get_base_model()
    for name, layer in layers.items():
        _put(network, name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in layers.items():
            _put(network, name, layer)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    holder, _, last = name.rpartition(".")
    setattr(network.get_submodule(holder), last, module)


def remove(model: Any) -> nn.Module:
    """Take the adapter out again and return the bare backbone, weights untouched."""
    from tqdm import tqdm

    # peft's hidden progress bar would start a thread that watches it, and the start of a thread
    # never ends where the memory is all but used up.
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0
    try:
        vit: nn.Module = model.unload()
    finally:
        tqdm.monitor_interval = interval
    return vit


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(prefix), module


class SupportsDelta(Protocol):
    """What can be applied: names of modules or parameters, and the dense update of each."""

    def modules(self) -> tuple[str, ...]:
        """Return the names of the modules, or parameters, that are updated."""
        ...

    def delta(self, module: str) -> Tensor:
        """Return the dense update of one of them."""
        ...


@contextlib.contextmanager
def applied(vit: nn.Module, update: SupportsDelta | None) -> Iterator[None]:
    """Add ``update`` to the weights of ``vit``, and restore them bit for bit on leaving.

    A weight of shape (d_in, d_out), such as GPT-2's, gets the transposed update.

    Raises:
        UserError: if a module of the update is missing in ``vit`` or has another shape.
    """
    if update is None:
        yield
        return
    weights = {name: module_weight(vit, name) for name in update.modules()}
    turned = {name for name in weights if is_transposed(_owner(vit, name))}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                delta = update.delta(name).to(weight)
                delta = delta.T if name in turned else delta
                if delta.shape != weight.shape:
                    raise UserError(
                        f"The update of {name!r} is {tuple(delta.shape)} but its weight is "
                        f"{tuple(weight.shape)}; the adapter belongs to another backbone"
                    )
                weight.add_(delta)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def is_transposed(module: nn.Module | None) -> bool:
    """Return whether a layer keeps its weight as (d_in, d_out), as GPT-2's Conv1D does."""
    # Whoever has such a layer has imported it: no need to import transformers for asking.
    transformers: Any = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and isinstance(module, transformers.Conv1D)


def parameter_name(network: nn.Module, name: str) -> str:
    """Return the full name of the parameter behind the name of a module or parameter."""
    return name if _owner(network, name) is None else f"{name}.weight"


def _owner(vit: nn.Module, name: str) -> nn.Module | None:
    """Return the module of this name; None for the name of a parameter."""
    try:
        return vit.get_submodule(name)
    except AttributeError:
        return None


def module_weight(vit: nn.Module, name: str) -> nn.Parameter:
    """Return the weight of the module ``name``, or the parameter of that name, such as a bias.

    Raises:
        UserError: if the backbone has neither.
    """
    module = _owner(vit, name)
    weight = getattr(module, "weight", None)
    if module is None:
        holder, _, last = name.rpartition(".")
        weight = getattr(_owner(vit, holder), last, None)
    if not isinstance(weight, nn.Parameter):
        raise UserError(
            f"The backbone has no module {name!r}; the adapter belongs to another backbone"
        )
    return weight
