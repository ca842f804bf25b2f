"""What is known of Hydra's launchers: which extra brings one, and how many jobs it runs at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cl_lora.support.errors import UserError

_OMP = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class LauncherKind:
    """A launcher, as far as a sweep must know it.

    Attributes:
        target: its class, as ``hydra.launcher._target_`` names it.
        choices: what ``hydra/launcher=`` calls it.
        extra: the extra of this package that installs it; empty for what is always there.
        at_once: (its options, jobs) -> how many jobs share this machine at one time; None where
            they run on a cluster, and go on when this process ends.
        side_by_side: whether two jobs can run at the same time.
        pooled: whether one of its processes does several jobs and all end where one dies, so that
            each job runs in a process of its own below it.
    """

    target: str
    choices: tuple[str, ...] = ()
    extra: str = ""
    at_once: Callable[[Mapping[str, Any], int], int | None] = lambda options, jobs: None
    side_by_side: bool = True
    pooled: bool = False


def _joblib_workers(options: Mapping[str, Any], jobs: int) -> int:
    from joblib import effective_n_jobs, parallel_config

    with parallel_config(backend="loky"):
        return min(int(effective_n_jobs(options.get("n_jobs", -1))), jobs)


def _ray_workers(options: Mapping[str, Any], jobs: int) -> int | None:
    own = options.get("ray") or {}
    init, remote = own.get("init") or {}, own.get("remote") or {}
    if init.get("address") is not None:
        return None
    offered = init.get("num_cpus") or cores()
    return max(1, min(int(offered / (remote.get("num_cpus") or 1)), jobs))


LAUNCHERS = (
    LauncherKind(
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        ("basic",),
        at_once=lambda options, jobs: 1,
        side_by_side=False,
    ),
    LauncherKind(
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        ("joblib",),
        "joblib",
        _joblib_workers,
        pooled=sys.platform == "linux",  # elsewhere a process is not safely forked
    ),
    LauncherKind(
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        ("submitit_local",),
        "slurm",
        lambda options, jobs: jobs,  # it starts all of them
    ),
    LauncherKind(
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        ("submitit_slurm",),
        "slurm",
    ),
    LauncherKind("hydra_plugins.cl_lora.RayLauncher", ("ray",), "ray", _ray_workers),
)
"""A launcher that is not here is taken for one of a cluster."""


def launcher_of(options: Mapping[str, Any]) -> LauncherKind:
    """Return the launcher that ``hydra.launcher`` describes."""
    target = str(options.get("_target_"))
    return next((kind for kind in LAUNCHERS if kind.target == target), LauncherKind(target))


def not_installed(choice: str) -> UserError | None:
    """Return the error for a launcher that an extra would install; None for an unknown name."""
    extra = next((kind.extra for kind in LAUNCHERS if choice in kind.choices), "")
    if not extra:
        return None
    return UserError(
        f"hydra/launcher={choice} is not installed; pip install 'cl-lora[{extra}]', or leave it "
        "out to run one job after the other"
    )


def cores() -> int:
    """Return how many cores this process may use."""
    from joblib import cpu_count

    return int(cpu_count())


def threads_each(at_once: int | None) -> int | None:
    """Return how many threads each job gets, so that all together have no more than the cores.

    ``max(1, cores // at_once)``, and no more than ``OMP_NUM_THREADS`` where that is set: two jobs
    of as many threads as cores wait for each other, and are slower than one after the other.

    Args:
        at_once: how many jobs share this machine; None for a cluster, which shares out by itself.
    """
    if at_once is None:
        return None
    asked = os.environ.get(_OMP, "")
    most = int(asked) if asked.isdecimal() and int(asked) else sys.maxsize
    return min(max(1, cores() // at_once), most)
