"""``cl-lora check``: is everything in a run folder whole, finite and what was written?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cl_lora.commands.terminal import Parser, quieten
from cl_lora.support.errors import UserError
from cl_lora.support.printing import say

if TYPE_CHECKING:
    from cl_lora.run_folder.reader import RunFolder

FOUND = 1
"""The exit code where something is damaged or missing."""

_BANK = re.compile(r"seed-(?P<seed>\d+)(?:-(?P<bank>.+))?")


def run(given: Sequence[str]) -> int:
    """Check a run folder, and print what is wrong and what to do about it."""
    parser = Parser(
        "check",
        "Look for damage in a run folder, and for what is missing: every digest and every number "
        "is checked, and nothing is changed. The exit code is 1 if something is found.",
        ["check runs/NAME"],
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_plugins()
    arguments = parser.parse_args(given)
    quieten()
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(arguments.plugins)
    seen: Counter[str] = Counter()
    found = list(dict.fromkeys(problems(arguments.run, seen)))
    for problem in found:
        say(problem)
    counts = ", ".join(f"{count} {what}" for what, count in seen.items())
    if found:
        s = "s" * (len(found) > 1)
        say(f"{arguments.run}: {len(found)} problem{s} found; looked at {counts or 'nothing'}")
        return FOUND
    say(f"{arguments.run} is whole: {counts}")
    return 0


def problems(folder: Path, seen: Counter[str]) -> Iterator[str]:
    """Yield a sentence for everything that is damaged or missing, with what to do about it.

    Args:
        folder: the run folder.
        seen: counts what was looked at.

    Raises:
        UserError: if it is no run folder.
    """
    from cl_lora.run_folder.config_file import read_config
    from cl_lora.run_folder.layout import CONFIG_FILE
    from cl_lora.run_folder.lock import require_run_folder
    from cl_lora.run_folder.reader import RunFolder

    require_run_folder(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} is no run folder: it has no {CONFIG_FILE}; give the folder that cl-lora run "
            "wrote"
        )
    finished: list[RunFolder] = []
    yield from _sentence(lambda: read_config(folder))
    yield from _sentence(lambda: finished.append(RunFolder.read(folder, allow_unfinished=True)))
    for run in finished:
        seen["scores"] = len(run.scores)
        yield from _sentence(run.check_finished)
    yield from _tables(folder)
    yield from _files(folder, seen)
    yield from _adapters(folder, finished[0].stream.fingerprint if finished else None, seen)
    yield from _leftovers(folder)


def _sentence(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield str(error)


def _tables(folder: Path) -> Iterator[str]:
    """Check the tables that belong to no unit; those that do have been read with the scores."""
    from cl_lora.run_folder import rows
    from cl_lora.run_folder.seals import is_table_intact

    for file in (rows.SIMILARITIES, rows.RELATIONS, rows.FACTS, rows.SPECTRA, rows.EMBEDDINGS):
        if not is_table_intact(folder, file.name):
            yield f"{folder / file.name} is not what was written; {file.again}"


def _files(folder: Path, seen: Counter[str]) -> Iterator[str]:
    """Check which samples were right, and which were drawn."""
    from cl_lora.run_folder.hits import read_hits
    from cl_lora.run_folder.layout import BUFFERS, HITS
    from cl_lora.support.files import read_json

    for path in sorted(folder.glob(f"{HITS}/*/*.npz")):
        seen["files of hits"] += 1
        yield from _sentence(lambda path=path: read_hits(path))  # type: ignore[misc]
    again = "delete it and run the command again, which draws the same samples"
    for path in sorted(folder.glob(f"{BUFFERS}/*.json")):
        yield from _sentence(lambda path=path: read_json(path, "is damaged", again))  # type: ignore[misc]


def _adapters(folder: Path, fingerprint: str | None, seen: Counter[str]) -> Iterator[str]:
    """Check every byte and number of every adapter, and that it belongs here."""
    from cl_lora.adapters import AdapterBank
    from cl_lora.run_folder.layout import ADAPTERS
    from cl_lora.support.progress import track

    banks = [path for path in sorted(folder.glob(f"{ADAPTERS}/*")) if _BANK.fullmatch(path.name)]
    places = []
    for bank in banks:
        found: list[Path] = []
        yield from _sentence(lambda bank=bank, found=found: found.extend(AdapterBank(bank).paths()))  # type: ignore[misc]
        places += [(bank, path) for path in found]
    for bank, path in track(places, "checking adapters", total=len(places)):
        seen["adapters"] += 1
        number, _, name = path.name.partition("-")
        try:
            adapter = AdapterBank(bank).verify(int(number), name)
        except UserError as error:
            yield str(error)
            continue
        match = _BANK.fullmatch(bank.name)
        assert match is not None
        known = adapter.training
        for key, wanted in (("fingerprint", fingerprint), ("seed", int(match["seed"]))):
            if wanted is not None and known.get(key, wanted) != wanted:
                yield (
                    f"The adapter in {path} is of another run ({key} is {known[key]!r}, expected "
                    f"{wanted!r}); put the right one in its place, or delete {path} and run "
                    "the command again"
                )


def _leftovers(folder: Path) -> Iterator[str]:
    from cl_lora.run_folder.layout import LEFTOVERS, LEFTOVERS_OF_REPORTS

    left = sorted(
        {path for part in (*LEFTOVERS, *LEFTOVERS_OF_REPORTS) for path in folder.glob(part)}
    )
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        yield (
            f"{left[0]}{more} was left by a command that was killed, or is being written; where "
            "none is running, the next cl-lora run or report removes it"
        )
