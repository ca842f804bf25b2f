"""What is wrong between a configuration and the data of a run, found before training."""

from __future__ import annotations

from cl_lora.benchmarks.core import Benchmark
from cl_lora.experiment.growing import check_growing
from cl_lora.experiment.settings import Settings
from cl_lora.models.base import Backbone
from cl_lora.models.routing import default_block
from cl_lora.models.statistics import get_statistic
from cl_lora.support.errors import UserError, unknown_name


def check_tasks(settings: Settings, benchmark: Benchmark) -> None:
    """Refuse a task that the heads of a run cannot serve."""
    if len(benchmark.tasks) > 1:
        names = ", ".join(task.name for task in benchmark.tasks)
        if not settings.training.policy.apart:
            raise UserError(
                f"Expected experiences that share one task, as they share a head, but "
                f"{benchmark.name!r} has several: {names}; set strategy.head=own, or choose "
                "another benchmark"
            )
        for arm in settings.arms:
            if not arm.policy.apart:
                raise UserError(
                    f"Arm {arm.name!r}: head={arm.policy.name} serves all experiences by one head "
                    f"but those of {benchmark.name!r} have different tasks: {names}; leave head "
                    "out, or give head=refit"
                )
        for row in settings.references:
            alien = [kind.name for kind in row.banks if not kind.own_heads]
            if alien:
                raise UserError(
                    f"The baseline {row.name!r} trains one head on all experiences but those "
                    f"of {benchmark.name!r} have different tasks: {names}; leave it out of "
                    "references"
                )
    sizes = {e.inputs.shape[1:]: e.name for e in benchmark.experiences}
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise UserError(
            f"Expected tasks that share a backbone but the inputs of {first!r} are {one} and those "
            f"of {second!r} {other}; give them one size"
        )
    if settings.training.patience is not None:
        for experience in benchmark.experiences:
            if not len(experience.val):
                raise UserError(
                    "strategy.patience stops training by the loss on a validation part but that "
                    f"of {experience.name!r} is empty; set benchmark.val_fraction=0.1, or "
                    "strategy.patience=null"
                )
    check_growing(settings, benchmark)
    _check_policies(settings, benchmark)
    _check_statistics(settings, benchmark)


def _check_policies(settings: Settings, benchmark: Benchmark) -> None:
    """Refuse a head policy that cannot serve a kind of task."""
    policies = [settings.training.policy, *(arm.policy for arm in settings.arms)]
    for policy in policies:
        spoken = next((t for t in benchmark.tasks if t.kind.of_tokens), None)
        if spoken is not None and not policy.from_backbone:
            raise UserError(
                f"The task {spoken.name!r} of {benchmark.name!r} is answered in words, which no "
                f"head that is trained can do, but the head policy is {policy.name!r}; set "
                "strategy.head=text"
            )
        task = next((t for t in benchmark.tasks if policy.needs_classes and not t.labels), None)
        if task is not None:
            raise UserError(
                f"The head policy {policy.name!r} needs classes but task {task.name!r} of "
                f"{benchmark.name!r} is of kind {task.kind.name!r}; choose another head"
            )


def _check_statistics(settings: Settings, benchmark: Benchmark) -> None:
    """Refuse statistics by class of a task that has none."""
    task = next((task for task in benchmark.tasks if not task.labels), None)
    if task is None:
        return
    needed = [(f"Arm {arm.name!r}", arm.statistics) for arm in settings.arms]
    needed += [(f"The baseline {r.name!r}", r.statistics) for r in settings.references]
    for what, names in needed:
        by_class = next((name for name in names if get_statistic(name).needs_classes), None)
        if by_class is not None:
            raise UserError(
                f"{what} needs the statistic {by_class!r} of every class but task {task.name!r} of "
                f"{benchmark.name!r} is of kind {task.kind.name!r}, without classes; leave it out"
            )


def check_arms(settings: Settings) -> None:
    """Refuse arms that do not go with each other's settings, before any data are there."""
    protocol = settings.protocol
    for arm in settings.arms:
        if arm.rule.routed and protocol.own_heads:
            raise UserError(
                f"Arm {arm.name!r}: coefficients=routed find out which experience an input is of, "
                f"but with protocol={protocol.name} it is known; leave the arm out, or set "
                "protocol=prefixes"
            )
        if arm.policy.apart and not arm.bank.own_heads:
            raise UserError(
                f"Arm {arm.name!r}: bank={arm.bank.name} has one head that is trained on through "
                f"the stream but head={arm.policy.name} serves every experience by a head of its "
                "own; leave bank out, or set strategy.head=shared"
            )


def check_routing(settings: Settings, backbone: Backbone) -> None:
    """Refuse a router that finds no block of tokens to look at.

    Raises:
        UserError: naming the arm.
    """
    for arm in settings.arms:
        if not arm.rule.routed:
            continue
        if not backbone.depth:
            raise UserError(
                f"Arm {arm.name!r}: coefficients=routed look at the tokens of a block but this "
                "model shows none; leave the arm out, or choose a Vision Transformer of timm, such "
                "as model=vit_tiny"
            )
        block = arm.rule.options["block"]
        if block is not None and block >= backbone.depth:
            raise UserError(
                f"Arm {arm.name!r}: expected block to be below {backbone.depth}, the number of "
                f"blocks of this model, but got {block}; lower it, or leave it out for "
                f"{default_block(backbone)}"
            )


def embedded(settings: Settings, benchmark: Benchmark) -> int | None:
    """Return the index of the experience that ``embed`` names.

    Raises:
        UserError: if there is none of this name or number, or the protocol has no such picture.
    """
    wanted = settings.options.embed
    if wanted is None:
        return None
    if not settings.protocol.counts:
        raise UserError(
            f"embed shows features where all adapters are merged at once but "
            f"protocol={settings.protocol.name}; leave it out, or set protocol=all_at_once"
        )
    if isinstance(wanted, str):
        if wanted not in benchmark.names:
            raise unknown_name("embed", wanted, benchmark.names)
        return benchmark.names.index(wanted)
    if not 0 <= wanted < len(benchmark.names):
        raise UserError(
            f"Expected embed to be a task's name, or its number below {len(benchmark.names)}, but "
            f"got {wanted}"
        )
    return wanted
