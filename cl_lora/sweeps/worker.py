"""One job of a sweep, in whatever process a launcher runs it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import json
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_lora.support import progress
from cl_lora.support.errors import UserError
from cl_lora.sweeps.states import DONE, ENDED, FAILED, RUNNING, State, StateFile

if TYPE_CHECKING:
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

ALIVE = "alive"
"""The file that the process of a sweep keeps locked for as long as it lives."""

_TOLD_EVERY_S = 0.5
_POLL_S = 0.2


@dataclass(frozen=True)
class Order:
    """What a job must know of its sweep.

    Attributes:
        states: the folder of the state files.
        place: the folder in which the command was given.
        arguments: the command, as its run folder records it.
        changes: job -> options that the sweep sets for it.
        threads: CPU threads of each job; None leaves what the environment says.
        told: whether the terminal is the parent's, which shows how far each job is.
        watched: whether a job ends when the parent does.
        forked: whether each job has a process of its own below the launcher's.
        imports: modules that every job needs: imported once for all jobs of a process.
    """

    states: Path
    place: Path
    arguments: tuple[str, ...]
    changes: Mapping[int, Mapping[str, Any]]
    threads: int | None = None
    told: bool = True
    watched: bool = True
    forked: bool = False
    imports: tuple[str, ...] = ()


class SweepJob:
    """What a launcher calls for each job; what goes wrong in one stops no other.

    Args:
        job: runs one composed configuration and returns its run folder.
        order: what it must know.
    """

    def __init__(self, job: TaskFunction, order: Order) -> None:
        self.job, self.order = job, order
        self.__module__ = job.__module__  # to which Hydra takes paths as relative

    def __call__(self, composed: DictConfig) -> None:
        """Run a job, unless it has ended or another process is at it.

        Raises:
            UserError: what went wrong, only where it cannot be written down.
        """
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import open_dict

        number = int(HydraConfig.get().job.num)
        file = StateFile(self.order.states, number)
        with open_dict(composed):
            for key, value in self.order.changes.get(number, {}).items():
                composed[key] = value
        with file.held() as mine:
            before = file.read()
            if not mine or before.phase in ENDED:
                return
            began = replace(
                State(RUNNING, what="starting", pid=os.getpid()),
                began=time.time(),
                attempts=before.attempts + 1,
            )
            file.write(began)
            run = self._forked if self.order.forked else self._inside
            ended = run(composed, file, began)
            if not file.write(ended) and ended.phase == FAILED:
                raise UserError(ended.said)

    def _inside(self, composed: DictConfig, file: StateFile, began: State) -> State:
        """Run a job in this process and return how it ended."""
        with contextlib.ExitStack() as stack:
            if self.order.watched and self.order.told:
                stack.enter_context(_ending_with(self.order.states / ALIVE))
            if self.order.told:
                os.chdir(self.order.place)
                sys.argv = list(self.order.arguments)
                stack.enter_context(progress.told_to(_Teller(file, began)))
            try:
                if self.order.threads is not None and composed.get("threads") is None:
                    _limit(self.order.threads)
                found = self.job(composed)
            except UserError as error:
                return replace(began, phase=FAILED, said=str(error), ended=time.time())
            except Exception as error:
                traceback.print_exc()
                said = " ".join(f"{type(error).__name__}: {error}".split())
                return replace(began, phase=FAILED, said=said, crashed=True, ended=time.time())
            return replace(began, phase=DONE, said=str(found or ""), ended=time.time())

    def _forked(self, composed: DictConfig, file: StateFile, began: State) -> State:
        """Run a job in a process below this one: if it is killed, this one goes on.

        The modules are imported here, once for all jobs, and nothing is computed here: a process
        can be forked safely before the first computation, and not after it.
        """
        _watch_once(self.order.states / ALIVE)
        with _quiet():
            for module in self.order.imports:
                importlib.import_module(module)
        results, answer = os.pipe()
        lives, life = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(results)
            os.close(life)
            began = replace(began, pid=os.getpid(), began=time.time())
            self._below(composed, file, began, answer, lives)
        os.close(answer)
        os.close(lives)
        try:
            with os.fdopen(results, "rb") as stream:
                told = stream.read()
            status = os.waitpid(child, 0)[1]
        finally:
            os.close(life)  # with which the child ends, if it still runs
        with contextlib.suppress(ValueError, TypeError):
            return State(**json.loads(told))
        how = (
            f"killed ({signal.Signals(os.WTERMSIG(status)).name})"
            if os.WIFSIGNALED(status)
            else f"ended (exit code {os.waitstatus_to_exitcode(status)})"
        )
        said = f"Its process was {how} before it was finished"
        return replace(began, phase=FAILED, said=said, crashed=True, ended=time.time())

    def _below(
        self, composed: DictConfig, file: StateFile, began: State, answer: int, lives: int
    ) -> None:
        code = 1
        try:
            threading.Thread(target=_end_after, args=(lives,), daemon=True).start()
            file.write(began)
            log = os.open(file.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (1, 2):
                os.dup2(log, stream)
            ended = self._inside(composed, file, began)
            sys.stdout.flush()
            sys.stderr.flush()
            # Semaphores that the job has made; the handlers of the process above are its own.
            multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
            os.write(answer, json.dumps(dataclasses.asdict(ended)).encode())
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)


class _Teller:
    """Writes to a job's file how far it is, not too often."""

    def __init__(self, file: StateFile, began: State) -> None:
        self._file, self._began = file, began
        self._next = 0.0

    def __call__(self, what: str, step: int, steps: int | None) -> None:
        now = time.monotonic()
        if now >= self._next or step == 0:
            self._next = now + _TOLD_EVERY_S
            self._file.write(replace(self._began, what=what, step=step, steps=steps))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send standard error nowhere, also that of helper processes that imports start."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _limit(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is imported or started later
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _ending_with(alive: Path) -> Iterator[None]:
    """Kill this process as soon as the parent of the sweep is gone, however it went.

    A job that went on would keep its run folder from the command that is given again.
    """
    over = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError), alive.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # once the parent no longer holds it
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


_watched: set[Path] = set()


def _watch_once(alive: Path) -> None:
    """Kill this process of a launcher, which may be idle by then, if its parent has died."""
    if alive in _watched:
        return
    _watched.add(alive)
    parent = os.getppid()

    def watch() -> None:
        with contextlib.suppress(OSError), alive.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        # A sweep that is just over lets its processes end by themselves; one that was killed gives
        # its locks back a moment before it is gone.
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _end_after(lives: int) -> None:
    """Kill this process as soon as nobody holds the other end of a pipe."""
    os.read(lives, 1)
    os.kill(os.getpid(), signal.SIGKILL)
