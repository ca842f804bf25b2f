"""Damage to every file of finished runs, of their image cache and of their adapters.

After each damage the folder is read (``compare``, now and then ``report``), and the same command
is run again, every third time with one more arm, so that something must be computed. The tables
must be those of the undisturbed run, byte for byte, or the command refuses; then the advice of its
sentence is followed until the command ends, and the tables must be right.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from attack.core import Case, Group, Outcome, Verdict, fork, judge, leftovers

TABLES = ("scores.csv", "coefficients.csv", "accounts.csv", "spectra.csv")
REPORTED = 25  # every so many cases the whole report is made
MORE = "+arms.more={method: linear, coefficients: 0.25}"

_TINY = (
    "benchmark.cache_dir=cache",
    "benchmark.classes=3",
    "benchmark.styles=[photo,cartoon,sketch]",
    "benchmark.samples_per_class=6",
    "benchmark.test_samples_per_class=4",
    "strategy.epochs=1",
    "strategy.batch_size=8",
    "strategy.rank=2",
    "model.img_size=16",
    "precision=fp32",
    "device=cpu",
    "arms=none",
)
RUNS: Mapping[str, Sequence[str]] = {
    # Stages in time, learned coefficients of several adapters, two seeds, baselines.
    "stream": (
        *_TINY,
        "seeds=[0,1]",
        "references=[last]",
        "+arms.half={method: task_arithmetic, coefficients: 0.5}",
        "+arms.learned={method: ties, spc: 2, coefficients: {name: adaptive, b_max: 3, steps: 2}}",
    ),
    # One stage, statistics, a head each, accounts and spectra.
    "reuse": (
        *_TINY,
        "benchmark.styles=[photo,cartoon]",
        "protocol=all_at_once",
        "strategy.head=own",
        "references=[]",
        "+arms.half={method: task_arithmetic, coefficients: 0.5}",
        "+arms.grams={method: regmean}",
    ),
}
CHEAP = "report=false"
_PREPARED_S = 1200.0
"""What trains may take long where many share a machine; no damage is judged by it."""

_IMPORTS = (
    *("cl_lora.commands.compare", "cl_lora.reporting.compare", "cl_lora.reporting.figures"),
    *("cl_lora.reporting.html", "cl_lora.reporting.tensorboard", "matplotlib.pyplot"),
    *("cl_lora.configuration.launch", "cl_lora.configuration.compose", "sklearn.manifold"),
)
"""What the forks need not import again."""

Damage = Callable[[Path, random.Random], None]


# What can happen to a file -----------------------------------------------------------------------


def flip(path: Path, draw: random.Random) -> None:
    """Change one bit of one byte."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Cut the file somewhere."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(1, len(data))])


def cut_number(path: Path, draw: random.Random) -> None:
    """Cut the last digit, and end the line again."""
    path.write_bytes(path.read_bytes().rstrip(b"\n")[:-1] + b"\n")


def cut_lines(path: Path, draw: random.Random) -> None:
    """Cut the file between two lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: draw.randrange(1, max(2, len(lines)))]))


def empty(path: Path, draw: random.Random) -> None:
    """Leave nothing in the file."""
    path.write_bytes(b"")


def zeros(path: Path, draw: random.Random) -> None:
    """Overwrite the file by zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def some_zeros(path: Path, draw: random.Random) -> None:
    """Overwrite a stretch of the second half by zeros, as a lost block is."""
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data) // 2, len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def inverted(path: Path, draw: random.Random) -> None:
    """Invert every byte of the second half."""
    data = path.read_bytes()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(255 - b for b in data[half:]))


def append(path: Path, draw: random.Random) -> None:
    """Append other bytes."""
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 40)))


def doubled(path: Path, draw: random.Random) -> None:
    """Append the file to itself."""
    path.write_bytes(path.read_bytes() * 2)


def delete(path: Path, draw: random.Random) -> None:
    """Delete the file."""
    path.unlink()


def carriage_returns(path: Path, draw: random.Random) -> None:
    """End lines as Windows does."""
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def utf_16(path: Path, draw: random.Random) -> None:
    """Encode the text otherwise."""
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-16")


