"""An arm: one way to merge a bank of adapters and to serve the result."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_lora.adapters.injection import LoRAConfig, module_weight
from cl_lora.configuration.build import build
from cl_lora.experiment.adaptations import ADAPTATIONS, AdaptationKind, get_adaptation
from cl_lora.experiment.banks import FRESH, BankKind, get_arm_bank
from cl_lora.experiment.head_starts import HeadStart, get_head_start
from cl_lora.experiment.references import REFERENCES, Reference
from cl_lora.experiment.stages import ALONE, Stage, shots_of
from cl_lora.merging import (
    CoefficientRule,
    get_method,
    make_rule,
    require_learnable,
    validate_method,
    variant_of,
)
from cl_lora.merging.coefficients.routed import SOFT
from cl_lora.merging.registry import is_number, statistic_of
from cl_lora.merging.residuals import ResidualChoice, make_residual
from cl_lora.models.base import Backbone
from cl_lora.models.class_statistics import router_statistic
from cl_lora.models.head_policies import HEAD_POLICIES, HeadPolicy, get_head_policy
from cl_lora.strategies.config import SUPPORT, VAL, AdaptationConfig
from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.ranges import at_most, check_most, largest

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
_LONGEST_NAME = 100
_MERGE = ("method", "space", "rank", "coefficients", "select_on")
_ADAPTING = ("adapt", "start", "head_start", "truncate", "adaptation")
_OWN = (
    *_MERGE,
    "spc",
    "buffer_batch_size",
    "head",
    "tune_head",
    "members",
    "bank",
    "residual",
    *_ADAPTING,
)
_ANCHOR = "anchor"
FACTORS = "factors"
BASE, MERGE = "base", "merge"
"""Where an arm that is adapted starts: the bare backbone, or the merge of its members."""

_SEEN: Mapping[str, Callable[[int], int | None]] = {SUPPORT: lambda spc: spc, VAL: lambda spc: None}
"""What coefficients may see, by name: samples per class of the buffer, or the validation part."""

_NOTHING_MERGED: Mapping[str, Any] = {
    "method": None,
    "space": None,
    "scaling": None,
    "options": {},
    "coefficients": {"name": ""},
}


@dataclass(frozen=True)
class Adaptation:
    """How an arm is adapted to the support set of a stage.

    Attributes:
        kind: what is trained.
        start: ``base`` or ``merge``.
        head_start: how the head begins.
        truncate: whether a LoRA takes over the merge, cut to its rank, instead of being fresh
            beside the frozen merge.
        config: how it is trained.
    """

    kind: AdaptationKind
    start: str
    head_start: HeadStart
    truncate: bool
    config: AdaptationConfig

    @property
    def variant(self) -> dict[str, Any]:
        """Everything that defines it."""
        trained = {"truncate": self.truncate} if self.kind.may_truncate else {}
        config = dataclasses.asdict(self.config) if self.kind.trains else {}
        return {
            "adapt": self.kind.name,
            "start": self.start,
            "head_start": self.head_start.name,
            **trained,
            "adaptation": {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
        }


@dataclass(frozen=True)
class Arm:
    """Merge method x coefficients x space, the head that serves, and what is trained on support.

    Attributes:
        name: how the arm is called in every table and file.
        method: a registered merge method; None for an arm that starts from the bare backbone.
        space: ``delta`` or ``factors``.
        rule: how the coefficients come about.
        options: the method's options that differ from its defaults, e.g. ``density``.
        spc: buffer samples per class and domain, for learned coefficients and prototypes.
        buffer_batch_size: buffer images per step when coefficients are learned.
        head: the head policy that it asks for in place of the run's, by name; None where it does
            not. Only policies that do not decide how adapters are trained can be asked for.
        policy: the head policy that holds for it.
        tune_head: whether learning coefficients also trains the head on the buffer.
        anchor: what the squared distance of a trained head to its start is multiplied with in the
            loss: adapters have seen the buffer, so that a free head learns it by heart.
        members: how many of a stage's adapters it merges, the first; None for all.
        adaptation: how it is adapted to support sets; None where it is not.
        bank: whose adapters it merges, or takes residuals of.
        residual: what each task keeps of its own adapter beside the merge, or beside the bare
            backbone where nothing is merged; None for nothing. The task must be known then.
        select_on: what coefficients are learned or chosen on: the ``support``, drawn from what
            adapters were trained on, or the validation part (``val``).
    """

    name: str
    method: str | None
    space: str
    rule: CoefficientRule
    policy: HeadPolicy
    options: Mapping[str, Any] = field(default_factory=dict)
    spc: int = at_most(1_000_000, 5)
    buffer_batch_size: int = at_most(1_000_000, 32)
    head: str | None = None
    tune_head: bool = False
    anchor: float = at_most(1e6, 0.0)
    members: int | None = at_most(10_000, None)
    adaptation: Adaptation | None = None
    bank: BankKind = FRESH
    residual: ResidualChoice | None = None
    select_on: str = SUPPORT

    @property
    def sees(self) -> int | None:
        """Samples per class of the buffer that coefficients see; None for the validation part."""
        return _SEEN[self.select_on](self.spc)

    @property
    def needs_validation(self) -> bool:
        """Whether it sees the validation part."""
        return self.adaptation is None and self.rule.learned and self.sees is None

    @property
    def needs_buffer(self) -> bool:
        """Whether it sees samples of the buffer."""
        learned = self.rule.learned and self.sees is not None
        return self.adaptation is None and (learned or self.policy.needs_support)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics that it needs of every adapter, by name: of its merge, rule and head."""
        merge = None
        if self.method is not None:
            merge = statistic_of(self.method, self.space, self.options)
        routes = (router_statistic(self.rule.options["block"]),) if self.rule.routed else ()
        return (*([merge] if merge is not None else []), *routes, *self.policy.statistics)

    @property
    def in_batches(self) -> bool:
        """Whether its coefficients are learned step by step on batches of the buffer."""
        learned = self.adaptation is None and self.rule.how == "gradient"
        return learned and self.rule.solver.in_batches

    def of(self, stage: Stage) -> tuple[int, ...]:
        """Return the members of a stage that it merges."""
        return stage.members[: self.members]

    def scored(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages at which it is scored.

        At one with a support set if it is adapted, without samples only where nothing would have to
        be chosen by them; at one in time if its merge needs no support set.
        """
        return tuple(stage for stage in stages if self._scored(stage))

    def _scored(self, stage: Stage) -> bool:
        k = shots_of(stage)
        if stage.group == ALONE:
            return False  # nothing is merged
        if k is None:
            adapted = self.adaptation is not None
            return not adapted or (self.method is not None and not self.rule.learned)
        return self.adaptation is not None and (k != 0 or self.rule.how != "search")

    def given(self, members: Sequence[int], modules: Sequence[str]) -> Tensor:
        """Return coefficients that are not learned, float64 (n,) for n merged adapters.

        A list of fixed values has one for every experience of the stream; those of the members
        are taken.
        """
        values = self.rule.options.get("value")
        if isinstance(values, Sequence):
            return torch.tensor([values[m] for m in members], dtype=torch.float64)
        return self.rule.state(len(members), modules).alpha()

    @property
    def merge_variant(self) -> dict[str, Any]:
        """Everything that defines its merge beside members and learned values."""
        if self.method is None:
            return dict(_NOTHING_MERGED)
        merge = variant_of(self.method, self.space, self.options)
        rule = self.rule.config
        if self.adaptation is not None:
            rule.pop("steps", None)  # those of the adaptation hold
        return {
            **{key: merge.pop(key) for key in ("method", "space", "scaling")},
            "options": merge,
            "coefficients": rule,
        }

    @property
    def variant(self) -> dict[str, Any]:
        """Everything that defines the arm, defaults written out: what is recorded of it."""
        scale, symbol = (self.rule.info.scale if self.method is not None else None) or (None, None)
        return {
            **self.merge_variant,
            "scale": scale,
            "scale_title": symbol,
            "spc": self.spc if self.needs_buffer else None,
            "buffer_batch_size": self.buffer_batch_size if self.in_batches else None,
            "head": self.head,
            "tune_head": {_ANCHOR: self.anchor} if self.anchor else self.tune_head,
            # What an arm does not name does not stand here: it is what it was before.
            **({"members": self.members} if self.members is not None else {}),
            **({"bank": self.bank.name} if self.bank is not FRESH else {}),
            **({"residual": self.residual.variant} if self.residual is not None else {}),
            **({"select_on": self.select_on} if self.select_on != SUPPORT else {}),
            **(self.adaptation.variant if self.adaptation is not None else {}),
        }


def settings_of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which :func:`make_arm` makes an arm of this :attr:`Arm.variant`."""
    told = ["scaling", "scale", "scale_title", "options"]
    if variant and variant.get("method") is None:
        told.append("coefficients")
    own = {key: v for key, v in variant.items() if key not in told and v is not None}
    return {**own, **{k: v for k, v in variant.get("options", {}).items() if v is not None}}


@dataclass(frozen=True)
class ArmDefaults:
    """What holds for an arm that does not say.

    Attributes:
        spc: buffer samples per class and experience.
        buffer_batch_size: buffer samples per step.
        head: name of the run's head policy.
        adaptation: how arms are adapted to support sets.
    """

    spc: int = 5
    buffer_batch_size: int = 32
    head: str = "shared"
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)


