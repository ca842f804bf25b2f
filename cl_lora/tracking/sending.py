"""What sends a run folder: as it is computed, or when it is finished, and only what is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cl_lora.evaluation.scores import Score
from cl_lora.run_folder import layout
from cl_lora.run_folder.lock import locked
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support import files
from cl_lora.tracking.memory import Memory, Sent
from cl_lora.tracking.parameters import (
    Row,
    metrics_of_unit,
    parameters_of_folder,
    parameters_of_row,
    results_of,
    step_of,
)
from cl_lora.tracking.tracker import TRACKERS, Connection, TrackedRun, names_of, one_line

log = logging.getLogger(__name__)

_PATIENCE = 20
_LONGEST_S = 60.0
"""So many times as long as sending took passes until the next time, and at most so long."""

_FILES = (layout.CONFIG_FILE, layout.STREAM_FILE, layout.SCORES_FILE, layout.REPORT_FILE)
"""The files that are sent beside the figures."""

_OVERVIEW = ""
"""The key of the run that stands for the run folder as a whole."""

Units = dict[tuple[int, str, int], list[Score]]
"""(seed, row, stage) -> its scores."""


def check(names: Sequence[str]) -> None:
    """Connect to trackers once, to know that they can be sent to.

    Raises:
        UserError: if one cannot; see :meth:`Tracker.connect`.
    """
    for name in names_of(names):
        TRACKERS[name].connect()


@contextmanager
def connected(names: str | Sequence[str] | None) -> Iterator[Tracking]:
    """Yield what sends to the trackers of these names, and end their runs when the context ends.

    Raises:
        UserError: if one cannot be connected to; nothing is sent then.
    """
    connections = {name: TRACKERS[name].connect() for name in names_of(names)}
    tracking = Tracking([Sender(name, connection) for name, connection in connections.items()])
    try:
        yield tracking
    finally:
        tracking.close()


class Tracking:
    """Several trackers at once; each is a listener of the run, and none can stop it.

    Args:
        senders: one for each tracker.
    """

    def __init__(self, senders: Sequence[Sender]) -> None:
        self.senders = tuple(senders)

    def begun(self, folder: Path) -> None:
        """Send what is there of a run folder that is about to be computed."""
        for sender in self.senders:
            sender.begun(folder)

    def scored(self, scores: Sequence[Score]) -> None:
        """Send the scores of one unit, soon."""
        for sender in self.senders:
            sender.scored(scores)

    def finished(self, folder: Path) -> None:
        """Send what is missing of a finished run folder: scores, results, figures, report.

        Raises:
            UserError: if another process writes to the folder.
        """
        if self.senders:
            with locked(folder):  # two commands must not send the same twice
                for sender in self.senders:
                    sender.finished(folder)

    def close(self) -> None:
        """End every run of the trackers that is still open."""
        for sender in self.senders:
            sender.close()


class Sender:
    """Sends one run folder to one tracker.

    Whatever goes wrong is said once; nothing more is sent then, and the next command sends what is
    missing.

    Args:
        name: of the tracker.
        connection: to it.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self._connection = name, connection
        self.works = True
        """Whether nothing has gone wrong yet."""
        self._folder: _Folder | None = None
        self._pending: Units = {}
        self._last, self._took = 0.0, 0.0

    @property
    def place(self) -> str:
        """Where it sends to."""
        return self._connection.place

    def begun(self, folder: Path) -> None:
        """Send what is there of a run folder."""
        self._try(lambda: self._begin(RunFolder.read(folder, allow_unfinished=True)))

    def scored(self, scores: Sequence[Score]) -> None:
        """Keep the scores of one unit, and send all that are kept if the last time is long ago.

        Sending takes a twentieth of the time, unless a tracker needs many seconds for it.
        """
        if scores:
            first = scores[0]
            self._pending[first.seed, first.arm, first.stage] = list(scores)
        if time.monotonic() - self._last >= min(_PATIENCE * self._took, _LONGEST_S):
            self._try(self._flush)

    def finished(self, folder: Path) -> None:
        """Send all that is missing of a finished run folder, and end its runs."""
        self._try(lambda: self._finish(RunFolder.read(folder)))

    def close(self) -> None:
        """Send what is kept, and end the runs that are open as unfinished."""
        self._try(self._flush)
        # Where it has failed, to end its runs may take long to fail as well.
        if self._folder is not None:
            for key in sorted(self._folder.open):
                self._try(partial(self._folder.end, key, finished=False))
        self._remember()

    def _begin(self, run: RunFolder) -> _Folder:
        self._folder = _Folder(run, self._connection, self.name)
        if not self._folder.memory.runs:
            self._folder.overview()  # it shows, with its parameters, while adapters are trained
        self._pending = {**_units(run), **self._pending}
        self._flush()
        return self._folder

    def _flush(self) -> None:
        if self._folder is not None and self._pending:
            start = time.monotonic()
            self._folder.send(self._pending)
            self._pending = {}
            self._folder.memory.write()
            self._last = time.monotonic()
            self._took = self._last - start

    def _finish(self, run: RunFolder) -> None:
        folder = self._folder or self._begin(run)
        folder.run = run
        folder.send(_units(run))
        self._pending = {}
        folder.conclude()
        folder.memory.write()

    def _try(self, do: Callable[[], object]) -> None:
        if not self.works:
            return
        try:
            do()
        except Exception as error:
            self.works = False
            log.warning(
                "the tracker %s has failed and is sent nothing more (%s); scores are in the run "
                "folder all the same: the same command, or cl-lora report RUN --tracker %s, sends "
                "what is missing",
                *(self.name, one_line(error), self.name),
            )
            self._remember()

    def _remember(self) -> None:
        with suppress(Exception):  # what is not known to be sent is sent again
            if self._folder is not None:
                self._folder.memory.write()


