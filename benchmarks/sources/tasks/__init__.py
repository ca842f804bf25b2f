"""Where the tasks of a multitask stream come from; every module here is one source."""

from __future__ import annotations

# Importing a source's module registers it.
from cl_lora.benchmarks.sources.tasks import (  # noqa: F401
    expw,
    fire_risk,
    galaxy10,
    shapes,
    torchvision,
    tree,
    utkface,
    wflw,
)
from cl_lora.benchmarks.sources.tasks.core import (
    TASK_SOURCES,
    DrawnSource,
    TaskRequest,
    TaskSamples,
    TaskSource,
    read_source,
    task_source,
)

__all__ = [
    "TASK_SOURCES",
    "DrawnSource",
    "TaskRequest",
    "TaskSamples",
    "TaskSource",
    "read_source",
    "task_source",
]