def latin_1(path: Path, draw: random.Random) -> None:
    """Put a letter of another encoding somewhere."""
    data = path.read_bytes()
    place = draw.randrange(len(data))
    path.write_bytes(data[:place] + "ü".encode("latin-1") + data[place + 1 :])


BYTES: tuple[Damage, ...] = (flip, flip, cut, empty, zeros, some_zeros, append, delete)
TEXT: tuple[Damage, ...] = (cut_lines, carriage_returns, utf_16, latin_1)


def cell(column: str, value: str | None = None, row: int | None = None) -> Damage:
    """Return what changes one cell of a table; without a value, to that of another row."""

    def change(path: Path, draw: random.Random) -> None:
        head, *lines = path.read_text().splitlines()
        at = head.split(",").index(column)
        number = draw.randrange(len(lines)) if row is None else row
        fields = lines[number].split(",")
        others = sorted({line.split(",")[at] for line in lines} - {fields[at]})
        if value is None and not others:
            raise Unchanged
        fields[at] = draw.choice(others) if value is None else value
        lines[number] = ",".join(fields)
        path.write_text("\n".join([head, *lines]) + "\n")

    change.__name__ = f"{column} becomes {'that of another row' if value is None else value}"
    return change


def every(column: str, wanted: str, value: str) -> Damage:
    """Return what renames one thing in all rows of a table."""

    def change(path: Path, draw: random.Random) -> None:
        head, *lines = path.read_text().splitlines()
        at = head.split(",").index(column)
        rows = [line.split(",") for line in lines]
        for row in rows:
            row[at] = value if row[at] == wanted else row[at]
        path.write_text("\n".join([head, *map(",".join, rows)]) + "\n")

    change.__name__ = f"every {column} {wanted} becomes {value}"
    return change


def lines_of(what: str) -> Damage:
    """Return what drops, doubles or exchanges whole lines."""

    def change(path: Path, draw: random.Random) -> None:
        head, *lines = path.read_text().splitlines()
        number = draw.randrange(len(lines))
        if what == "one line lost":
            del lines[number]
        elif what == "one line twice":
            lines.insert(number, lines[number])
        elif what == "half of the lines lost":
            del lines[::2]
        else:
            del lines[:]
        path.write_text("\n".join([head, *lines]) + "\n")

    change.__name__ = what
    return change


TABLE: tuple[Damage, ...] = (
    cut_number,
    *(cell("value", value) for value in ("7.5", "-3", "inf", "nan", "0.3", "1e39", "")),
    *(cell("value"), cell("seed", "1"), cell("seed", "5"), cell("stage", "7")),
    *(cell("stage"), cell("arm"), cell("arm", "ghost"), every("arm", "half", "ghost")),
    *map(lines_of, ("one line lost", "one line twice", "half of the lines lost", "only the head")),
)


def replaced(pattern: str, by: str) -> Damage:
    """Return what replaces the first match of a pattern in a text."""

    def change(path: Path, draw: random.Random) -> None:
        path.write_text(re.sub(pattern, by, path.read_text(), count=1))

    change.__name__ = f"{pattern!r} becomes {by!r}"
    return change


def cut_before(word: str) -> Damage:
    """Return what cuts a text before a line."""

    def change(path: Path, draw: random.Random) -> None:
        text = path.read_text()
        if f"\n{word}" not in text:
            raise Unchanged
        path.write_text(text.partition(f"\n{word}")[0] + "\n")

    change.__name__ = f"cut before {word}"
    return change


def whole(text: str) -> Damage:
    """Return what puts another text in the place of a file."""

    def change(path: Path, draw: random.Random) -> None:
        path.write_text(text)

    change.__name__ = f"all becomes {text!r}"
    return change


def swap(other: Path) -> Damage:
    """Return what exchanges two files or folders of a run; ``other`` is below its folder."""

    def change(path: Path, draw: random.Random) -> None:
        there = _root(path) / other
        aside = path.with_name("aside")
        for old, new in ((path, aside), (there, path), (aside, there)):
            os.rename(old, new)

    change.__name__ = f"exchanged with {other}"
    return change


