"""Arms in words, as the run folder records them: a report needs no registry of this version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_lora.experiment.arms import Arm
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.references import Reference
from cl_lora.merging import get_method
from cl_lora.strategies.config import VAL

_SPACES = {
    "delta": "on the updates dW = s B A",
    "factors": "on the factors A and B apart, as peft does",
}


def describe_reference(reference: Reference) -> str:
    """Return what a baseline is, in a sentence."""
    return f"Baseline: {reference.summary}."


def describe_arm(arm: Arm) -> str:
    """Return what an arm is: method, space, every option with its default, coefficients, head."""
    if arm.method is None:
        begin = "Starts from the bare backbone."
        return " ".join([begin, *_residual(arm), *_bank(arm), *_adaptation(arm)])
    info = get_method(arm.method)
    variant = arm.variant
    where = _SPACES.get(arm.space, f"in space {arm.space}")
    sentences = [f"{info.summary.rstrip('.')} ({info.paper}): {info.formula}; merged {where}."]
    shown = {k: v for k, v in variant["options"].items() if v is not None}
    sentences += [f"Options: {_listed(shown)}."] if shown else []
    sentences.append(f"Coefficients: {_rule(arm)}.")
    if arm.members is not None:
        sentences.append(f"The first {arm.members} adapters only.")
    sentences += [*_residual(arm), *_bank(arm)]
    sentences += _adaptation(arm)
    if arm.head is not None:
        sentences.append(f"Head: {arm.head}, in place of the run's.")
    if arm.tune_head:
        held = f", held back to its start (anchor {arm.anchor:g})" if arm.anchor else ""
        sentences.append(f"The head is trained on the buffer together with the coefficients{held}.")
    return " ".join(sentences)


def _residual(arm: Arm) -> list[str]:
    """Return what each task keeps of its own, in a sentence."""
    chosen = arm.residual
    if chosen is None:
        return []
    kind = chosen.kind
    return [
        f"Each task keeps of its own: {kind.summary} ({kind.paper}; {_listed(chosen.options)}), so "
        "the task must be known."
    ]


def _bank(arm: Arm) -> list[str]:
    return [] if arm.bank is FRESH else [f"Of the bank {arm.bank.name!r}: {arm.bank.summary}."]


def _adaptation(arm: Arm) -> list[str]:
    """Return what is trained on a support set, in sentences."""
    how = arm.adaptation
    if how is None:
        return []
    beside = " It takes over the merge, cut to its rank." if how.truncate else ""
    sentences = [
        f"Adapted to K samples per class: {how.kind.summary}.{beside}",
        f"The head begins as: {how.head_start.summary}.",
    ]
    if how.kind.trains:
        c = how.config
        sentences.append(
            f"The head is warmed up for {c.warmup_steps} steps, then everything is trained for at "
            f"least {c.steps} steps of {c.batch_size} and {c.epochs} passes "
            f"(head lr {c.head_lr:g}, LoRA lr {c.lora_lr:g}, full lr {c.full_lr:g})."
        )
        if len(c.grid) > 1:
            sentences.append(
                f"Its learning rate is the best of the factors {_value(c.grid)} by loss on "
                f"{'the validation part' if c.select_on == VAL else 'a part of the support set'}."
            )
    return sentences


def _rule(arm: Arm) -> str:
    rule = arm.rule
    config = arm.merge_variant["coefficients"]
    options = {k: v for k, v in config.items() if v is not None and k != "name"}
    text = rule.name + (f" with {_listed(options)}" if options else "")
    text += f" ({rule.info.formula})"
    if rule.learned and arm.adaptation is None:
        seen = (
            "the validation part"
            if arm.sees is None
            else f"{arm.sees} samples per class and experience"
        )
        text += f", {'chosen' if rule.how == 'search' else 'learned'} on {seen}"
        text += f", in batches of {arm.buffer_batch_size}" * arm.in_batches
    return text


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_value(value)}" for key, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
