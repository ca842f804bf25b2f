"""What cannot be where labels come with the experiences, said before anything is trained."""

from __future__ import annotations

from cl_lora.benchmarks.core import Benchmark
from cl_lora.experiment.settings import Settings
from cl_lora.support.errors import UserError


def check_growing(settings: Settings, benchmark: Benchmark) -> None:
    """Check that protocol and head go with experiences that bring labels to a task they share.

    Raises:
        UserError: a protocol that adapts to an experience with a task of its own, or a head that
            is trained on the first experience only.
    """
    if not benchmark.grows:
        return
    protocol, policy = settings.protocol, settings.training.policy
    if protocol.few_shot:
        raise UserError(
            f"The protocol {protocol.name!r} adapts to an experience with a task of its own but "
            f"those of {benchmark.name!r} share one and bring labels to it; choose a few-shot "
            "benchmark, such as benchmark=few_shot_label, or set protocol=prefixes"
        )
    if not policy.trains(first=False) and not policy.from_backbone:
        raise UserError(
            f"strategy.head={policy.name} trains the head on the first experience only but later "
            f"ones of {benchmark.name!r} bring labels of their own; set strategy.head=shared"
        )