def make_arms(settings: Mapping[str, Mapping[str, Any]], defaults: ArmDefaults) -> tuple[Arm, ...]:
    """Build and validate all arms, in order; arguments as in :func:`make_arm`."""
    return tuple(make_arm(str(name), arm, defaults) for name, arm in settings.items())


def make_arm(name: str, settings: Mapping[str, Any], defaults: ArmDefaults | None = None) -> Arm:
    """Build and validate one arm of the configuration.

    Args:
        name: the arm's name.
        settings: ``method`` and, where wanted, ``coefficients``, ``space``, ``rank``, ``spc``,
            ``buffer_batch_size``, ``head``, ``tune_head``, ``members`` and the method's own
            options; and ``adapt``, ``start``, ``head_start``, ``truncate`` and ``adaptation`` of
            an arm that is adapted to support sets, which may have no method.
        defaults: what holds where the settings do not say.

    Raises:
        UserError: for anything that could not be evaluated after training.
    """
    defaults = defaults or ArmDefaults()
    try:
        _check_name(name)
        if not isinstance(settings, Mapping) or not {"method", "adapt", "residual"} & set(settings):
            raise UserError(
                f"expected a mapping with a 'method' but got {shown(settings)}; give such as "
                "{method: ties}"
            )
        merges = settings.get("method") is not None
        if not merges and not any(settings.get(key) is not None for key in ("adapt", "residual")):
            raise UserError("method is null and nothing else is served; give such as method: ties")
        method, space, options = _merge(settings) if merges else _no_merge(settings)
        residual = _residual(settings, merges)
        rule = make_rule(_rule_config(settings.get("coefficients", "uniform")))
        if rule.how == "gradient" and rule.solver.gradient and method is not None:
            require_learnable(method, space, options)
        if rule.learned:
            # Options that do not go together show here, not after training.
            rule.state(1, ("blocks.0",))
        tune_head, anchor = _tune_head(settings)
        head = _head(settings)
        policy = get_head_policy(head or defaults.head)
        _check_routed(settings, method, space, options, rule, policy)
        _check_tuned(tune_head, rule, policy)
        if policy.apart and not get_head_policy(defaults.head).apart:
            raise UserError(
                f"head={policy.name} serves every experience by a head of its own; set "
                "strategy.head=own, or leave it out"
            )
        return Arm(
            name=name,
            method=method,
            space=space,
            rule=rule,
            policy=policy,
            options=options,
            spc=_count(settings, "spc", defaults.spc),
            buffer_batch_size=_count(settings, "buffer_batch_size", defaults.buffer_batch_size),
            head=head,
            tune_head=tune_head,
            anchor=anchor,
            members=None if settings.get("members") is None else _count(settings, "members", 1),
            adaptation=_adaptation(settings, merges, rule, defaults.adaptation),
            bank=_bank(settings, space),
            residual=residual,
            select_on=_select_on(settings, rule, policy),
        )
    except UserError as error:
        raise UserError(f"Arm {shown(name)}: {error}") from error


