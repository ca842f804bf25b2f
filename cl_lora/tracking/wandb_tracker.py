"""Weights & Biases: a run of its own for each arm and seed, grouped by the run folder.

``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY`` and ``WANDB_DIR`` say where runs go, as for any
user of W&B.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cl_lora.support.errors import UserError
from cl_lora.tracking.tracker import (
    PROJECT,
    Connection,
    Points,
    TrackedRun,
    Tracker,
    answers,
    one_line,
    register_tracker,
    without_credentials,
)

STAGE = "stage"
"""The metric that others are drawn over: W&B's own step counts what is sent."""

_INIT_S, _FINISH_S = 30, 60  # how long a server that has gone may hold a run up


@register_tracker
class WandB(Tracker):
    """W&B, online or offline."""

    name, package, extra = "wandb", "wandb", "wandb"
    summary = "Weights & Biases: online after a login, or WANDB_MODE=offline and `wandb sync` later"

    def connect(self) -> Connection:
        """Return a connection; online with a login that the server has confirmed."""
        wandb: Any = self.load()
        settings = wandb.setup().settings
        host = without_credentials(str(settings.base_url))
        online = settings.mode in ("online", "shared", "run")
        if online:
            _check_login(wandb, host)
        project = settings.project or PROJECT
        place = "/".join(part for part in (host, settings.entity, project) if part)
        return _Connection(wandb, project, place, online)


def _check_login(wandb: Any, host: str) -> None:
    """Refuse to begin without a login, or a server that answers, before anything is computed."""
    remedy = "set WANDB_MODE=offline, or leave tracker out"
    try:
        found = wandb.login(prompt=False, verify=False)
    except Exception as error:
        raise UserError(f"The login to W&B is no good ({one_line(error)}); {remedy}") from error
    if not found:
        raise UserError(
            f"tracker=wandb has no login for {host}; run `wandb login`, set WANDB_API_KEY, {remedy}"
        )
    problem = answers(host)
    if problem:
        raise UserError(f"The W&B server at {host} does not answer ({problem}); {remedy}")
    try:
        wandb.login(prompt=False, verify=True)
    except Exception as error:
        raise UserError(
            f"The W&B server at {host} does not accept the login ({one_line(error)}); run `wandb "
            f"login` again, {remedy}"
        ) from error


class _Connection(Connection):
    def __init__(self, wandb: Any, project: str, place: str, online: bool) -> None:
        self._wandb, self._project, self.place, self._online = wandb, project, place, online
        self._runs: dict[str, Any] = {}

    def begin(self, run: TrackedRun, known: str | None) -> tuple[str, bool]:
        identifier = known or secrets.token_hex(8)
        settings = self._wandb.Settings(
            # There are many runs at once, all in one process: what it prints, its memory and its
            # code belong to none of them.
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            init_timeout=_INIT_S,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
        )
        begun = self._wandb.init(
            project=self._project,
            id=identifier,
            name=run.name,
            group=run.group,
            job_type=run.kind,
            notes=run.notes or None,
            config={**run.parameters, "run_folder": str(run.folder.absolute())},
            allow_val_change=True,
            resume="allow" if self._online else None,
            reinit="create_new",
            settings=settings,
        )
        begun.define_metric(STAGE, hidden=True)
        begun.define_metric("*", step_metric=STAGE)
        self._runs[identifier] = begun
        return identifier, known is not None

    def log(self, identifier: str, points: Points) -> None:
        for step, values in points:
            self._runs[identifier].log({STAGE: step, **values})

    def conclude(self, identifier: str, results: Mapping[str, float]) -> None:
        self._runs[identifier].summary.update(dict(results))

    def upload(self, identifier: str, files: Mapping[str, Path], new: Collection[str]) -> None:
        run = self._runs[identifier]
        # A version of an artifact is whole; what the last one has is not uploaded again.
        artifact = self._wandb.Artifact(f"run-{identifier}", type="run_folder")
        for name, path in files.items():
            artifact.add_file(str(path), name=name)
        run.log_artifact(artifact)
        images = {name: files[name] for name in new if files[name].suffix == ".png"}
        if images:
            shown = {
                str(Path(n).with_suffix("")): self._wandb.Image(str(p)) for n, p in images.items()
            }
            run.log(shown)

    def end(self, identifier: str, *, finished: bool) -> None:
        self._runs.pop(identifier).finish(exit_code=0 if finished else 1)
