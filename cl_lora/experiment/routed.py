"""What a routed arm serves: every input with the adapter, or the adapters, that its style asks for.

Which experience an input belongs to is not known: it is judged by statistics that were kept beside
the adapters. An expert is an adapter with the head that was trained with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.adapters.injection import module_weight
from cl_lora.benchmarks.batches import target_tensor
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.banks import BankKind
from cl_lora.experiment.serving import OwnUpdate, Part, Served, Workbench, numbers_of
from cl_lora.experiment.stages import Stage
from cl_lora.merging.coefficients.routed import SOFT
from cl_lora.models.bottleneck import Bottleneck, mixed
from cl_lora.models.class_statistics import results_of, router_statistic
from cl_lora.models.compute import Batch
from cl_lora.models.heads import freeze
from cl_lora.models.routing import Router, default_block, style
from cl_lora.models.weights import lowest_block
from cl_lora.run_folder.records import Coefficient


def serve_routed(bench: Workbench, arm: Arm, stage: Stage) -> Served:
    """Return what a routed arm serves at a stage, and how it routes the test samples."""
    experts = Experts.of(bench, arm, stage)
    part = Part(None, experts.heads_module, answers=experts.answers, serve=experts.serve)
    return Served(
        dict.fromkeys(stage.evaluated, part),
        tuple(experts.shares(arm.name, stage)),
        passes=experts.passes,
        beside=experts.numbers,
    )


@dataclass(frozen=True, eq=False)
class Experts:
    """Adapters and heads that inputs are routed to.

    Attributes:
        bench: what serving needs.
        bank: where the adapters are from.
        members: their indices.
        heads: one for each, frozen, on the device.
        router: tells which of them an input needs.
        block: at whose input it looks.
        soft: whether all serve an input, by their probability, or the likeliest alone.
        temperature: of soft weights.
    """

    bench: Workbench
    bank: BankKind
    members: tuple[int, ...]
    heads: Sequence[nn.Module]
    router: Router
    block: int
    soft: bool
    temperature: float

    @classmethod
    def of(cls, bench: Workbench, arm: Arm, stage: Stage) -> Experts:
        """Return the experts of an arm at a stage: those of its members, as far as they have come.

        The router knows the domains that were seen by then, and no other.
        """
        options, members = arm.rule.options, arm.of(stage)
        name = router_statistic(options["block"])
        adapters = [bench.banks[arm.bank.name][m] for m in members]
        results = [results for a in adapters for results in results_of(a.statistics[name])]
        device = bench.compute.device
        heads = [
            freeze(bench.head_alone(arm.bank, m, stage.seen_by(m), arm.policy, spc=arm.spc)).to(
                device
            )
            for m in members
        ]
        block = default_block(bench.backbone) if options["block"] is None else options["block"]
        return cls(
            bench,
            arm.bank,
            members,
            heads,
            Router(results, device),
            block,
            options["weights"] == SOFT,
            options["temperature"],
        )

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters, in order."""
        return [self.bench.banks[self.bank.name][m] for m in self.members]

    @property
    def heads_module(self) -> nn.Module:
        """All heads, to be counted."""
        return nn.ModuleList(self.heads)

    def weights(self, j: int) -> Tensor:
        """Return the weight (N, n) of every expert for the test samples of an experience."""
        styles = self.bench.store.styles(self.block, j, self.bench.benchmark.experiences[j].test)
        if self.soft:
            return self.router.soft(styles, self.temperature)
        return nn.functional.one_hot(self.router.hard(styles), len(self.members)).float()

    def answers(self, j: int) -> list[Batch]:
        """Return outputs and targets of the test samples of an experience, in their order."""
        experience = self.bench.benchmark.experiences[j]
        weights = self.weights(j)
        targets = target_tensor(experience, experience.test).to(weights.device)
        outputs = self._mixed(j, weights) if self.soft else self._grouped(j, weights.argmax(1))
        return [(outputs, targets)]

    @torch.no_grad()
    def serve(self, inputs: Tensor) -> Tensor:
        """Return the outputs of one batch of encoded inputs, as they come: nothing is stored.

        The router's pass goes up to its block. What no adapter changes of it, at least the
        embedding, is shared: the pass of the experts goes on from there.
        """
        bench, backbone = self.bench, self.bench.backbone
        inputs, shared = inputs.to(bench.compute.device), self._shared
        begun: Tensor = inputs
        pass_on: Callable[[Tensor], Tensor] = backbone
        with bench.compute.autocast():
            tokens = backbone.tokens(inputs, max(shared, 0))
            if shared >= 0:
                begun, pass_on = tokens, partial(backbone.resume, block=shared)
            tokens = backbone.advance(tokens, max(shared, 0), self.block)
        styles = style(backbone.patches(tokens))

        def features(rows: Tensor | slice) -> Tensor:
            with bench.compute.autocast():
                found: Tensor = pass_on(begun[rows])
            return found.float()

        if self.soft:
            weights = self.router.soft(styles, self.temperature)
            with mixed(backbone.network, self._bottleneck) as weigh:
                weigh(weights)
                return self.mix(features(slice(None)), weights)

        def under(member: int, rows: Tensor) -> Tensor:
            with self._lent(bench.banks[self.bank.name][member]):
                return features(rows)

        return self._each(self.router.hard(styles), under)

    @contextmanager
    def _lent(self, adapter: Adapter) -> Iterator[None]:
        """Serve the network with an adapter, its weights written where they lie ready to be taken.

        Four experts to a batch enter and leave often: that no weight is copied halves what routing
        costs beside the passes.
        """
        own = {name: parameter.data for name, (parameter, _) in self._places.items()}
        try:
            for name, entry in adapter.entries.items():
                parameter, ready = self._places[name]
                if isinstance(entry, LoRAFactors):
                    A, B = entry.A.to(ready), entry.B.to(ready)
                    torch.addmm(own[name], B, A, alpha=entry.scaling, out=ready)
                else:
                    torch.add(own[name], entry.to(ready), out=ready)
                parameter.data = ready
            yield
        finally:
            for name, (parameter, _) in self._places.items():
                parameter.data = own[name]

    @cached_property
    def _places(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """The parameter of every adapted module, and room for another in its place."""
        network = self.bench.backbone.network
        names = {name for adapter in self.adapters for name in adapter.modules()}
        found = {name: module_weight(network, name) for name in sorted(names)}
        return {name: (weight, torch.empty_like(weight.data)) for name, weight in found.items()}

    def _grouped(self, j: int, routes: Tensor) -> Tensor:
        """Return the outputs of the expert of every test sample; its features are computed once."""
        test = self.bench.benchmark.experiences[j].test
        return self._each(
            routes,
            lambda member, rows: self.bench.features_alone(self.bank, member, j, test)[rows],
        )

    def _each(self, routes: Tensor, features: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return the outputs of the expert of every input, each expert asked for its rows once."""
        outputs: Tensor | None = None
        for place, (member, head) in enumerate(zip(self.members, self.heads, strict=True)):
            rows = (routes == place).nonzero().squeeze(1)
            if not len(rows):
                continue
            made = head(features(member, rows))
            outputs = made.new_empty(len(routes), made.shape[1]) if outputs is None else outputs
            outputs[rows] = made
        assert outputs is not None
        return outputs

    def _mixed(self, j: int, weights: Tensor) -> Tensor:
        """Return ``log sum_i w_i softmax(head_i(f))``, f the features under all adapters."""
        bench, test = self.bench, self.bench.benchmark.experiences[j].test
        found, lowest = [], lowest_block(self._bottleneck.modules)
        pairs = bench.store.features(lowest, j, test)
        with mixed(bench.backbone.network, self._bottleneck) as weigh:
            for rows in torch.split(weights, bench.batch_size):
                weigh(rows)  # before their features are computed, which is when they are asked for
                features, _ = next(pairs)
                found.append(self.mix(features, rows))
        return torch.cat(found)

    def mix(self, features: Tensor, weights: Tensor) -> Tensor:
        """Return the log of the heads' probabilities, mixed by the weights (batch, n)."""
        heads = torch.stack([head(features).log_softmax(-1) for head in self.heads], dim=1)
        return (heads + weights.log().clamp(min=-1e30)[..., None]).logsumexp(1)

    @cached_property
    def _bottleneck(self) -> Bottleneck:
        return Bottleneck.of(self.bench.backbone.network, self.adapters)

    def shares(self, arm: str, stage: Stage) -> list[Coefficient]:
        """Return how the test samples of every experience are routed: the mean weights."""
        names, seed = self.bench.benchmark.names, self.bench.seed
        return [
            Coefficient(seed, arm, stage.index, names[j], member, share)
            for j in stage.evaluated
            for member, share in zip(self.members, self.weights(j).mean(0).tolist(), strict=True)
        ]

    @property
    def passes(self) -> float:
        """How many passes of the backbone an input needs.

        One, and the blocks below the router's a second time where adapters change them.
        """
        return 1.0 + (self.block - max(self._shared, 0)) / self.bench.backbone.depth

    @property
    def shares_prefix(self) -> bool:
        """Whether no adapter changes anything before the router looks."""
        return self._shared == self.block

    @cached_property
    def _shared(self) -> int:
        """The block up to which router and experts share what is computed; -1: nothing."""
        return min(self.block, *(lowest_block(adapter.modules()) for adapter in self.adapters))

    @property
    def numbers(self) -> int:
        """How many numbers stand beside backbone and heads: the adapters and the router."""
        adapters = sum(numbers_of(OwnUpdate(adapter)) for adapter in self.adapters)
        return adapters + sum(b.numel() for b in self.router.densities.buffers())
