"""An arm: one way to merge a bank of adapters and to serve the result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_lora.experiment.references import REFERENCES
from cl_lora.merging import (
    CoefficientRule,
    get_method,
    make_rule,
    require_learnable,
    validate_method,
    variant_of,
)
from cl_lora.models.head_policies import HEAD_POLICIES, HeadPolicy, get_head_policy
from cl_lora.support.errors import UserError, unknown_name

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
_OWN = (
    "method",
    "space",
    "rank",
    "coefficients",
    "spc",
    "buffer_batch_size",
    "head",
    "tune_head",
)


@dataclass(frozen=True)
class Arm:
    """Merge method x coefficients x space, and the head that serves the merged backbone.

    Attributes:
        name: how the arm is called in every table and file.
        method: a registered merge method.
        space: ``delta`` or ``factors``.
        rule: how the coefficients come about.
        options: the method's options that differ from its defaults, e.g. ``density``.
        spc: buffer samples per class and domain, for learned coefficients and prototypes.
        buffer_batch_size: buffer images a step when coefficients are learned.
        head: the head policy that it asks for in place of the run's, by name; None where it does
            not. Only policies that do not decide how adapters are trained can be asked for.
        policy: the head policy that holds for it.
        tune_head: whether learning coefficients also trains the head on the buffer.
    """

    name: str
    method: str
    space: str
    rule: CoefficientRule
    policy: HeadPolicy
    options: Mapping[str, Any] = field(default_factory=dict)
    spc: int = 5
    buffer_batch_size: int = 32
    head: str | None = None
    tune_head: bool = False

    @property
    def needs_buffer(self) -> bool:
        """Whether it sees samples of the buffer."""
        return self.rule.learned or self.policy.needs_support

    @property
    def in_batches(self) -> bool:
        """Whether its coefficients are learned step by step."""
        return self.rule.how == "gradient"

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
    def variant(self) -> dict[str, Any]:
        """Everything that defines the arm, defaults written out: what is recorded of it."""
        merge = variant_of(self.method, self.space, self.options)
        scale, symbol = self.rule.info.scale or (None, None)
        return {
            **{key: merge.pop(key) for key in ("method", "space", "scaling")},
            "options": merge,
            "coefficients": self.rule.config,
            "scale": scale,
            "scale_title": symbol,
            "spc": self.spc if self.needs_buffer else None,
            "buffer_batch_size": self.buffer_batch_size if self.in_batches else None,
            "head": self.head,
            "tune_head": self.tune_head,
        }


def settings_of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which :func:`make_arm` makes an arm of this :attr:`Arm.variant`."""
    told = ("scaling", "scale", "scale_title", "options")
    own = {key: v for key, v in variant.items() if key not in told and v is not None}
    return {**own, **{k: v for k, v in variant.get("options", {}).items() if v is not None}}


@dataclass(frozen=True)
class ArmDefaults:
    """What holds for an arm that does not say.

    Attributes:
        spc: buffer samples per class and experience.
        buffer_batch_size: buffer samples a step.
        head: name of the run's head policy.
    """

    spc: int = 5
    buffer_batch_size: int = 32
    head: str = "shared"


def make_arms(settings: Mapping[str, Mapping[str, Any]], defaults: ArmDefaults) -> tuple[Arm, ...]:
    """Build and validate all arms, in order; arguments as in :func:`make_arm`."""
    return tuple(make_arm(str(name), arm, defaults) for name, arm in settings.items())


def make_arm(name: str, settings: Mapping[str, Any], defaults: ArmDefaults | None = None) -> Arm:
    """Build and validate one arm of the configuration.

    Args:
        name: the arm's name.
        settings: ``method`` and, where wanted, ``coefficients``, ``space``, ``rank``, ``spc``,
            ``buffer_batch_size``, ``head``, ``tune_head`` and the method's own options.
        defaults: what holds where the settings do not say.

    Raises:
        UserError: for anything that could not be evaluated after training.
    """
    defaults = defaults or ArmDefaults()
    try:
        _check_name(name)
        if not isinstance(settings, Mapping) or "method" not in settings:
            raise UserError(f"expected a mapping with a 'method' but got {settings!r}")
        method = str(settings["method"])
        space = str(settings.get("space") or "delta")
        options = _method_options(method, settings)
        validate_method(method, space, options)
        rule = make_rule(_rule_config(settings.get("coefficients", "uniform")))
        if rule.how == "gradient":
            require_learnable(method, space, options)
        if rule.learned:
            # Options that do not go together show here, not after training.
            rule.state(1, ("blocks.0",))
        samples = _count(settings, "spc", defaults.spc)
        batch = _count(settings, "buffer_batch_size", defaults.buffer_batch_size)
        head = _head(settings)
        policy = get_head_policy(head or defaults.head)
        tune = _tune_head(settings, rule, policy)
    except UserError as error:
        raise UserError(f"Arm {name!r}: {error}") from error
    return Arm(name, method, space, rule, policy, options, samples, batch, head, tune)


def check_weights(arms: Sequence[Arm], experiences: int) -> None:
    """Check that every list of fixed coefficients has one for each experience of the stream.

    Raises:
        UserError: naming the arm.
    """
    for arm in arms:
        value = arm.rule.options.get("value")
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
            arm.rule.groups(modules)
        except UserError as error:
            raise UserError(f"Arm {arm.name!r}: {error}") from error


def _count(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"expected {key} to be a whole number of at least 1 but got {value!r}")
    return value


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError("an arm's name may hold letters, digits, '_', '-', '.', '+'; rename it")
    if name in REFERENCES:
        raise UserError("this name is kept for the reference row; choose another")


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


def _tune_head(settings: Mapping[str, Any], rule: CoefficientRule, policy: HeadPolicy) -> bool:
    tune = settings.get("tune_head", False)
    if not isinstance(tune, bool):
        raise UserError(f"expected tune_head to be true or false but got {tune!r}")
    if tune and rule.how != "gradient":
        raise UserError("tune_head needs learned coefficients (adaptive or softmax)")
    if tune and not policy.tunable:
        raise UserError(
            f"tune_head cannot go with head={policy.name}: no trained head would be served "
            f"({policy.summary}); leave tune_head out or choose another strategy.head"
        )
    return tune
