"""Jobs as tasks of Ray, as ``hydra/launcher=ray``: on this machine, or on a cluster of Ray's.

Hydra's own launcher for Ray asks for packages that do not install beside the tested set; what a
sweep needs of it is this much.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

_PACKAGE = "hydra_plugins"
_MODULE = f"{_PACKAGE}.cl_lora"
"""What this module is called to Hydra, which makes no launcher of a package with another name."""

_DEFAULTS = {
    "_target_": f"{_MODULE}.RayLauncher",
    "ray": {
        # Of ray.init; an address is that of a cluster, else Ray is started on this machine.
        "init": {"address": None, "num_cpus": None},
        # Of each task: what it asks of a machine.
        "remote": {"num_cpus": 1, "num_gpus": 0},
    },
}


def offer() -> None:
    """Make ``hydra/launcher=ray`` a choice where Ray is installed."""
    if find_spec("ray") is None:
        return
    try:
        package = importlib.import_module(_PACKAGE)
    except ImportError:  # no plugin of Hydra's is installed
        package = sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
    sys.modules[_MODULE] = package.cl_lora = sys.modules[__name__]  # type: ignore[attr-defined]
    RayLauncher.__module__ = _MODULE
    Plugins.instance().register(RayLauncher)
    ConfigStore.instance().store(
        group="hydra/launcher", name="ray", node=_DEFAULTS, provider="cl_lora"
    )


class RayLauncher(Launcher):
    """Runs every job as a task of Ray; one that dies takes no other with it.

    Args:
        ray: ``init`` and ``remote``, arguments of Ray's functions of those names.
    """

    def __init__(self, ray: DictConfig) -> None:
        self._options = ray
        self._config: DictConfig | None = None
        self._context: HydraContext | None = None
        self._task: TaskFunction | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands to every launcher."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs and return what became of each."""
        import ray

        assert self._config is not None
        assert self._context is not None
        setup_globals()
        options: Any = OmegaConf.to_container(self._options, resolve=True)
        if not ray.is_initialized():
            ray.init(
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
                **options["init"],
            )
        # A sweep starts a job again by itself, and knows how often it has.
        task = ray.remote(max_retries=0, **options["remote"])(_run)
        pending = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id, config.hydra.job.num = str(number), number
            pending.append(task.remote(self._context, config, self._task, Singleton.get_state()))
        return [_result(ray, reference) for reference in pending]


def _run(
    context: HydraContext, config: DictConfig, task: TaskFunction, state: dict[Any, Any]
) -> JobReturn:
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _result(ray: Any, reference: Any) -> JobReturn:
    try:
        result: JobReturn = ray.get(reference)
    except ray.exceptions.RayError as error:
        result = JobReturn(status=JobStatus.FAILED)
        result.return_value = error
    return result
