"""Adapters that stay apart in the forward pass: their weights enter the bottleneck."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.adapters import Adapter, LoRAFactors, concatenate
from cl_lora.adapters.injection import module_weight
from cl_lora.merging.plan import gather
from cl_lora.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """n adapters of one network, the factors of each module stacked once.

    Attributes:
        stacked: module -> A (R, d_in) and B (d_out, R) with ``R = sum_i r_i``; the scalings are
            in B.
        ranks: module -> the n ranks, int64 (n,).
        n: the number of adapters.
    """

    stacked: Mapping[str, LoRAFactors]
    ranks: Mapping[str, Tensor]
    n: int

    @classmethod
    def of(cls, network: nn.Module, adapters: Sequence[Adapter]) -> Bottleneck:
        """Stack the factors of ``adapters`` in the dtype and on the device of ``network``.

        Raises:
            UserError: if the adapters do not fit each other (as
                :func:`~cl_lora.merging.plan.gather`), do not fit linear layers of the network, or
                are no low-rank factors.
        """
        sources = gather(adapters)
        ones = torch.ones(sources.n, dtype=sources.dtype)
        stacked, ranks = {}, {}
        for module in sources.modules:
            factors = sources.factors(module)
            if factors is None:
                raise UserError(
                    f"Expected low-rank factors in {module!r} but it has a dense update; only LoRA "
                    "adapters can stay apart"
                )
            weight = _linear_weight(network, module, factors[0].shape)
            both = concatenate(factors, ones)
            stacked[module] = LoRAFactors(both.A.to(weight), both.B.to(weight))
            ranks[module] = torch.tensor([f.rank for f in factors], device=weight.device)
        return cls(stacked, ranks, sources.n)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the adapted modules, in the order of the adapters."""
        return tuple(self.stacked)

    @property
    def multiplies_less(self) -> bool:
        """Whether a step multiplies less than one with dense updates, however many the tokens.

        For each token a step of learning the weights multiplies ``2 R (d_in + d_out)`` numbers
        beyond what the frozen layers do (A and B forward, both again backward), and the gradient
        of a merged weight takes ``d_in d_out``: the bottleneck pays up to ``R = d / 4`` in a square
        layer. Merging has a cost per step beside it, so with few tokens the bottleneck pays
        beyond that too.
        """
        apart = sum(2 * f.rank * sum(f.shape) for f in self.stacked.values())
        return apart <= sum(f.shape[0] * f.shape[1] for f in self.stacked.values())

    def weighted(self, alpha: Tensor) -> Composition:
        """Return the composition of the adapters with these coefficients.

        Args:
            alpha: float tensor (n,) for all modules, or (M, n) with one row per module in the
                order of :attr:`modules`; any sign; a gradient flows to it.

        Raises:
            UserError: if the shape is neither, or a coefficient is not finite.
        """
        whole, each = (self.n,), (len(self.stacked), self.n)
        if tuple(alpha.shape) not in (whole, each):
            raise UserError(
                f"Expected composition weights of shape {whole} (one per adapter) or {each} (a row "
                f"per module) but got {tuple(alpha.shape)}; give as many as there are adapters"
            )
        if not alpha.isfinite().all():
            raise UserError(
                f"Expected finite composition weights but {int((~alpha.isfinite()).sum())} of "
                f"{alpha.numel()} are NaN or infinite; lower their learning rate"
            )
        return Composition(self, alpha)


@dataclass(frozen=True, eq=False)
class Composition:
    """The weighted sum of adapters that stay apart; made by :meth:`Bottleneck.weighted`.

    Attributes:
        bottleneck: the adapters.
        alpha: the coefficients, (n,) or (M, n).
    """

    bottleneck: Bottleneck
    alpha: Tensor

    def columns(self) -> dict[str, Tensor]:
        """Return for each module the factor (R,) of every column of its bottleneck."""
        made = self.bottleneck
        factors = made.stacked.values()
        # All rows go to the device at once; a row per module would wait for each.
        alpha = self.alpha.to(next(iter(factors)).A).expand(len(made.stacked), made.n)
        return {
            module: row.repeat_interleave(made.ranks[module], output_size=f.rank)
            for (module, f), row in zip(made.stacked.items(), alpha, strict=True)
        }