def _check_routed(
    settings: Mapping[str, Any],
    method: str | None,
    space: str,
    options: Mapping[str, Any],
    rule: CoefficientRule,
    policy: HeadPolicy,
) -> None:
    """Refuse what cannot be served for each input apart."""
    if policy.statistics and settings.get("residual") is not None:
        raise UserError(
            f"head={policy.name} is made of features under whole adapters, but with a residual "
            "every task is served with the head of its own adapter; leave head out, or residual"
        )
    if not rule.routed:
        if policy.of_one_adapter:
            raise UserError(
                f"head={policy.name} belongs to one adapter but this arm merges several; give "
                "coefficients=routed, or head=mixture"
            )
        return
    plain = method is not None and get_method(method).plain and space == "delta"
    if not plain or options.get("rank") is not None:
        raise UserError(
            "coefficients=routed serve every input with a sum of its own, which needs the plain "
            "sum of updates; give method=task_arithmetic, space=delta and no rank"
        )
    odd = [key for key in ("residual", "adapt", "tune_head") if settings.get(key)]
    if odd:
        raise UserError(f"coefficients=routed do not go with {odd[0]}; leave it out")
    bank = get_arm_bank(str(settings.get("bank") or FRESH.name))
    if rule.options["weights"] == SOFT and not bank.tuning.low_rank:
        raise UserError(
            f"weights=soft mix low-rank adapters in one pass but bank={bank.name} holds none; give "
            "weights=hard, or another bank"
        )
    if policy.needs_support and policy.statistics:
        raise UserError(
            f"head={policy.name} follows what a merge does to features, but coefficients=routed "
            "serve adapters as they were trained; give head=gaussian, or head=mixture"
        )
    if policy.apart:
        raise UserError(
            f"coefficients=routed find out which experience an input is of, but head={policy.name} "
            "is for runs that know it; leave the arm out, or set strategy.head=shared with "
            "protocol=prefixes"
        )