class Unchanged(Exception):  # noqa: N818
    """Raised where a damage is none."""


CONFIG: tuple[Damage, ...] = (
    *map(cut_before, ("arms:", "variants:", "references:", "seeds:", "identity:")),
    replaced(r"coefficients: 0\.5", "coefficients: 0.7"),
    replaced(r"value: 0\.5", "value: 0.7"),
    replaced(r"(arms:\n)(  half:\n(?:    .*\n)+)((?:  .*\n|    .*\n)+)", r"\1\3\2"),
    replaced(r"fingerprint: ", "fingerprint: 0"),
    replaced(r"format: 2", "format: 3"),
    replaced(r"seeds:\n- 0", "seeds:\n- 3"),
    replaced(r"half", "halb"),
    whole("2001-99-99\n"),
    whole("- 1\n"),
    whole("[" * 3000),
    whole("{? {a: b} : c}\n"),
)
RECORD: tuple[Damage, ...] = (
    replaced(r"\d", "7"),
    replaced(r"(?s)\{.*\}", "{}"),
    whole("[1, 2]\n"),
    whole("null\n"),
    whole("7\n"),
    whole('{"earlier": 5, "packages": 3}\n'),
    whole("[" * 3000),
)
STREAM: tuple[Damage, ...] = (
    replaced(r'"high": 1.0', '"high": 9.0'),
    replaced(r"cartoon", "sketch"),
    replaced(r'"ordered": (true|false)', '"ordered": 1'),
)


