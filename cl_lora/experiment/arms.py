"""An arm: one way to merge a bank of adapters and to serve the result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cl_lora.merging import CoefficientRule, get_method, is_linear, make_rule, validate_method
from cl_lora.merging.spaces import SPACES
from cl_lora.models.heads import HEAD_POLICIES
from cl_lora.support.errors import UserError, unknown_name

REFERENCES: Mapping[str, str] = {
    "base": "no adapter: the pre-trained backbone under the current head",
    "last": "the adapter trained last, alone",
    "oracle": "each experience served by its own adapter and head (needs to know the experience)",
    "sequential": "one LoRA trained on from experience to experience",
    "joint": "one LoRA trained on all experiences at once, scored at the end",
}

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
        head: a head policy that overrides the run's; only ``prototypes`` can, because the
            others decide how the adapters are trained.
        tune_head: whether learning coefficients also trains the head on the buffer.
    """

    name: str
    method: str
    space: str
    rule: CoefficientRule
    options: Mapping[str, Any] = field(default_factory=dict)
    spc: int = 5
    buffer_batch_size: int = 32
    head: str | None = None
    tune_head: bool = False

    @property
    def variant(self) -> dict[str, Any]:
        """Everything that defines the arm, defaults written out: what is recorded of it."""
        return {
            "method": self.method,
            "space": self.space,
            "scaling": SPACES[self.space].scaling,
            **validate_method(self.method, self.space, self.options),
            "coefficients": self.rule.config,
            "spc": self.spc if self.rule.learned or self.head == "prototypes" else None,
            "buffer_batch_size": self.buffer_batch_size if self.rule.learned else None,
            "head": self.head,
            "tune_head": self.tune_head,
        }


def settings_of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of which :func:`make_arm` makes an arm of this :attr:`Arm.variant`."""
    return {key: v for key, v in variant.items() if key != "scaling" and v is not None}


def make_arms(
    settings: Mapping[str, Mapping[str, Any]], *, spc: int, buffer_batch_size: int
) -> tuple[Arm, ...]:
    """Build and validate all arms, in order; arguments as in :func:`make_arm`."""
    return tuple(
        make_arm(str(name), arm, spc=spc, buffer_batch_size=buffer_batch_size)
        for name, arm in settings.items()
    )


def make_arm(name: str, settings: Mapping[str, Any], *, spc: int, buffer_batch_size: int) -> Arm:
    """Build and validate one arm of the configuration.

    Args:
        name: the arm's name.
        settings: ``method`` and, where wanted, ``coefficients``, ``space``, ``rank``, ``spc``,
            ``buffer_batch_size``, ``head``, ``tune_head`` and the method's own options.
        spc: the run's buffer samples per class and domain, for an arm that does not say.
        buffer_batch_size: the run's buffer images a step, likewise.

    Raises:
        UserError: for anything that could not be evaluated after training.
    """
    try:
        _check_name(name)
        if not isinstance(settings, Mapping) or "method" not in settings:
            raise UserError(f"expected a mapping with a 'method' but got {settings!r}")
        method = str(settings["method"])
        space = str(settings.get("space") or "delta")
        options = _method_options(method, settings)
        validate_method(method, space, options)
        rule = make_rule(_rule_config(settings.get("coefficients", "uniform")))
        if rule.learned and not is_linear(method, space, options):
            raise UserError(
                f"learned coefficients ({rule.name}) need a method that is linear in them, which "
                f"{method!r} in space {space!r} with {options or 'its defaults'} is not; use fixed "
                "coefficients or another variant"
            )
        if rule.learned:
            # Options that do not go together show here, not after training.
            rule.state(1, ("blocks.0",))
        samples = _count(settings, "spc", spc)
        batch = _count(settings, "buffer_batch_size", buffer_batch_size)
        head, tune = _head(settings, rule)
    except UserError as error:
        raise UserError(f"Arm {name!r}: {error}") from error
    return Arm(name, method, space, rule, options, samples, batch, head, tune)


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


def check_references(names: Sequence[str]) -> tuple[str, ...]:
    """Return the reference rows asked for, in their usual order.

    Raises:
        UserError: for an unknown name.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"Expected references to be a list like [base,last] but got {names!r}")
    for name in map(str, names):
        if name not in REFERENCES:
            raise unknown_name("reference row", name, REFERENCES)
    return tuple(name for name in REFERENCES if name in names)


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


def _head(settings: Mapping[str, Any], rule: CoefficientRule) -> tuple[str | None, bool]:
    head, tune = settings.get("head"), settings.get("tune_head", False)
    head = None if head is None else str(head)
    if head is not None and head not in HEAD_POLICIES:
        raise unknown_name("head policy", head, HEAD_POLICIES)
    if head not in (None, "prototypes"):
        raise UserError(
            f"head={head!r} decides how adapters are trained, so it holds for the whole run; "
            f"set strategy.head={head} (only 'prototypes' can be chosen for one arm)"
        )
    if not isinstance(tune, bool):
        raise UserError(f"expected tune_head to be true or false but got {tune!r}")
    if tune and not rule.learned:
        raise UserError("tune_head needs learned coefficients (adaptive or softmax)")
    if tune and head == "prototypes":
        raise UserError("tune_head cannot go with head=prototypes, which are class means")
    return head, tune
