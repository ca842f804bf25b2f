"""Arms in words and in keys: what their settings in config.yaml mean for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

_ARM_KEYS = ("method", "space", "coefficients", "spc", "buffer_batch_size", "head", "tune_head")


@dataclass(frozen=True)
class ArmSettings:
    """The settings of one arm, short forms written out.

    Attributes:
        method: the merge method; empty for a reference row.
        space: ``delta`` or ``factors``.
        rule: the coefficient rule, e.g. ``fixed`` or ``adaptive``.
        rule_options: its options, e.g. ``value`` or ``b_max``.
        options: the method's own options that were given, e.g. ``density``.
        spc: buffer samples per class and domain, where the coefficients are learned.
        head: the arm's own head policy, if it has one.
        tune_head: whether the head is trained with the coefficients.
    """

    method: str
    space: str
    rule: str
    rule_options: Mapping[str, Any]
    options: Mapping[str, Any]
    spc: int | None
    head: str | None
    tune_head: bool

    @property
    def axis(self) -> tuple[str, float] | None:
        """The hyper-parameter that scales the coefficients: ``W`` or ``b_max``, and its value."""
        for name, key in (("W", "value"), ("b_max", "b_max")):
            value = self.rule_options.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return name, float(value)
        return None

    def family(self) -> str:
        """Name what all arms have in common that differ in the value of :attr:`axis` only."""
        axis = {"value", "b_max"} if self.axis else set()
        rest = {k: v for k, v in self.rule_options.items() if k not in axis}
        words = [self.method]
        words += [self.space] if self.space != "delta" else []
        words += [self.rule] if self.rule not in ("", "fixed") else []
        words += [f"{k} {_value(v)}" for k, v in {**rest, **self.options}.items()]
        words += [f"spc {self.spc}"] if self.spc is not None and self.rule != "fixed" else []
        words += [f"{self.head} head"] if self.head else []
        words += ["tuned head"] if self.tune_head else []
        return ", ".join(words)


def arm_settings(run: RunFolder, arm: str) -> ArmSettings:
    """Return the settings of ``arm`` with the short forms of ``coefficients`` written out.

    ``coefficients: 0.5`` means the rule ``fixed`` with that value, ``coefficients: uniform`` the
    rule of that name; a mapping holds ``name`` and the rule's options.
    """
    given = run.settings(arm)
    rule = given.get("coefficients", "uniform" if given else "")
    if isinstance(rule, Mapping):
        name = str(rule.get("name", "fixed"))
        rule_options = {k: v for k, v in rule.items() if k != "name"}
    elif isinstance(rule, str):
        name, rule_options = rule, {}
    else:
        name, rule_options = "fixed", {"value": rule}
    if "b_max" in (recorded := run.variant(arm).get("coefficients", {})):
        rule_options = {**rule_options, "b_max": recorded["b_max"]}
    # Fixed and uniform coefficients see no samples at all.
    learned = bool(given) and name not in ("fixed", "uniform")
    spc = given.get("spc", run.variant(arm).get("spc", run.config.get("spc"))) if learned else None
    return ArmSettings(
        method=str(given.get("method", "")),
        space=str(given.get("space") or "delta"),
        rule=name,
        rule_options=rule_options,
        options={k: v for k, v in given.items() if k not in _ARM_KEYS and v is not None},
        spc=spc,
        head=given.get("head"),
        tune_head=bool(given.get("tune_head", False)),
    )


def in_words(run: RunFolder, arm: str) -> str:
    """Return what ``arm`` is: method, space, every option with its default, coefficients, head.

    Defaults are those that config.yaml records, or this version's where an older one has none.
    """
    # Imported late: they import torch, which tables and figures do without.
    from cl_lora.experiment.arms import REFERENCES
    from cl_lora.merging import METHODS, validate_method

    s = arm_settings(run, arm)
    if not s.method:
        text = REFERENCES.get(arm, "a reference row of an unknown kind")
        return f"Reference row: {text}."
    info = METHODS.get(s.method)
    what = f"{info.summary.rstrip('.')} ({info.paper}): {info.formula}" if info else s.method
    variant = run.variant(arm)
    own = {k: v for k, v in variant.items() if k not in (*_ARM_KEYS, "scaling")}
    options = own if variant else dict(s.options)
    if info and not variant:
        try:
            options = validate_method(s.method, s.space, s.options)
        except UserError:
            what += " (this version knows other options, so only those that were given follow)"
    where = {
        "delta": "on the updates dW = s B A",
        "factors": "on the factors A and B apart, as peft does",
    }.get(s.space, f"in space {s.space}")
    sentences = [f"{what}; merged {where}."]
    shown = [f"{k} = {_value(v)}" for k, v in options.items() if v is not None]
    sentences += [f"Options: {', '.join(shown)}."] if shown else []
    sentences.append(f"Coefficients: {_rule_in_words(s, variant)}.")
    if s.head:
        sentences.append(f"Head: {s.head}, in place of the run's.")
    if s.tune_head:
        sentences.append("The head is trained on the buffer together with the coefficients.")
    return " ".join(sentences)


def _rule_in_words(s: ArmSettings, variant: Mapping[str, Any]) -> str:
    complete = variant.get("coefficients", s.rule_options)
    options = ", ".join(f"{k} = {_value(v)}" for k, v in complete.items() if k != "name")
    if s.rule == "fixed":
        value = s.rule_options.get("value")
        whose = (
            ", one for each adapter" if isinstance(value, list | tuple) else " for every adapter"
        )
        return f"fixed at {_value(value)}{whose}"
    if s.rule == "uniform":
        return "uniform, 1/n for n adapters"
    learned = f", learned on {s.spc} samples per class and domain" if s.spc is not None else ""
    batch = variant.get("buffer_batch_size")
    batches = f", in batches of {batch}" if batch is not None else ""
    return s.rule + (f" with {options}" if options else "") + learned + batches


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