# Which files there are ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A file, or a folder, that is damaged.

    Attributes:
        run: name of the run.
        path: below the folder that holds the run and the cache.
        damages: what happens to it, one case each.
    """

    run: str
    path: Path
    damages: tuple[Damage, ...]


def targets(prepared: Path, run: str) -> Iterator[Target]:
    """Yield the files of a run and of its cache, with what happens to each."""
    root = prepared / run
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        below = path.relative_to(root)
        damages = [d for d in _damages(root, below) if _changes(prepared, path, d)]
        count = min(len(damages), _most(run, below))
        # Which ways, where there are too many, differs from file to file.
        shift = sum(map(ord, str(below)))
        taken = sorted({(shift + i * len(damages) // count) % len(damages) for i in range(count)})
        yield Target(run, below, tuple(damages[i] for i in taken))
    banks = sorted((root / "run" / "adapters").glob("*"))
    for bank in banks:
        first, second, *_ = sorted(bank.glob("[0-9]*"))
        yield Target(run, first.relative_to(root), (swap(second.relative_to(root)),))
    if len(banks) > 1:
        one, other = (sorted(b.glob("[0-9]*"))[0].relative_to(root) for b in banks[:2])
        yield Target(run, one, (swap(other),))
        yield Target(run, banks[0].relative_to(root), (swap(banks[1].relative_to(root)),))


def _changes(prepared: Path, path: Path, damage: Damage) -> bool:
    """Return whether a damage changes a file at all."""
    if damage.__name__.startswith("exchanged"):
        return True
    scratch = prepared / "scratch"
    shutil.copyfile(path, scratch)
    try:
        _apply(scratch, damage, random.Random(path.name))
    except Unchanged:
        return False
    return True


_MOST: Mapping[tuple[str, str], int] = {
    ("stream", "scores.csv"): 99,
    ("stream", "coefficients.csv"): 99,
    ("stream", "seals.csv"): 12,
    ("stream", "config.yaml"): 99,
    ("stream", "stream.json"): 16,
    ("stream", "environment.json"): 12,
    ("reuse", "accounts.csv"): 99,
    ("reuse", "stream.json"): 10,
}


def _most(run: str, below: Path) -> int:
    """Return in how many ways a file is damaged: in all where it is the only one of its kind."""
    if below.parent == Path("run"):
        return _MOST.get((run, below.name), 6)
    return 8 if "cache" in below.parts else 2


def _damages(root: Path, below: Path) -> Iterator[Damage]:
    name, folder = below.name, below.parent
    # What is one of many alike is damaged in fewer ways each; all ways come.
    number = sum(map(ord, str(below)))
    few = (BYTES[number % len(BYTES)], BYTES[(number // 3 + 3) % len(BYTES)], inverted)
    if name == ".lock":
        yield from (empty, delete)
    elif folder == Path("run") and name.endswith(".csv"):
        yield from (*BYTES, *TEXT, append, doubled)
        head = (root / below).read_text().partition("\n")[0].split(",")
        column = "digest" if name == "seals.csv" else "value"
        known = [d for d in TABLE if column == "value" or "value" not in d.__name__]
        yield from (d for d in known if not re.match(r"(every )?(arm|stage) ", d.__name__))
        if {"arm", "stage"} <= set(head):
            yield from (d for d in known if re.match(r"(every )?(arm|stage) ", d.__name__))
        yield swap(Path("run/coefficients.csv" if name == "scores.csv" else "run/scores.csv"))
    elif name == "config.yaml":
        yield from (*BYTES, *TEXT, *CONFIG, swap(Path("run/stream.json")))
    elif name in ("stream.json", "environment.json"):
        yield from (*BYTES, *TEXT, *RECORD)
        if name == "stream.json":
            yield from STREAM
    elif folder == Path("run"):
        yield from few
    elif "adapters" in below.parts and name == "training.json":
        yield from (
            *few,
            replaced(r'"loss": \d', '"loss": 9'),
            utf_16,
            RECORD[number % len(RECORD)],
        )
    elif "adapters" in below.parts or "cache" in below.parts or "hits" in below.parts:
        yield from (*few, some_zeros, BYTES[(number // 7) % len(BYTES)])
    else:
        yield from few
    alike = [p for p in sorted((root / folder.parent).glob(f"*/{name}")) if p != root / below]
    if alike:
        yield swap(alike[number % len(alike)].relative_to(root))


# What must come of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Right:
    """What an undisturbed run gives.

    Attributes:
        command: the arguments.
        tables: name -> contents.
        compared: what ``compare`` prints.
    """

    command: tuple[str, ...]
    tables: Mapping[str, bytes]
    compared: str

    def holds(self, folder: Path) -> bool:
        """Return whether a folder holds the same tables."""
        return tables(folder) == self.tables


def tables(folder: Path) -> dict[str, bytes]:
    """Return the tables of a run."""
    return {n: (folder / n).read_bytes() for n in TABLES if (folder / n).is_file()}


def command(run: str, *more: str, folder: str = "run") -> tuple[str, ...]:
    """Return the arguments of ``cl-lora`` that make a run."""
    return ("run", f"run_dir={folder}", *RUNS[run], *more)


COMPARED = ("compare", "run", "--format", "csv")


def prepare(prepared: Path, run: str) -> dict[bool, Right]:
    """Make a run, undisturbed; return what is right without one more arm and with it."""
    found = {}
    for more in (False, True):
        root = prepared / (f"{run}-more" if more else run)
        if more:
            shutil.copytree(prepared / run, root)
        else:
            root.mkdir()
        given = command(run, CHEAP, *([MORE] if more else []))
        _expect_success(fork(given, root, longest_s=_PREPARED_S))
        compared = fork(COMPARED, root, longest_s=_PREPARED_S)
        _expect_success(compared)
        found[more] = Right(given, tables(root / "run"), compared.out)
    return found


def run_again(arguments: Sequence[str], where: Path) -> Outcome:
    """Run ``cl-lora run`` with a configuration that is composed once: Hydra is not attacked."""
    return fork(arguments, where, before=partial(_skip_composing, composed(tuple(arguments))))


@cache
def composed(arguments: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the configuration of a command."""
    from cl_lora.configuration.compose import compose_config

    config: Mapping[str, Any] = compose_config(list(arguments[1:]))
    return config


def _skip_composing(config: Mapping[str, Any]) -> None:
    from cl_lora.commands import run
    from cl_lora.configuration import launch

    def launched(*_: object) -> int:
        run.execute(config)
        return 0

    launch.launch = launched  # type: ignore[assignment]


