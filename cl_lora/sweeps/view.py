"""All jobs of a sweep in one view: bars where a terminal is there, plain lines otherwise."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from cl_lora.sweeps.states import DONE, ENDED, RUNNING, State, StateFile

_POLL_S = 0.5
_FILES_PER_S = 400  # that are read, so that a sweep of thousands costs its parent nothing
_PLAIN_INTERVAL_S = 15.0
_NAMED = 4  # running jobs that a plain line names

Show = Callable[[str], None]


@contextlib.contextmanager
def shown(files: Sequence[StateFile], labels: Sequence[str]) -> Iterator[None]:
    """Show how far the jobs are, on standard error, until the block ends.

    Args:
        files: of all jobs.
        labels: what tells each job from the others.
    """
    stop = threading.Event()
    view = _bars if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=view, args=(_Watch(files, labels), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Watch:
    """Reads the files of the jobs that have not ended, and says what has changed."""

    def __init__(self, files: Sequence[StateFile], labels: Sequence[str]) -> None:
        self.labels = labels
        self.states = [State() for _ in files]
        self.pause = max(_POLL_S, len(files) / _FILES_PER_S)
        self._files = files

    def news(self) -> Iterator[str]:
        """Yield a line for each job that has begun or ended since."""
        for number, before in enumerate(self.states):
            if before.phase in ENDED:
                continue
            state = self._files[number].read()
            self.states[number] = state
            if state.phase == before.phase:
                continue
            name = f"[{number + 1}] {self.labels[number]}"
            if state.phase == RUNNING:
                yield f"{name}: started"
            elif state.phase == DONE:
                where = f": {state.said}" if state.said else ""
                yield f"{name}: done in {state.ended - state.began:.0f} s{where}"
            elif state.phase in ENDED:
                yield f"{name}: failed"

    @property
    def ended(self) -> int:
        """How many jobs have ended."""
        return sum(state.phase in ENDED for state in self.states)

    @property
    def running(self) -> dict[int, State]:
        """The jobs that are under way."""
        return {n: state for n, state in enumerate(self.states) if state.phase == RUNNING}


def _lines(watch: _Watch, stop: threading.Event) -> None:
    last = time.monotonic()
    while True:
        stopped = stop.wait(watch.pause)
        for line in watch.news():
            print(line, file=sys.stderr, flush=True)
        now = time.monotonic()
        if stopped:
            return
        if now - last >= _PLAIN_INTERVAL_S and watch.running:
            last = now
            print(_summary(watch), file=sys.stderr, flush=True)


def _summary(watch: _Watch) -> str:
    parts = [
        f"[{n + 1}] {state.what} {state.step}/{state.steps or '?'}"
        for n, state in list(watch.running.items())[:_NAMED]
    ]
    more = len(watch.running) - _NAMED
    rest = [f"and {more} more"] if more > 0 else []
    return f"{watch.ended} of {len(watch.states)} jobs ended; " + "; ".join([*parts, *rest])


def _bars(watch: _Watch, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Elapsed(),
    )
    bars: dict[int, TaskID] = {}
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stderr=False) as progress:
        whole = progress.add_task("jobs", total=len(watch.states))
        while True:
            stopped = stop.wait(watch.pause)
            for line in watch.news():
                if not line.endswith(": started"):
                    progress.console.print(escape(line), soft_wrap=True, highlight=False)
            progress.update(whole, completed=watch.ended)
            for number in bars.keys() - watch.running.keys():
                progress.remove_task(bars.pop(number))
            for number, state in watch.running.items():
                if number not in bars:
                    bars[number] = progress.add_task("", total=None)
                text = escape(f"[{number + 1}] {state.what}")
                progress.update(
                    bars[number], description=text, completed=state.step, total=state.steps
                )
            if stopped:
                return
