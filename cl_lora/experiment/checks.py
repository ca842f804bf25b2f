"""What is wrong between a configuration and the data of a run, found before training."""

from __future__ import annotations

from cl_lora.benchmarks.core import Benchmark
from cl_lora.experiment.growing import check_growing
from cl_lora.experiment.settings import Settings
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
                    f"The reference row {row.name!r} trains one head on all experiences but those "
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