def _expect_success(outcome: Outcome) -> None:
    if outcome.code:
        raise RuntimeError(f"What is undisturbed must end well: {outcome}")


def attack(
    source: Path,
    target: Target,
    damage: Damage,
    right: Right,
    before: Right,
    salt: str,
    where: Path,
) -> tuple[Verdict, str]:
    """Damage a copy of a run, and say what comes of it.

    Args:
        source: holds the run and its cache.
        target: what is damaged.
        damage: how.
        right: what the command must give.
        before: what the folder held.
        salt: what the damage is drawn by.
        where: an empty folder.
    """
    shutil.copytree(source, where, dirs_exist_ok=True)
    try:
        _apply(where / target.path, damage, random.Random(salt))
    except Unchanged:
        return Verdict.RIGHT, ""  # two files that are the same were swapped, or the like
    read = ("report", "run") if salt.endswith("report") else COMPARED
    outcome = fork(read, where)
    verdict, shown = judge(outcome, lambda: read != COMPARED or outcome.out == before.compared)
    if not verdict.good:
        return verdict, f"{read[0]}: {shown}"
    outcome = run_again(right.command, where)
    verdict, shown = judge(outcome, lambda: right.holds(where / "run"), where)
    if verdict is not Verdict.REFUSED:
        return verdict, shown
    return _advised(where, right, outcome.err)


def _apply(path: Path, damage: Damage, draw: random.Random) -> None:
    if not path.is_file():
        damage(path, draw)
        return
    original = path.read_bytes()
    for _ in range(20):  # what is drawn may change nothing
        damage(path, draw)
        if not path.is_file() or path.read_bytes() != original:
            return
    raise Unchanged(str(path))


_FOLLOWED = 8


def _advised(where: Path, right: Right, said: str) -> tuple[Verdict, str]:
    """Follow the advice of sentences until the command ends; its numbers must be right."""
    first = said.strip()
    folder = "run"
    for _ in range(_FOLLOWED):
        last = said.strip().splitlines()[-1]
        if re.search(r"new folder|new run_dir|another run_dir", last) and "delete" not in last:
            folder = "other"
        elif not _delete(where, last):
            return Verdict.UNCLEAR, f"nothing can be followed: {last}"
        given = [w.replace("run_dir=run", f"run_dir={folder}") for w in right.command]
        outcome = run_again(given, where)
        verdict, shown = judge(outcome, partial(right.holds, where / folder), where)
        if verdict is Verdict.RIGHT:
            return Verdict.REFUSED, first
        if verdict is not Verdict.REFUSED:
            return verdict, f"after its advice: {shown} (first: {first[-300:]})"
        said = outcome.err
    return Verdict.UNCLEAR, f"the advice leads nowhere: {said.strip()[-300:]}"


def _delete(where: Path, sentence: str) -> bool:
    """Delete what a sentence says; return whether something was."""
    named = re.search(r"line (\d+)", sentence)
    paths = [p for p in map(Path, _words(sentence)) if (where / p).exists()]
    advice = sentence.rpartition(";")[2]
    ordered = [p for p in map(Path, _words(advice)) if (where / p).exists()]
    if "delete" not in advice or not (paths or ordered):
        return False
    if "lines" in advice and named and paths:
        path = where / paths[0]
        numbers = {int(n) for n in re.findall(r"\d+", sentence.split(":")[1])} | {int(named[1])}
        data = path.read_bytes().splitlines(keepends=True)
        if len(data) > 1 and numbers.isdisjoint({1}) and max(numbers) <= len(data):
            kept = [line for i, line in enumerate(data, start=1) if i not in numbers]
            path.write_bytes(b"".join(kept))
            return True
        ordered = paths[:1]
    if re.search(r"delete (it|both|the file|the damaged)\b", advice) and paths:
        ordered = [*paths[:1], *ordered]
        beside = [w for w in _words(advice) if (where / paths[0].parent / w).exists()]
        ordered += [paths[0].parent / w for w in beside]
        if "both" in advice:
            names = [w for w in _words(sentence) if (where / paths[0].parent / w).is_file()]
            ordered += [paths[0].parent / w for w in names]
    for path in dict.fromkeys(ordered):
        if (where / path).is_dir():
            shutil.rmtree(where / path)
        else:
            (where / path).unlink(missing_ok=True)
    return bool(ordered)


