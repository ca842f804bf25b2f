"""MLflow: a run of its own for each arm and seed, below one run of the run folder.

``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say where runs go, as for any user of MLflow.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cl_lora.support.errors import UserError
from cl_lora.tracking.parameters import flattened
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

T = TypeVar("T")

# Of MLflow itself one call may take many minutes, which a run must never wait for.
_HASTE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_METRICS, _PARAMETERS = 1000, 100  # that one request may hold
_VALUE = 500  # characters of a parameter that every version of MLflow takes


@register_tracker
class MLflow(Tracker):
    """MLflow's tracking."""

    name, package, extra = "mlflow", "mlflow", "mlflow"
    summary = "MLflow: a server, a database or a folder (MLFLOW_TRACKING_URI)"

    def connect(self) -> Connection:
        """Return a connection to the experiment, which is made where there is none."""
        for key, value in _HASTE.items():
            os.environ.setdefault(key, value)
        mlflow: Any = self.load()
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        address = str(mlflow.get_tracking_uri())
        shown = without_credentials(address)
        remedy = (
            "start it, set MLFLOW_TRACKING_URI to one that does, or leave tracker out: "
            "`cl-lora report RUN --tracker mlflow` sends a finished run later"
        )
        if address.startswith(("http://", "https://")):
            problem = answers(f"{address.rstrip('/')}/health")
            if problem:
                raise UserError(
                    f"The MLflow server at {shown} does not answer ({problem}); {remedy}"
                )
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        try:
            client = mlflow.MlflowClient(address)
            there = client.get_experiment_by_name(name)
            gone = there is not None and there.lifecycle_stage == "deleted"
            identifier = there.experiment_id if there else client.create_experiment(name)
        except Exception as error:
            said = one_line(error).replace(address, shown)
            raise UserError(f"MLflow at {shown} cannot be used ({said}); {remedy}") from error
        if gone:
            raise UserError(
                f"The MLflow experiment {name!r} at {shown} was deleted; restore it, or set "
                "MLFLOW_EXPERIMENT_NAME to another name"
            )
        return _Connection(client, identifier, f"{shown} experiment {name}")


class _Connection(Connection):
    def __init__(self, client: Any, experiment: str, place: str) -> None:
        self._client, self._experiment, self.place = client, experiment, place

    def begin(self, run: TrackedRun, known: str | None) -> tuple[str, bool]:
        identifier = known if known is not None and self._is_there(known) else None
        gone_on = identifier is not None
        if identifier is None:
            tags = {"run_folder": str(run.folder.absolute()), "group": run.group, "kind": run.kind}
            if run.parent is not None:
                tags["mlflow.parentRunId"] = run.parent  # how MLflow nests runs
            if run.notes:
                tags["mlflow.note.content"] = run.notes
            begun = self._client.create_run(self._experiment, run_name=run.name, tags=tags)
            identifier = str(begun.info.run_id)
        else:
            self._client.update_run(identifier, status="RUNNING")
        self._add_parameters(identifier, run.parameters)
        return identifier, gone_on

    def _is_there(self, identifier: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(identifier)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(found.info.lifecycle_stage == "active")

    def _add_parameters(self, identifier: str, parameters: Mapping[str, Any]) -> None:
        """Add what is not there: MLflow refuses to change a parameter."""
        from mlflow.entities import Param

        there = self._client.get_run(identifier).data.params
        new = [
            Param(key, str(value)[:_VALUE])
            for key, value in flattened(parameters).items()
            if key not in there
        ]
        for some in _in_parts(new, _PARAMETERS):
            self._client.log_batch(identifier, params=some)

    def log(self, identifier: str, points: Points) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, values in points
            for name, value in values.items()
        ]
        for some in _in_parts(metrics, _METRICS):
            self._client.log_batch(identifier, metrics=some)

    def conclude(self, identifier: str, results: Mapping[str, float]) -> None:
        # The value of a metric is that of the largest step, and of these the latest.
        self.log(identifier, [(0, results)])

    def upload(self, identifier: str, files: Mapping[str, Path], new: Collection[str]) -> None:
        for name in new:
            folder = str(PurePosixPath(name).parent)
            self._client.log_artifact(
                identifier, str(files[name]), None if folder == "." else folder
            )

    def end(self, identifier: str, *, finished: bool) -> None:
        self._client.set_terminated(identifier, "FINISHED" if finished else "FAILED")


def _in_parts(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
