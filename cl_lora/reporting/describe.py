"""Arms, stages and units as a reader is told of them: all of it read from the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.budgets import has_budgets
from cl_lora.run_folder.reader import RunFolder


@dataclass(frozen=True)
class ArmSettings:
    """The settings of one arm, every default written out.

    Attributes:
        method: the merge method; empty for a baseline, and an arm that merges nothing.
        space: where adapters are merged, e.g. ``delta`` or ``factors``.
        rule: the coefficient rule, e.g. ``fixed`` or ``adaptive``.
        rule_options: its options, e.g. ``value`` or ``b_max``.
        scale: name of the rule's option that scales all coefficients; empty if none does.
        scale_title: how that option is called in tables and figures.
        options: the method's own options, e.g. ``density``.
        spc: buffer samples per class and domain, where it sees any.
        head: the arm's own head policy, if it has one.
        tune_head: whether the head is trained with the coefficients.
        anchor: how much a trained head is held back to its start, where it is.
        adapt: what is trained on a support set, e.g. ``head`` or ``lora``; empty if the arm is not
            adapted to one.
        start: ``base`` or ``merge``, where an adapted arm starts.
        bank: of which adapters it is made, where these are not the usual ones, e.g. ``full``.
        residual: what each task keeps beside the base, e.g. ``low_rank``; empty if nothing.
        residual_options: its options, e.g. ``q``.
        tells_space: whether the arms of the run are merged in more than one space.
        tells_rule: whether the arms of the run have more than one rule.
        telling: names of the options in which arms of its method and rule differ within the run.
    """

    method: str
    space: str
    rule: str
    rule_options: Mapping[str, Any]
    scale: str
    scale_title: str
    options: Mapping[str, Any]
    spc: int | None
    head: str | None
    tune_head: bool
    adapt: str = ""
    start: str = ""
    bank: str = ""
    residual: str = ""
    residual_options: Mapping[str, Any] = field(default_factory=dict)
    anchor: float | None = None
    tells_space: bool = False
    tells_rule: bool = False
    telling: frozenset[str] = frozenset()

    @property
    def axis(self) -> tuple[str, float] | None:
        """The title of :attr:`scale`, e.g. ``W``, and its value; None where that is no number."""
        value = self.rule_options.get(self.scale)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.scale_title, float(value)
        return None

    @property
    def budget(self) -> tuple[str, float] | None:
        """The one number among the options of the residual, e.g. ``q``, and its value.

        None without a residual, or where its size is not told by a single number.
        """
        numbers = [
            (name, float(value))
            for name, value in self.residual_options.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        return numbers[0] if len(numbers) == 1 else None

    @property
    def merge(self) -> str:
        """The merge method, and the space where arms of the run differ in it."""
        return ", ".join([self.method, self.space] if self.tells_space else [self.method])

    def family(self) -> str:
        """Name what all arms have in common that differ in the value of :attr:`axis` only."""
        if not self.method:
            words = [f"adapts {self.adapt} from the bare backbone"] if self.adapt else []
            return ", ".join([*words, *self._apart()])
        # The scale is an option of the rule: one of the method may have the same name.
        rule_options = dict(self.rule_options)
        if self.axis:
            del rule_options[self.scale]
        every = {**rule_options, **self.options}
        words = [self.merge]
        words += [self.rule] if self.tells_rule else []
        words += [f"{k} {_value(v)}" for k, v in every.items() if k in self.telling]
        words += [f"spc {self.spc}"] if self.spc is not None else []
        words += [f"{self.head} head"] if self.head else []
        held = "" if self.anchor is None else f" anchored {_value(self.anchor)}"
        words += [f"tuned head{held}"] if self.tune_head else []
        words += [f"adapts {self.adapt}"] if self.adapt else []
        return ", ".join([*words, *self._apart()])

    def _apart(self) -> list[str]:
        """Return what is kept for each task, and of which bank, in words."""
        options = (f"{k} {_value(v)}" for k, v in self.residual_options.items())
        words = [" ".join([self.residual, *options])] if self.residual else []
        return [*words, f"{self.bank} bank"] if self.bank else words


def arm_settings(run: RunFolder, arm: str) -> ArmSettings:
    """Return the settings of ``arm`` as the run recorded them; empty ones for a baseline."""
    variant = run.variant(arm)
    rule, rule_options, options = _parts(variant)
    residual = dict(variant.get("residual") or {})
    tuned = variant.get("tune_head", False)
    telling: set[str] = set()
    spaces, rules = {variant.get("space")}, {rule}
    for other in run.arms:
        there = run.variant(other)
        if there and there.get("method") is None:
            continue  # merges nothing: it has neither space nor rule
        other_rule, other_rule_options, other_options = _parts(there)
        spaces.add(there.get("space"))
        rules.add(other_rule)
        if there.get("method") == variant.get("method"):
            telling.update(_differing(options, other_options))
            if other_rule == rule:
                telling.update(_differing(rule_options, other_rule_options))
    return ArmSettings(
        method=str(variant.get("method") or ""),
        space=str(variant.get("space") or ""),
        rule=rule,
        rule_options=rule_options,
        scale=str(variant.get("scale") or ""),
        scale_title=str(variant.get("scale_title") or ""),
        options=options,
        spc=variant.get("spc"),
        head=variant.get("head"),
        tune_head=bool(tuned),
        anchor=tuned.get("anchor") if isinstance(tuned, Mapping) else None,
        adapt=str(variant.get("adapt") or ""),
        start=str(variant.get("start") or ""),
        bank=str(variant.get("bank") or ""),
        residual=str(residual.pop("name", "")),
        residual_options=residual,
        tells_space=len(spaces) > 1,
        tells_rule=len(rules) > 1,
        telling=frozenset(telling),
    )


def at_the_end(run: RunFolder) -> str:
    """Say when final scores were measured."""
    if run.stream.ordered:
        experiences = run.stream.experiences
        if any(e.labels is not None for e in experiences):
            return "after the last group of classes"
        several = len({e.task for e in experiences}) > 1
        return f"after the last {'task' if several else 'domain'}"
    if has_budgets(run):
        return "when all tasks are served"
    last = run.stream.trained_stages[-1]
    if last.group:
        return f"in {last.group}, mean over partners"
    return f"at stage {last.name}"


def in_unit(metric: Metric) -> str:
    """Return a metric's title with its unit.

    Example:
        >>> in_unit(Metric("rmse", "RMSE", "px", higher_is_better=False))
        'RMSE in px'
    """
    return f"{metric.title} in {metric.unit}" if metric.unit else metric.title


def heading(title: str, unit: str = "", higher_is_better: bool | None = True) -> str:
    """Return the head of a column that explains itself: its unit, and where less is better.

    Example:
        >>> heading("Forgetting", "pp", False), heading("Average accuracy", "%"), heading("n")
        ('Forgetting (pp, lower is better)', 'Average accuracy (%)', 'n')
    """
    notes = [unit] * bool(unit) + ["lower is better"] * (higher_is_better is False)
    return f"{title} ({', '.join(notes)})" if notes else title


def unit_of_difference(metric: Metric) -> str:
    """Return the unit of a difference of two values in the head of a column: pp for percent."""
    return "pp" if metric.percent else metric.unit


def over_seeds(seeds: Sequence[int]) -> str:
    """Return what the numbers of a table are over."""
    return (
        f"mean ± standard deviation over {len(seeds)} seeds"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )


def _parts(variant: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the rule, its options and the method's options."""
    coefficients = variant.get("coefficients") or {}
    rule_options = {k: v for k, v in coefficients.items() if k != "name"}
    options = {k: v for k, v in (variant.get("options") or {}).items() if v is not None}
    return str(coefficients.get("name") or ""), rule_options, options


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    return {key for key in {*a, *b} if a.get(key) != b.get(key)}


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def configuration_text(run: RunFolder) -> str:
    """Return the configuration of a run as YAML, without what is told of each arm."""
    told = ("arms", "variants", "descriptions", "identity")
    kept = {k: v for k, v in run.config.items() if k not in told and v is not None}
    # Copied through JSON, as YAML would write shared parts as anchors and aliases.
    plain = json.loads(json.dumps(kept))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).strip()