@contextlib.contextmanager
def composed(network: nn.Module, composition: Composition) -> Iterator[None]:
    """Add weighted adapters to the outputs of the adapted layers while the context lasts.

    ``out = W0 x + b + sum_i alpha_i s_i B_i (A_i x)``

    The layers of Asadi et al. 2024, written so that no (d_out, d_in) matrix is ever made, nor its
    gradient: with frozen weights a step keeps (batch, tokens, R) numbers per module for the
    backward pass. Equal to :func:`~cl_lora.adapters.injection.applied` with the sum of the same
    weights but for rounding; differentiable in the weights. No weight is touched, so the network is
    the same bit for bit afterwards. It may be entered before a fresh LoRA is injected: the
    composition then belongs to what is frozen.

    Args:
        network: the network that the bottleneck was made for.
        composition: the adapters and their weights.

    Raises:
        UserError: if the network lacks a module of the composition.
    """
    layers = {m: _layer(network, m) for m in composition.bottleneck.modules}
    with contextlib.ExitStack() as hooks:
        for module, columns in composition.columns().items():
            hook = _adding(composition.bottleneck.stacked[module], columns)
            hooks.callback(layers[module].register_forward_hook(hook).remove)
        yield


@contextlib.contextmanager
def mixed(network: nn.Module, bottleneck: Bottleneck) -> Iterator[Callable[[Tensor], None]]:
    """Serve every input with weights of its own while the context lasts, in one pass.

    ``out_n = W0 x_n + b + sum_i w_ni s_i B_i (A_i x_n)``

    Args:
        network: the network that the bottleneck was made for.
        bottleneck: the adapters.

    Yields:
        What takes the weights (batch, n) of the inputs that come next.
    """
    layers = {m: _layer(network, m) for m in bottleneck.modules}
    current: list[Tensor] = []

    def weigh(weights: Tensor) -> None:
        current[:] = [weights]

    def adding(f: LoRAFactors, ranks: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            columns = current[0].to(f.A).repeat_interleave(ranks, dim=1, output_size=f.rank)
            # One row of columns for all tokens of an input.
            columns = columns.view(len(columns), *[1] * (output.ndim - 2), -1)
            rows = output.reshape(-1, output.shape[-1])
            weighed = (F.linear(inputs[0], f.A) * columns).to(output.dtype)
            out = torch.addmm(rows, weighed.reshape(len(rows), -1), f.B.T.to(output.dtype))
            return out.view(output.shape)

        return hook

    with contextlib.ExitStack() as hooks:
        for module, factors in bottleneck.stacked.items():
            hook = adding(factors, bottleneck.ranks[module])
            hooks.callback(layers[module].register_forward_hook(hook).remove)
        yield weigh


def _adding(f: LoRAFactors, columns: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Under autocast the products are bf16, but the weights and their gradient stay float32.
        bottleneck = F.linear(inputs[0], f.A) * columns
        # The product is added where it is made: no second tensor of the size of the output.
        rows = output.reshape(-1, output.shape[-1])
        out = torch.addmm(rows, bottleneck.reshape(len(rows), -1), f.B.T)
        return out.view(output.shape)

    return hook


def _layer(network: nn.Module, module: str) -> nn.Linear:
    module_weight(network, module)
    layer = network.get_submodule(module)
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"Expected the adapted module {module!r} to be a linear layer, to keep adapters apart "
            f"in it, but it is {type(layer).__name__}; merge them into its weight instead"
        )
    return layer


def _linear_weight(network: nn.Module, module: str, shape: tuple[int, int]) -> Tensor:
    weight = _layer(network, module).weight
    if weight.shape != shape:
        raise UserError(
            f"The update of {module!r} is {shape} but its weight is {tuple(weight.shape)}; the "
            "adapter belongs to another backbone"
        )
    return weight