def _merge(settings: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    method = str(settings["method"])
    space = str(settings.get("space") or "delta")
    options = _method_options(method, settings)
    validate_method(method, space, options)
    return method, space, options


def _no_merge(settings: Mapping[str, Any]) -> tuple[None, str, dict[str, Any]]:
    for option in settings:
        if option not in _OWN:
            raise unknown_name("option", option, _OWN)
    return None, "delta", {}


def _residual(settings: Mapping[str, Any], merges: bool) -> ResidualChoice | None:
    """Read what each task keeps of its own adapter."""
    given = settings.get("residual")
    if given is None:
        return None
    if settings.get("adapt") is not None:
        raise UserError(
            "a residual needs an adapter of the task that is served, and an arm that is adapted "
            "has none; leave residual out, or adapt"
        )
    if settings.get("tune_head"):
        raise UserError(
            "tune_head trains one head for what is merged, but with a residual every task is "
            "served with the head of its own adapter; leave tune_head out, or residual"
        )
    if not merges:
        odd = [key for key in _MERGE if settings.get(key) is not None]
        if odd:
            raise UserError(
                f"{odd[0]} belongs to a merge but no method is given, so residuals are taken of "
                f"the bare backbone; give method, or leave {odd[0]} out"
            )
    return make_residual({"name": given} if isinstance(given, str) else given)


def _bank(settings: Mapping[str, Any], space: str) -> BankKind:
    bank = get_arm_bank(str(settings.get("bank") or FRESH.name))
    if settings.get("adapt") is not None and bank is not FRESH:
        raise UserError(
            f"bank={bank.name} is for merges and residuals but this arm is adapted to support "
            "sets, from adapters; leave bank out, or adapt"
        )
    if space == FACTORS and not bank.tuning.low_rank:
        raise UserError(
            f"space={space} merges the factors of adapters but what bank={bank.name} holds has "
            "none; use space=delta"
        )
    return bank


def _select_on(settings: Mapping[str, Any], rule: CoefficientRule, policy: HeadPolicy) -> str:
    """Read what coefficients are learned or chosen on."""
    given = str(settings.get("select_on") or SUPPORT)
    if given not in _SEEN:
        raise unknown_name("select_on", given, _SEEN)
    if settings.get("select_on") is not None and not rule.learned:
        raise UserError(
            f"select_on says what coefficients are learned or chosen on but coefficients="
            f"{rule.name} are given; leave it out, or give e.g. coefficients=grid"
        )
    if given != SUPPORT and policy.needs_support:
        raise UserError(
            f"head={policy.name} is made of the buffer, so select_on={given} cannot hold for it; "
            "leave select_on out, or choose another head"
        )
    return given


def _adaptation(
    settings: Mapping[str, Any], merges: bool, rule: CoefficientRule, defaults: AdaptationConfig
) -> Adaptation | None:
    """Read how an arm is adapted; refuse what does not go together."""
    if settings.get("adapt") is None:
        given = [key for key in _ADAPTING if settings.get(key) is not None]
        if given:
            raise UserError(
                f"{given[0]} is for an arm that is adapted to support sets; give adapt too, one of "
                f"{', '.join(ADAPTATIONS)}"
            )
        return None
    kind = get_adaptation(str(settings["adapt"]))
    start = _start(settings, merges, kind, rule)
    head_start = get_head_start(str(settings.get("head_start") or kind.head_start))
    more = kind.trains_network or kind.learns_coefficients
    if kind.trains and not head_start.trainable and not (head_start.from_backbone and more):
        raise UserError(
            f"head_start={head_start.name} gives a head that cannot be trained on; give it with "
            "adapt=none, or choose another"
        )
    if not kind.trains and not head_start.serves:
        raise UserError(
            f"head_start={head_start.name} is no head that could serve without training; choose "
            "means or average, or train it with adapt=head"
        )
    if settings.get("tune_head"):
        raise UserError("tune_head is for coefficients learned on the buffer; leave it out")
    if settings.get("head") is not None:
        raise UserError("an arm that is adapted makes its own head; give head_start, not head")
    truncate = settings.get("truncate", False)
    if not isinstance(truncate, bool):
        raise UserError(
            f"expected truncate to be true or false but got {shown(truncate)}; give one of the two"
        )
    if truncate and not (kind.may_truncate and start == MERGE):
        raise UserError(
            "truncate is for a LoRA that takes over a merge; give adapt=lora, method=..."
        )
    own = settings.get("adaptation") or {}
    if not isinstance(own, Mapping):
        raise UserError(
            f"expected adaptation to be a mapping of settings but got {shown(own)}; give such as "
            "{steps: 40}"
        )
    config = build(AdaptationConfig, {**dataclasses.asdict(defaults), **own}, "adaptation")
    if rule.how == "search" and not (config.warmup_steps or head_start.from_backbone):
        raise UserError(
            f"coefficients={rule.name} are chosen by the loss of a head that is warmed up, but "
            "adaptation.warmup_steps=0; give it some steps, or other coefficients"
        )
    return Adaptation(kind, start, head_start, truncate, config)


def _start(
    settings: Mapping[str, Any], merges: bool, kind: AdaptationKind, rule: CoefficientRule
) -> str:
    """Return where an adapted arm starts, and check that it says the same everywhere."""
    start = str(settings.get("start") or (MERGE if merges else BASE))
    if start not in (BASE, MERGE):
        raise unknown_name("start", start, (BASE, MERGE))
    if start == BASE:
        given = [k for k in (*_MERGE, "members") if settings.get(k) is not None]
        if given:
            raise UserError(
                f"start=base merges nothing but {given[0]} is given; leave it out, or give "
                "start=merge"
            )
    elif not merges:
        raise UserError("start=merge needs a merge; give method, e.g. method=task_arithmetic")
    if kind.learns_coefficients and (start == BASE or rule.how != "gradient"):
        raise UserError(
            f"adapt={kind.name} learns the coefficients of a merge; give method and coefficients, "
            "e.g. method=task_arithmetic coefficients=softmax"
        )
    if rule.how == "gradient" and not (kind.learns_coefficients or kind.trains_network):
        raise UserError(
            f"coefficients={rule.name} are learned but adapt={kind.name} learns none; give "
            "adapt=coefficients, or fixed coefficients"
        )
    if rule.how == "gradient" and (not rule.solver.gradient or rule.follows):
        odd = "start=previous" if rule.follows else f"solver={rule.solver.name}"
        raise UserError(
            "the coefficients of an arm that is adapted are trained step by step with its head, "
            f"from their initial values; leave {odd} out of coefficients"
        )
    config = settings.get("coefficients")
    if isinstance(config, Mapping) and "steps" in config:
        raise UserError(
            "the steps of learned coefficients are those of the adaptation, the same for every "
            "arm; set adaptation.steps and leave coefficients.steps out"
        )
    return start


def check_protocol(
    arms: Sequence[Arm], references: Sequence[Reference], few_shot: bool, stages: Sequence[Stage]
) -> None:
    """Check that every arm and row is scored at some stage of a protocol.

    Args:
        arms: the arms.
        references: the baselines.
        few_shot: whether the protocol has stages with support sets.
        stages: all stages.

    Raises:
        UserError: naming the arm or the row; also if arms that choose a learning rate have grids
            of different sizes, as more choices are an advantage.
    """
    if not arms and not references:
        raise UserError(
            "Expected an arm or a baseline to score but arms and references are both empty; "
            "name one, as arms=default or references=[last]"
        )
    for row in references:
        if not row.scored(stages):
            raise UserError(
                f"The baseline {row.name!r} is scored at no stage of this protocol; leave it "
                "out of references"
            )
    sizes = {
        len(arm.adaptation.config.grid): arm.name
        for arm in arms
        if arm.adaptation is not None and arm.adaptation.kind.trains
    }
    if len(sizes) > 1:
        (size, first), (other, second), *_ = sizes.items()
        raise UserError(
            f"Expected grids of one size but {first!r} chooses among {size} learning rates and "
            f"{second!r} among {other}; give them equally many in adaptation.grid"
        )
    largest = max((len(stage.members) for stage in stages), default=0)
    for arm in arms:
        if few_shot and arm.needs_buffer:
            raise UserError(
                f"Arm {arm.name!r} learns or makes its head on a buffer, but here every experience "
                "has a head of its own; give adapt, e.g. adapt=coefficients, to use support sets"
            )
        if not arm.scored(stages):
            raise UserError(
                f"Arm {arm.name!r} is scored at no stage of this protocol; give adapt, one of "
                f"{', '.join(ADAPTATIONS)}"
            )
        if arm.rule.follows and not _in_a_row(arm.scored(stages)):
            raise UserError(
                f"Arm {arm.name!r}: coefficients.start=previous starts from the stage before, but "
                "stages of this protocol do not follow one another; leave it out"
            )
        if arm.members is not None and arm.members > largest:
            raise UserError(
                f"Arm {arm.name!r}: expected members to be at most {largest}, the adapters of the "
                f"largest stage, but got {arm.members}"
            )


def _in_a_row(stages: Sequence[Stage]) -> bool:
    """Return whether every stage has the members of the one before, and one more."""
    there = {(stage.index, stage.members) for stage in stages}
    return all(
        len(s.members) == 1 or (s.index - 1, s.members[:-1]) in there for s in stages if s.members
    )


def check_residuals(arms: Sequence[Arm], lora: LoRAConfig, backbone: Backbone) -> None:
    """Check that what residuals keep is there: no more than the rank of the adapters.

    Args:
        arms: the arms.
        lora: the shape of a LoRA.
        backbone: whose layers or weights are trained.

    Raises:
        UserError: naming the arm.
    """
    for arm in arms:
        if arm.residual is None:
            continue
        tuning = arm.bank.tuning
        names = tuning.modules(backbone, lora)
        shapes = [tuple(module_weight(backbone.network, name).shape) for name in names]
        ranks = [min(shape) for shape in shapes if len(shape) == 2]
        rank = tuning.rank(lora)
        if rank is not None and arm.method is None:
            ranks.append(rank)  # of a difference to a merge it is known when that is there
        try:
            arm.residual.check_rank(min(ranks))
        except UserError as error:
            raise UserError(f"Arm {arm.name!r}: {error}") from error


def check_weights(arms: Sequence[Arm], experiences: int) -> None:
    """Check that every list of fixed coefficients has one for each experience of the stream.

    Raises:
        UserError: naming the arm.
    """
    for arm in arms:
        value = arm.rule.options.get("value") if arm.method is not None else None
        if isinstance(value, Sequence) and len(value) != experiences:
            raise UserError(
                f"Arm {arm.name!r}: expected {experiences} fixed coefficients, one for each "
                f"experience, but got {len(value)}: {list(value)}"
            )


def check_groups(arms: Sequence[Arm], modules: Sequence[str]) -> None:
    """Check that coefficients by layer or module find their groups among the adapted modules.

    Raises:
        UserError: naming the arm.
    """
    for arm in arms:
        try:
            if arm.method is not None:
                arm.rule.groups(modules)
        except UserError as error:
            raise UserError(f"Arm {arm.name!r}: {error}") from error


def _count(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"expected {key} to be a whole number of at least 1 but got {shown(value)}; give such "
            f"as {key}: 5"
        )
    check_most(value, largest(Arm)[key], key)
    return value


def _check_name(name: str) -> None:
    if len(name) > _LONGEST_NAME:
        raise UserError(
            f"expected an arm's name of at most {_LONGEST_NAME} letters, as files have it, "
            f"but got {len(name)}; shorten it"
        )
    if not _NAME.fullmatch(name):
        raise UserError(
            "an arm's name may hold letters, digits, '_', '-', '.', '+', and no point in front; "
            "rename it"
        )
    if name in REFERENCES:
        raise UserError("this name is kept for the baseline; choose another")


def _method_options(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = get_method(method).options
    for option in settings:
        if option not in _OWN and option not in known:
            raise unknown_name("option", option, [*_OWN, *known])
    options = {k: v for k, v in settings.items() if k not in _OWN}
    if settings.get("rank") is not None:
        options["rank"] = settings["rank"]
    return options


def _rule_config(value: Any) -> Mapping[str, Any]:
    """Read the short forms: ``uniform`` is the rule's name, a number or a list fixed values."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping):
        return value
    return {"name": "fixed", "value": value}


def _head(settings: Mapping[str, Any]) -> str | None:
    if settings.get("head") is None:
        return None
    head = str(settings["head"])
    if not get_head_policy(head).for_one_arm:
        free = [name for name, policy in HEAD_POLICIES.items() if policy.for_one_arm]
        raise UserError(
            f"head={head!r} decides how adapters are trained, so it holds for the whole run; "
            f"set strategy.head={head} (for one arm: {', '.join(free)})"
        )
    return head


def _tune_head(settings: Mapping[str, Any]) -> tuple[bool, float]:
    """Read whether the head is trained with the coefficients, and how much it is held back."""
    tune = settings.get("tune_head", False)
    if isinstance(tune, bool):
        return tune, 0.0
    if not isinstance(tune, Mapping) or set(tune) != {_ANCHOR}:
        raise UserError(
            f"expected tune_head to be true or false, or {{{_ANCHOR}: a number}}, but got "
            f"{shown(tune)}; give one of these"
        )
    anchor = tune[_ANCHOR]
    check_most(anchor, largest(Arm)[_ANCHOR], f"tune_head.{_ANCHOR}")
    if not (is_number(anchor) and anchor > 0):
        raise UserError(
            f"expected tune_head.{_ANCHOR} to be a finite number above 0 but got {shown(anchor)}; "
            "give one, or tune_head: true for a head that is not held back"
        )
    return True, float(anchor)


def _check_tuned(tune: bool, rule: CoefficientRule, policy: HeadPolicy) -> None:
    """Refuse to train a head along with what has no gradient, or that would not be served."""
    if tune and rule.how != "gradient":
        raise UserError(
            "tune_head needs learned coefficients; give such as coefficients=adaptive, or leave "
            "tune_head out"
        )
    if tune and not rule.solver.gradient:
        raise UserError(
            f"tune_head trains the head by its gradient but solver={rule.solver.name} has none; "
            "leave tune_head out, or give solver=adam"
        )
    if tune and not policy.tunable:
        raise UserError(
            f"tune_head cannot go with head={policy.name}: no trained head would be served "
            f"({policy.summary}); leave tune_head out or choose another strategy.head"
        )