def _words(sentence: str) -> list[str]:
    """Return the words that may be paths."""
    found = (word.strip("'\"(),:;") for word in sentence.replace("cl-lora: ", "").split())
    return [w for w in found if w and w not in (".", "run", "cache") and ("/" in w or "." in w)]


def _root(path: Path) -> Path:
    """Return the folder that holds a run and its cache."""
    for parent in path.parents:
        if (parent / "run").is_dir() and (parent / "cache").is_dir():
            return parent
    raise ValueError(path)


# Reports -----------------------------------------------------------------------------------------


def report_cases(prepared: Path, run: str) -> Iterator[Case]:
    """Yield damages to what a report is made of; the same command makes it again."""
    root = prepared / "reported"

    def stale(damage: Callable[[Path], None], where: Path) -> tuple[Verdict, str]:
        shutil.copytree(root, where, dirs_exist_ok=True)
        damage(where / "run")
        outcome = run_again((*command(run), MORE), where)
        return judge(outcome, lambda: _is_made_again(where / "run"), where)

    for name in ("report.html", "report.json", "figures", "tensorboard"):
        yield Case(f"{run}: {name} deleted", partial(stale, partial(_lose, name)))
    for name in ("report.html", "report.json"):
        for damage in (flip, cut, empty):
            change = partial(_damage, name, damage)
            yield Case(f"{run}: {name}: {damage.__name__}", partial(stale, change))
    yield Case(f"{run}: the clock is set back before one more arm", partial(stale, _future))
    yield Case(f"{run}: a killed report left something", partial(stale, _leave))


def _lose(name: str, folder: Path) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _damage(name: str, damage: Damage, folder: Path) -> None:
    _apply(folder / name, damage, random.Random(name))


def _future(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (4e9, 4e9))


def _leave(folder: Path) -> None:
    for name in (".figures.abcdefgh", ".tensorboard.abcdefgh"):
        (folder / name).mkdir()
        (folder / name / "half.png").write_bytes(b"half")
    (folder / ".report.html.abcdefgh").write_text("half")
    (folder / ".lock-report").write_text("")


def _is_made_again(folder: Path) -> bool:
    """Return whether the report tells of all arms and all of it is there, and nothing is left."""
    record = json.loads((folder / "report.json").read_text())
    text = (folder / "report.html").read_text()
    scores = (folder / "scores.csv").read_text()
    arms = {line.split(",")[1] for line in scores.splitlines()[1:]}
    made = all((folder / name).is_file() for name in record["made"])
    pictures = any(name.startswith("figures/") for name in record["made"])
    return made and pictures and text.endswith("</html>\n") and all(a in text for a in arms)


# -------------------------------------------------------------------------------------------------


def cases(seed: int, prepared: Path) -> list[Case]:
    """Make the runs that are damaged, and return all damages."""
    for name in _IMPORTS:
        importlib.import_module(name)
    found: list[Case] = []
    for run in RUNS:
        right = prepare(prepared, run)
        number = 0
        for target in targets(prepared, run):
            for damage in target.damages:
                number += 1
                name = f"{run}: {target.path}: {damage.__name__}"
                salt = f"{seed}-{name}-{number}" + ("-report" if number % REPORTED == 0 else "")
                given = (prepared / run, target, damage, right[number % 3 == 0], right[False], salt)
                found.append(Case(name, partial(attack, *given)))
    shutil.copytree(prepared / "reuse", prepared / "reported")
    _expect_success(fork(command("reuse"), prepared / "reported", longest_s=_PREPARED_S))
    assert not leftovers(prepared / "reported")
    return [*found, *report_cases(prepared, "reuse")]


GROUP = Group("folders", "Damaged run folders, caches and adapters", cases)
