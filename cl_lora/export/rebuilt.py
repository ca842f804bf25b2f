"""What a row of a run served, made again from the run folder: without data, learning nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from cl_lora.adapters import Adapter, AdapterBank, BaseModel, Entry
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arm, settings_of
from cl_lora.experiment.banks import BankKind
from cl_lora.experiment.references import get_references
from cl_lora.experiment.stages import shots_of
from cl_lora.export.choice import Choice
from cl_lora.merging import CoefficientRule, coefficient_rows, prepare
from cl_lora.merging.coefficients.groups import ALL
from cl_lora.models.head_policies import HeadPolicy, HeadSources, get_head_policy
from cl_lora.models.heads import HeadState
from cl_lora.run_folder import layout
from cl_lora.run_folder.records import TaskRecord
from cl_lora.support.errors import UserError, unknown_name

TRAINED, NONE = "trained", "none"
HEADS = (TRAINED, NONE)
"""What takes the place of a head that is not in the run folder."""


@dataclass(frozen=True, eq=False)
class ServedHead:
    """One head.

    Attributes:
        name: of the experience that it belongs to, or of the task that all share.
        task: what its outputs mean.
        experiences: names of the experiences that it serves.
        state: its weights.
    """

    name: str
    task: TaskRecord
    experiences: tuple[str, ...]
    state: HeadState


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """What was served.

    Attributes:
        entries: module -> what is added to its weight.
        coefficients: group of modules -> member's name -> coefficient.
        heads: the heads.
        base: what the adapters say of the model they were trained on.
        other_head: in words, why the heads are not those that were scored; empty if they are.
    """

    entries: Mapping[str, Entry]
    coefficients: Mapping[str, Mapping[str, float]]
    heads: tuple[ServedHead, ...]
    base: BaseModel
    other_head: str = ""


def rebuild(choice: Choice, head: str | None = None) -> Rebuilt:
    """Return what a row served.

    Args:
        choice: the row, its stage and its seed.
        head: what takes the place of a head that is not stored: ``trained``, those that were
            trained with the adapters (the newest, or each task's own), or ``none``; None refuses.

    Raises:
        UserError: if what it served is no merge of stored adapters, or its head is not stored and
            ``head`` does not say what to do.
    """
    if head is not None and head not in HEADS:
        raise unknown_name("--head", head, HEADS)
    if choice.row in choice.run.references:
        return _of_reference(choice, head)
    return _of_arm(choice, head)


def stored_arm(choice: Choice) -> Arm:
    """Return the arm as it is recorded: what it meant then, whatever the defaults of today."""
    run = choice.run
    settings = {**run.settings(choice.row), **settings_of(run.variant(choice.row))}
    return make_arm(choice.row, settings, ArmDefaults(head=_policy(choice).name))


def _policy(choice: Choice) -> HeadPolicy:
    return get_head_policy(str(choice.run.identity["strategy"]["head"]))


def _of_arm(choice: Choice, head: str | None) -> Rebuilt:
    arm, stage = stored_arm(choice), choice.stage
    adapted = arm.adaptation if shots_of(stage) is not None else None
    if arm.residual is not None:
        _refuse(
            choice,
            "serves every task by weights of its own (a residual), and a PEFT folder holds one",
            "export an arm that serves all tasks by one merge",
        )
    if arm.rule.routed:
        _refuse(
            choice,
            "serves every image by adapters of its own, and a PEFT folder holds one",
            "export an arm that serves all by one merge, or use the adapters in the run folder's "
            "adapters/",
        )
    _require_low_rank(choice, arm.bank)
    if arm.method is None or (adapted is not None and adapted.kind.trains_network):
        _refuse(
            choice,
            "trains weights on the support set of each stage, which are not in the run folder",
            "export an arm that merges adapters",
        )
    members = arm.of(stage)
    adapters = [_adapter(choice, arm.bank, m) for m in members]
    plan = prepare(adapters, arm.method, space=arm.space, seed=choice.seed, **arm.options)
    alpha = (
        _recorded(choice, arm.rule, members, plan.modules)
        if arm.rule.learned
        else arm.given(members, plan.modules)
    )
    update = plan.combine(alpha)
    heads, why = _heads(
        choice, arm.policy, adapters, members, alpha, _why_trained(arm, adapted is not None), head
    )
    coefficients = _named(choice, arm.rule, alpha, plan.modules, members)
    return Rebuilt(update.entries, coefficients, heads, update.base, why)


def _of_reference(choice: Choice, head: str | None) -> Rebuilt:
    (row,) = get_references([choice.row])
    found = row.adapter(choice.stage)
    if found is None:
        _refuse(
            choice,
            f"serves no single adapter ({row.summary})",
            "export an arm, or a row that serves one, as last",
        )
    bank, member = found
    _require_low_rank(choice, bank)
    adapter = _adapter(choice, bank, member)
    policy = _policy(choice) if row.head is None else row.head()
    if policy.apart and not bank.own_heads:
        heads, why = _one_head(choice, adapter.head), ""
    else:
        members = choice.stage.members if policy.apart else (member,)
        adapters = [adapter] if not policy.apart else [_adapter(choice, bank, m) for m in members]
        heads, why = _heads(choice, policy, adapters, members, None, "", head)
    weights = {ALL: {_name(choice, bank, member): 1.0}}
    return Rebuilt(dict(adapter.factors), weights, heads, adapter.base, why)


def _require_low_rank(choice: Choice, bank: BankKind) -> None:
    """Refuse what is no LoRA: a PEFT folder cannot change biases, norms and embeddings."""
    if bank.tuning.low_rank:
        return
    _refuse(
        choice,
        f"serves weights of the bank {bank.name!r} ({bank.summary}), which no LoRA folder can hold",
        "export an arm that merges adapters, or use the deltas in the run folder's adapters/",
    )


# Adapters and coefficients ------------------------------------------------------------------------


def _name(choice: Choice, bank: BankKind, member: int) -> str:
    return bank.name if bank.joint else choice.run.experiences[member]


def _adapter(choice: Choice, kind: BankKind, member: int) -> Adapter:
    bank = AdapterBank(layout.bank_folder(choice.run.path, choice.seed, kind.name))
    name = _name(choice, kind, member)
    if not bank.has(member, name):
        raise UserError(
            f"The adapter {bank.path(member, name)} is missing or damaged; run the same command "
            "again to train it"
        )
    return bank.load(member, name)


def _recorded(
    choice: Choice, rule: CoefficientRule, members: Sequence[int], modules: Sequence[str]
) -> Tensor:
    """Return the coefficients that were learned, float64 (n,), or (M, n) with a row per module."""
    table = choice.run.coefficients
    rows = table[
        (table["seed"] == choice.seed)
        & (table["arm"] == choice.row)
        & (table["stage"] == choice.stage.index)
    ]
    found: dict[str, dict[int, float]] = {}
    for group, adapter, value in zip(rows["group"], rows["adapter"], rows["value"], strict=True):
        found.setdefault(str(group), {})[int(adapter)] = float(value)
    if set(found) == {ALL}:
        groups = [ALL]
    else:
        by_rule = rule.groups(modules)
        groups = by_rule if set(by_rule) == set(found) else list(modules)
    try:
        alpha = torch.tensor(
            [[found[group][m] for m in members] for group in groups], dtype=torch.float64
        )
    except KeyError:
        raise UserError(
            f"{choice.run.path / layout.COEFFICIENTS_FILE} lacks coefficients of {choice.row!r}, "
            f"seed {choice.seed}, stage {choice.stage.index}; delete it and {layout.SCORES_FILE} "
            "and run the command again"
        ) from None
    return alpha[0] if groups == [ALL] else alpha


def _named(
    choice: Choice,
    rule: CoefficientRule,
    alpha: Tensor,
    modules: Sequence[str],
    members: Sequence[int],
) -> dict[str, dict[str, float]]:
    names = [choice.run.experiences[m] for m in members]
    return {
        group: dict(zip(names, row.tolist(), strict=True))
        for group, row in coefficient_rows(rule, alpha, modules)
    }


# Heads -------------------------------------------------------------------------------------------


class _NotStoredError(Exception):
    """A head is made of samples, which a run folder does not hold, or is no layer."""


def _not_stored() -> NoReturn:
    raise _NotStoredError


def _why_trained(arm: Arm, adapted: bool) -> str:
    if adapted:
        return "it is made from the support set of the stage"
    return "it is trained on the buffer along with the coefficients" if arm.tune_head else ""


def _heads(
    choice: Choice,
    policy: HeadPolicy,
    adapters: Sequence[Adapter],
    members: Sequence[int],
    alpha: Tensor | None,
    why: str,
    instead: str | None,
) -> tuple[tuple[ServedHead, ...], str]:
    """Return the heads, and in words why they are not those that were scored; empty if they are."""
    states = [adapter.head for adapter in adapters]
    stored: tuple[ServedHead, ...] = ()
    if not why:
        try:
            stored = _stored_heads(choice, policy, states, members, alpha)
        except _NotStoredError:
            why = (
                "it is made of statistics of classes and is no layer"
                if policy.statistics
                else "it is made of samples each time it serves"
            )
    if instead == NONE:
        return (), why or "it was left out as asked"
    if stored and instead is None:
        return stored, ""
    if stored:
        _refuse(choice, "has its head in the run folder", f"leave --head {instead} out")
    if instead is None:
        _refuse(
            choice,
            f"has a head that is not in the run folder ({why})",
            f"give --head {TRAINED} for what was trained with the adapters in its place, or "
            f"--head {NONE} for the merged backbone alone",
        )
    if _policy(choice).apart:
        return tuple(_own_head(choice, m, h) for m, h in zip(members, states, strict=True)), why
    return _one_head(choice, states[-1]), why


def _task(choice: Choice, experience: int) -> TaskRecord:
    stream = choice.run.stream
    name = stream.experiences[experience].task
    return next(task for task in stream.tasks if task.name == name)


def _stored_heads(
    choice: Choice,
    policy: HeadPolicy,
    states: Sequence[HeadState],
    members: Sequence[int],
    alpha: Tensor | None,
) -> tuple[ServedHead, ...]:
    if policy.statistics:
        raise _NotStoredError
    if not policy.apart:
        served = policy.serve(HeadSources(states, alpha, _not_stored))
        return _one_head(choice, served.state_dict())
    each = [policy.serve(HeadSources([h], alpha, _not_stored, h, _not_stored)) for h in states]
    return tuple(
        _own_head(choice, m, served.state_dict()) for m, served in zip(members, each, strict=True)
    )


def _own_head(choice: Choice, member: int, state: HeadState) -> ServedHead:
    name = choice.run.experiences[member]
    return ServedHead(name, _task(choice, member), (name,), state)


def _one_head(choice: Choice, state: HeadState) -> tuple[ServedHead, ...]:
    task = _task(choice, choice.stage.evaluated[0])
    names = tuple(choice.run.experiences[j] for j in choice.stage.evaluated)
    return (ServedHead(task.name, task, names, state),)


def _refuse(choice: Choice, problem: str, remedy: str) -> NoReturn:
    raise UserError(f"{choice.row!r} {problem}; {remedy}")
