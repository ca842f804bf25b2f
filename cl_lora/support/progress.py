"""Progress: a bar with ETA where a terminal is there, plain lines otherwise; on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from cl_lora.support.errors import printable
from cl_lora.support.printing import is_quiet, tell

T = TypeVar("T")

Tell = Callable[[str, int, int | None], None]
"""Takes what is being done, how many steps of it are done, and of how many."""

_PLAIN_INTERVAL_S = 15.0
_listeners: list[Tell] = []


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and show how far they are.

    Args:
        items: what to go through.
        description: what is being done, a few words.
        total: how many items there are; ``len(items)`` where it has a length.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    with meter(description, total) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def meter(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of ``total`` steps."""
    with _shown()(description, total) as advance:
        yield advance


def _shown() -> Callable[[str, int | None], contextlib.AbstractContextManager[Callable[[], None]]]:
    if _listeners:
        return _told
    if is_quiet():
        return _silent
    return _bar if sys.stderr.isatty() else _lines


@contextlib.contextmanager
def told_to(tell: Tell) -> Iterator[None]:
    """Tell every step to ``tell`` instead of showing it, e.g. where another process shows it."""
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


@contextlib.contextmanager
def _told(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    tell, done = _listeners[-1], 0

    def advance() -> None:
        nonlocal done
        done += 1
        tell(description, done, total)

    tell(description, 0, total)
    yield advance


@contextlib.contextmanager
def _silent(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextlib.contextmanager
def _bar(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Remaining(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(description), total=total)
        yield lambda: progress.advance(task)


@contextlib.contextmanager
def _lines(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    start = last = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL_S:
            last = now
            left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
            tell(f"{description}: {done}/{total or '?'}{left}")

    yield advance
