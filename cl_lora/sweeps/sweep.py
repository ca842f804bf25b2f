"""A sweep, seen from the command that was given: hand the jobs out, watch them, say what failed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_lora.support.errors import UserError
from cl_lora.support.files import explain_write_errors
from cl_lora.sweeps.launchers import LauncherKind, threads_each
from cl_lora.sweeps.states import DONE, ENDED, FAILED, RUNNING, WAITING, State, StateFile
from cl_lora.sweeps.view import shown
from cl_lora.sweeps.worker import ALIVE, Order, SweepJob

if TYPE_CHECKING:
    from hydra.types import TaskFunction

JOB_FILES = "jobs-"
"""With which the name of a folder begins that holds the files of a sweep's jobs."""

_ATTEMPTS = 2  # of a job whose process died with that of another
_NAMED = 12  # folders that the last line names
_SAID = 300  # characters of an error that is no sentence of ours
_MISTAKE, _CRASH = 2, 1


@dataclass(frozen=True)
class Plan:
    """A sweep before its first job.

    Attributes:
        kind: of its launcher.
        labels: what tells each job from the others.
        at_once: how many jobs share this machine at one time; None on a cluster.
        changes: job -> options that the sweep sets for it.
        folder: where a sweep keeps files of its own while it runs.
        imports: modules that every job needs.
    """

    kind: LauncherKind
    labels: tuple[str, ...]
    at_once: int | None
    changes: Mapping[int, Mapping[str, Any]]
    folder: Path
    imports: tuple[str, ...] = ()


def labels_of(jobs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return for each job the overrides that not all jobs share."""
    common = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()
    return tuple(" ".join(part for part in job if part not in common) for job in jobs)


def conduct(plan: Plan, job: TaskFunction, run: Callable[[TaskFunction], None]) -> int:
    """Run all jobs of a sweep; what goes wrong in one stops no other.

    A job is begun once more where its process died with that of another job.

    Args:
        plan: the sweep.
        job: runs one composed configuration and returns its run folder.
        run: hands a task function to the launcher and returns when all jobs have ended.

    Returns:
        The exit code: 0; 2 where sentences explain what failed; 1 where something crashed.

    Raises:
        UserError: if no job could be begun.
    """
    with _folder(plan.folder) as folder:
        files = [StateFile(folder, number) for number in range(len(plan.labels))]
        with explain_write_errors(folder):
            for file in files:
                file.create()
        order = Order(
            states=folder,
            place=Path.cwd(),
            arguments=tuple(sys.argv),
            changes=plan.changes,
            threads=threads_each(plan.at_once) if plan.kind.side_by_side else None,
            told=plan.kind.side_by_side,
            watched=plan.at_once is not None,
            forked=plan.kind.pooled,
            imports=plan.imports,
        )
        view = shown(files, plan.labels) if order.told else contextlib.nullcontext()
        with view:
            _hand_out(order, files, SweepJob(job, order), run)
        states = [file.read() for file in files]
        code = _tell(plan, states, files)
        for file, state in zip(files, states, strict=True):
            if not (state.crashed and file.has_log):
                file.log.unlink(missing_ok=True)
            file.path.unlink(missing_ok=True)
    return code


def _hand_out(
    order: Order, files: Sequence[StateFile], task: SweepJob, run: Callable[[TaskFunction], None]
) -> None:
    """Give the jobs to the launcher, and again those that have not ended where it broke down."""
    begun = -1
    while True:
        broken = ""
        try:
            with _threads_said(order.threads):
                run(task)
        except Exception as error:
            if not any(file.read().attempts for file in files):
                if isinstance(error, UserError):
                    raise
                raise UserError(f"The launcher has begun no job: {_said(error)}") from error
            broken = _said(error)
        if not order.watched:
            return  # jobs on a cluster go on by themselves
        for file in files:
            file.wait()
        states = [file.read() for file in files]
        for file, state in zip(files, states, strict=True):
            if state.phase == RUNNING:  # and no process holds it
                file.write(_lost(state, broken))
        before, begun = begun, sum(state.attempts for state in states)
        if all(file.read().phase in ENDED for file in files) or begun == before:
            return


def _lost(state: State, broken: str) -> State:
    """Return the state of a job whose process is gone: it waits again, or failed."""
    if state.attempts < _ATTEMPTS:
        return replace(state, phase=WAITING)
    said = f"Its process has ended before it was finished ({broken or 'it was killed'})"
    return replace(state, phase=FAILED, said=said, crashed=True, ended=time.time())


def _tell(plan: Plan, states: Sequence[State], files: Sequence[StateFile]) -> int:
    """Say in a sentence each which jobs failed, and where the others are; return the exit code."""
    count, code = len(states), 0
    for number, (label, state) in enumerate(zip(plan.labels, states, strict=True)):
        if state.phase == DONE:
            continue
        said = state.said
        if state.phase not in ENDED:
            said = "it has not reported its end" if state.attempts else "it was not begun"
            said += "; ask the launcher whether it still runs" if plan.at_once is None else ""
        elif state.crashed and files[number].has_log:
            said += f" (its output is in {files[number].log})"
        mistake = state.phase in ENDED and not state.crashed
        code = code if mistake and code else (_MISTAKE if mistake else _CRASH)
        name = f"{label}" if label else "its only configuration"
        print(f"cl-lora: job {number + 1} of {count} ({name}): {said}", file=sys.stderr)
    done = sum(state.phase == DONE for state in states)
    if code:
        print(
            f"cl-lora: {done} of {count} jobs are done; the same command goes on with the others",
            file=sys.stderr,
        )
    elif plan.kind.side_by_side:
        folders = list(dict.fromkeys(state.said for state in states if state.said))
        if folders:
            more = " ..." if len(folders) > _NAMED else ""
            print(f"Run folders: {' '.join(folders[:_NAMED])}{more}")
            print("Side by side: cl-lora compare FOLDER ...")
    return code


@contextlib.contextmanager
def _threads_said(threads: int | None) -> Iterator[None]:
    """Let processes that a launcher starts know how many threads they have before they import."""
    key, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        os.environ[key] = str(threads)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before


@contextlib.contextmanager
def _folder(root: Path) -> Iterator[Path]:
    """Make a folder for the files of the jobs, locked while this process lives.

    Those of sweeps that are over are removed; at the end, its own unless a job left its output.
    """
    with explain_write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        folder = Path(tempfile.mkdtemp(dir=root, prefix=JOB_FILES))
        alive = (folder / ALIVE).open("w")
    with alive:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            (folder / ALIVE).unlink(missing_ok=True)
            if not any(folder.glob("*.txt")):
                shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    for folder in root.glob(f"{JOB_FILES}*"):
        try:
            with (folder / ALIVE).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            if time.time() - folder.stat().st_mtime > 60:  # else it is being made
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # that sweep still runs


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {text[:_SAID]}" if text else type(error).__name__
