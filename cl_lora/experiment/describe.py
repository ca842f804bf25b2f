"""Arms in words, as the run folder records them: a report needs no registry of this version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_lora.experiment.arms import Arm
from cl_lora.experiment.references import Reference
from cl_lora.merging import get_method

_SPACES = {
    "delta": "on the updates dW = s B A",
    "factors": "on the factors A and B apart, as peft does",
}


def describe_reference(reference: Reference) -> str:
    """Return what a reference row is, in a sentence."""
    return f"Reference row: {reference.summary}."


def describe_arm(arm: Arm) -> str:
    """Return what an arm is: method, space, every option with its default, coefficients, head."""
    info = get_method(arm.method)
    variant = arm.variant
    where = _SPACES.get(arm.space, f"in space {arm.space}")
    sentences = [f"{info.summary.rstrip('.')} ({info.paper}): {info.formula}; merged {where}."]
    shown = {k: v for k, v in variant["options"].items() if v is not None}
    sentences += [f"Options: {_listed(shown)}."] if shown else []
    sentences.append(f"Coefficients: {_rule(arm)}.")
    if arm.head is not None:
        sentences.append(f"Head: {arm.head}, in place of the run's.")
    if arm.tune_head:
        sentences.append("The head is trained on the buffer together with the coefficients.")
    return " ".join(sentences)


def _rule(arm: Arm) -> str:
    rule = arm.rule
    options = {k: v for k, v in rule.options.items() if v is not None}
    text = rule.name + (f" with {_listed(options)}" if options else "")
    text += f" ({rule.info.formula})"
    if rule.learned:
        text += f", {'learned' if arm.in_batches else 'chosen'} on {arm.spc} samples per class and "
        text += "experience" + (f", in batches of {arm.buffer_batch_size}" * arm.in_batches)
    return text


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_value(value)}" for key, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