class _Folder:
    """One run folder at one tracker: a run of it for every row of every seed, and one for all.

    Args:
        run: what is there of the run.
        connection: to the tracker.
        tracker: its name.

    Raises:
        UserError: if what the folder remembers of the tracker is damaged.
    """

    def __init__(self, run: RunFolder, connection: Connection, tracker: str) -> None:
        self.run, self._connection = run, connection
        self.memory = Memory(run.path, tracker, connection.place)
        self.open: set[str] = set()

    def overview(self) -> str:
        """Begin the run that stands for the folder as a whole, and return its identifier."""
        return self._begun(_OVERVIEW)

    def send(self, units: Units) -> None:
        """Send those units that the tracker does not hold."""
        of_keys: dict[str, dict[int, list[Score]]] = {}
        for (seed, arm, stage), scores in sorted(units.items(), key=lambda u: u[0][2]):
            of_keys.setdefault(_key((seed, arm)), {})[stage] = scores
        for key, of_stages in of_keys.items():
            if of_stages.keys() <= self._sent(key).stages:
                continue
            identifier = self._begun(key)  # which may find that the tracker holds nothing of it
            sent = self._sent(key)
            new = {s: scores for s, scores in of_stages.items() if s not in sent.stages}
            points = [(step_of(s), metrics_of_unit(self.run, u)) for s, u in new.items()]
            self._connection.log(identifier, points)
            sent.stages |= set(new)

    def conclude(self) -> None:
        """Send what sums a finished run up, its files, and that nothing is missing."""
        keys = dict.fromkeys(_key((score.seed, score.arm)) for score in self.run.scores)
        for row, results in results_of(self.run).items():
            key = _key(row)
            there = self._sent(key).results
            new = {name: value for name, value in results.items() if there.get(name) != value}
            if new:
                self._connection.conclude(self._begun(key), new)
                self._sent(key).results |= new
        self._upload()
        for key in (*keys, _OVERVIEW):
            if key in self.open or not self._sent(key).ended:
                self._begun(key)
                self.end(key, finished=True)

    def end(self, key: str, *, finished: bool) -> None:
        """End a run that is open."""
        sent = self._sent(key)
        self.open.discard(key)
        self._connection.end(str(sent.identifier), finished=finished)
        sent.ended = finished

    def _upload(self) -> None:
        folder = self.run.path
        paths = [folder / name for name in _FILES]
        paths += sorted((folder / layout.FIGURES).glob("[!.]*"))
        found = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
        digests = {name: files.digest(path.read_bytes()) for name, path in found.items()}
        there = self._sent(_OVERVIEW).files
        new = [name for name in found if there.get(name) != digests[name]]
        if new:
            self._connection.upload(self._begun(_OVERVIEW), found, new)
            self._sent(_OVERVIEW).files |= digests

    def _sent(self, key: str) -> Sent:
        """Return what a run of the tracker holds: nothing yet of an arm that is defined anew."""
        what = files.digest(self.run.variant(_row(key)[1])) if key else ""
        there = self.memory.runs.get(key)
        if there is None or there.what != what:
            there = self.memory.runs[key] = Sent(what=what)
        return there

    def _begun(self, key: str) -> str:
        """Return the identifier of a run that is open from now on."""
        sent = self._sent(key)
        if key in self.open and sent.identifier is not None:
            return sent.identifier
        identifier, gone_on = self._connection.begin(self._told(key), sent.identifier)
        if not gone_on:
            # Where it was deleted at the tracker, all of it is sent again.
            sent = self.memory.runs[key] = Sent(what=sent.what)
        sent.identifier, sent.ended = identifier, False
        self.open.add(key)
        return identifier

    def _told(self, key: str) -> TrackedRun:
        run = self.run
        group = run.path.absolute().name
        if key == _OVERVIEW:
            return TrackedRun(group, group, "overview", None, parameters_of_folder(run), run.path)
        seed, arm = row = _row(key)
        return TrackedRun(
            name=arm if run.seeds == (0,) else f"{arm} (seed {seed})",
            group=group,
            kind="reference" if arm in run.references else "arm",
            parent=self.overview(),
            parameters=parameters_of_row(run, row),
            folder=run.path,
            notes=run.description(arm),
        )


def _key(row: Row) -> str:
    return f"seed-{row[0]}/{row[1]}"


def _row(key: str) -> Row:
    seed, _, arm = key.removeprefix("seed-").partition("/")
    return int(seed), arm


def _units(run: RunFolder) -> Units:
    found: Units = {}
    for score in run.scores:
        found.setdefault((score.seed, score.arm, score.stage), []).append(score)
    return found
