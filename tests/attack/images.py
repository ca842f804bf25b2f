"""Attack the images of a benchmark: files of every kind, hostile names and trees, damaged caches.

A tree of 2 domains x 2 classes x 3 images gets one thing that is odd. Most cases then load the
benchmark as a run does, in a fork that has a command of its own for it, and compare every cached
pixel with the array that the files were made of. Those of names and of damaged caches are whole
runs, whose scores must be those of the undisturbed run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import stat
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from attack.core import Case, Group, Outcome, Verdict, fork, judge
from attack.image_files import SIZE, Made, Pixels, made_files, saved
from PIL import Image

DOMAINS, CLASSES, COUNT = ("art", "photo"), ("cat", "dog"), 3
NOBODY = 65534

_RUN = (
    "run",
    "benchmark=domains",
    "benchmark.root=tree",
    "benchmark.cache_dir=cache",
    "benchmark.test_fraction=0.5",
    f"model.img_size={SIZE}",
    "strategy.epochs=1",
    "strategy.rank=1",
    "strategy.batch_size=4",
    "arms=none",
    "references=[base,last]",
    "report=false",
    "run_dir=run",
)

Do = Callable[[Path], tuple[Verdict, str]]


# What a case stands on ---------------------------------------------------------------------------


def write_tree(
    root: Path,
    domains: Sequence[str] = DOMAINS,
    classes: Sequence[str] = CLASSES,
    count: int = COUNT,
    first: str | bytes | None = None,
) -> dict[str, Pixels]:
    """Write the tree, every image noise of its own; return the pixels by path below ``root``.

    Args:
        root: the folder to write into.
        domains: names of its folders.
        classes: names of the folders in each.
        count: images in each.
        first: name of the first image of all; None for that of its number.
    """
    generator = np.random.default_rng(7)
    pixels: dict[str, Pixels] = {}
    for domain in domains:
        for name in classes:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                file = f"{index}.png"
                if first is not None and not pixels:
                    file = os.fsdecode(first)
                (folder / file).write_bytes(saved(Image.fromarray(image), "PNG"))
                pixels[f"{domain}/{name}/{file}"] = image
    return pixels


def loading(cwd: Path, before: Callable[[], None] | None = None, **config: object) -> Outcome:
    """Load the benchmark of ``cwd/tree`` through the command line, in a fork."""

    def command(_: Sequence[str]) -> int:
        from cl_lora.benchmarks import make_benchmark

        data = make_benchmark(
            {
                "kind": "domains",
                "root": "tree",
                "cache_dir": "cache",
                "test_fraction": 0.5,
                **config,
            },
            SIZE,
        )
        first = data.experiences[0]
        found = {"domains": data.names, "classes": first.task.labels, "count": len(first.inputs)}
        print(json.dumps(found))
        print(hashlib.blake2b(np.ascontiguousarray(first.inputs)).hexdigest())
        return 0

    def start() -> None:
        from cl_lora import cli

        module = types.ModuleType("cl_lora.commands.load")
        module.run = command  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        cli.COMMANDS = {**cli.COMMANDS, "load": "load the benchmark"}
        if before is not None:
            before()

    return fork(["load"], cwd, before=start, longest_s=60)


def running(cwd: Path, *more: str, before: Callable[[], None] | None = None) -> Outcome:
    """Train on ``cwd/tree`` and score, in a fork."""
    return fork([*_RUN, *more], cwd, before=before)


def cached(cwd: Path) -> Pixels:
    """Return what the only cache file below ``cwd/cache`` holds."""
    (file,) = (cwd / "cache").glob("*.npy")
    found: Pixels = np.load(file)
    return found


def holds(cwd: Path, pixels: Mapping[str, Pixels], tolerance: int = 0) -> bool:
    """Return whether the cache holds these images, in the order of their paths."""
    right = np.stack([pixels[path] for path in sorted(pixels)]).astype(int)
    found = cached(cwd)
    return found.shape == right.shape and bool((abs(found - right) <= tolerance).all())


def verdict(
    outcome: Outcome, right: Callable[[], bool] | None, cwd: Path, named: str | None = None
) -> tuple[Verdict, str]:
    """Judge an outcome; a terminal must get nothing that it obeys, and no warning of a library.

    Args:
        outcome: of the command.
        right: as of :func:`attack.core.judge`.
        cwd: where it ran.
        named: what a refusal must name.
    """
    told = outcome.err + outcome.out
    for line in told.splitlines():
        if not line.isprintable() or "\udcff" in line:
            return Verdict.UNCLEAR, f"printed {line!r}"
    if "Warning" in told:
        return Verdict.UNCLEAR, f"a warning: {told[-400:]}"
    found, shown = judge(outcome, right, cwd / "cache")
    if found is Verdict.REFUSED and named is not None and named not in outcome.err:
        return Verdict.UNCLEAR, f"does not name {named}: {shown}"
    return found, shown


# Files -------------------------------------------------------------------------------------------


def _file_case(made: Made) -> Case:
    def run(cwd: Path) -> tuple[Verdict, str]:
        pixels = write_tree(cwd / "tree")
        path = f"art/cat/odd{made.suffix}"
        (cwd / "tree" / path).write_bytes(made.data)
        outcome = loading(cwd)
        if outcome.code == 2 and made.right is not None and not made.may_refuse:
            return Verdict.WRONG, f"refused: {outcome.err[-300:]}"
        if made.right is None:
            return verdict(outcome, None, cwd, path)
        right = {**pixels, path: made.right}
        return verdict(outcome, lambda: holds(cwd, right, made.tolerance), cwd, path)

    return Case(f"file: {made.name}", run)


# What is no file ---------------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(path.name)
    os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


def _link_to_pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


NO_FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a device": _device,
    "a socket": _socket,
    "a file of 20 GB": _sparse,
    "a link to a pipe": _link_to_pipe,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/tty": lambda path: path.symlink_to("/dev/tty"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to(".."),
    "a folder": lambda path: path.mkdir(),
}


def _no_file_cases() -> list[Case]:
    def case(name: str, make: Callable[[Path], None], suffix: str) -> Case:
        def run(cwd: Path) -> tuple[Verdict, str]:
            write_tree(cwd / "tree")
            path = f"art/cat/odd{suffix}"
            make(cwd / "tree" / path)
            return verdict(loading(cwd), None, cwd, path)

        return Case(f"no file: {name} named odd{suffix}", run)

    def linked(cwd: Path) -> tuple[Verdict, str]:
        pixels = write_tree(cwd / "tree")
        path = cwd / "tree" / "art" / "cat" / "0.png"
        path.rename(cwd / "elsewhere")
        path.symlink_to(cwd / "elsewhere")
        return verdict(loading(cwd), lambda: holds(cwd, pixels), cwd)

    return [
        *(case(name, make, ".jpg") for name, make in NO_FILES.items()),
        case("a pipe", _pipe, ".PNG"),
        Case("no file: an image behind a link", linked),
    ]


# Trees -------------------------------------------------------------------------------------------


def _tree_case(
    name: str,
    change: Callable[[Path], None],
    right: Callable[[Path], dict[str, object]] | None,
    named: str | None = None,
    **config: object,
) -> Case:
    """Return a case that changes the tree; ``right`` says what is found then, None: nothing."""

    def run(cwd: Path) -> tuple[Verdict, str]:
        write_tree(cwd / "tree")
        change(cwd / "tree")
        outcome = loading(cwd, **config)
        if right is None:
            return verdict(outcome, None, cwd, named)
        expected = {"domains": list(DOMAINS), "classes": list(CLASSES), "count": 12, **right(cwd)}
        return verdict(outcome, lambda: json.loads(outcome.out.splitlines()[0]) == expected, cwd)

    return Case(f"tree: {name}", run)


def _same(_: Path) -> dict[str, object]:
    return {}


def _tree_cases() -> list[Case]:
    def both(root: Path, act: Callable[[Path], object]) -> None:
        for domain in DOMAINS:
            act(root / domain)

    def copied(folder: Path, name: str) -> None:
        shutil.copytree(folder / "cat", folder / name)

    def many(root: Path) -> None:
        data = (root / "art" / "cat" / "0.png").read_bytes()
        for index in range(3000):
            (root / "art" / "cat" / f"x{index}.png").write_bytes(data)

    def classes(root: Path) -> None:
        for number in range(150):
            both(root, lambda folder, n=number: copied(folder, f"class {n:03}"))

    def nested(root: Path) -> None:
        deep = root / "art" / "cat"
        for _ in range(60):
            deep = deep / "deeper"
        deep.mkdir(parents=True)
        shutil.copy(root / "art" / "cat" / "0.png", deep)

    def moved(folder: Path) -> None:
        shutil.move(folder / "cat", folder.parent.parent / f"{folder.name}-cat")
        (folder / "cat").symlink_to(folder.parent.parent / f"{folder.name}-cat")

    found = {
        "hidden files": lambda root: (root / "art" / "cat" / "._0.png").write_bytes(b"\0"),
        "hidden folders": lambda root: both(root, lambda f: (f / ".cat").mkdir()),
        "Thumbs.db": lambda root: both(root, lambda f: (f / "cat" / "Thumbs.db").write_bytes(b"")),
        "files beside classes": lambda root: both(root, lambda f: (f / "x.png").write_bytes(b"")),
        "files beside domains": lambda root: (root / "x.png").write_bytes(b""),
        "folders in folders": nested,
        "classes behind links": lambda root: both(root, moved),
        "a pipe beside classes": lambda root: os.mkfifo(root / "art" / "pipe"),
        "a pipe of no image's name": lambda root: os.mkfifo(root / "art" / "cat" / "pipe"),
        "a link to nothing beside domains": lambda root: (root / "no").symlink_to("nowhere"),
        "a file that is no image": lambda root: (root / "art/cat/notes.txt").write_text("x"),
    }
    case_names = {
        "classes that differ in case": ("Cat", {"classes": ["Cat", "cat", "dog"], "count": 18}),
        "a class with a blank": ("big cat", {"classes": ["big cat", "cat", "dog"], "count": 18}),
    }
    refused: dict[str, tuple[Callable[[Path], object], str | None]] = {
        "an empty class": (lambda r: both(r, lambda f: (f / "empty").mkdir()), "empty"),
        "a class in one domain only": (lambda r: copied(r / "art", "cow"), "cow"),
        "a class missing": (lambda r: shutil.rmtree(r / "art" / "dog"), "dog"),
        "a class that is a file": (lambda r: _instead(r / "art" / "dog", b""), "dog"),
        "a domain without classes": (lambda r: (r / "zero").mkdir(), None),
        "no domain": (lambda r: both(r, shutil.rmtree), "tree"),
        "no folder": (shutil.rmtree, "tree"),
        "a file": (lambda r: _instead(r, b"x"), "tree"),
        "a link to itself": (lambda r: _instead(r, None), "tree"),
        "a class that is a link to itself": (lambda r: _instead(r / "art/dog", None), "art/dog"),
        "a domain that is a link to itself": (lambda r: _instead(r / "art", None), "art"),
        "a class that leads back": (lambda r: (r / "art" / "up").symlink_to(".."), "up"),
        "domains that are links to each other": (_linked_domains, "one"),
        "one image in a class": (lambda r: _thin(r / "art" / "cat"), "cat"),
        "a class of directories": (_folders_for_images, "0.png"),
    }
    return [
        *(_tree_case(name, act, _same) for name, act in found.items()),
        *(
            _tree_case(name, lambda r, n=new: both(r, lambda f: copied(f, n)), lambda _, e=e: e)
            for name, (new, e) in case_names.items()
        ),
        _tree_case("3,000 files more", many, lambda _: {"count": 3012}),
        _tree_case(
            "150 classes more",
            classes,
            lambda _: {
                "classes": ["cat", *(f"class {n:03}" for n in range(150)), "dog"],
                "count": 12 + 150 * 6,
            },
        ),
        *(_tree_case(name, act, None, named) for name, (act, named) in refused.items()),
        _tree_case(
            "lists with a name that is not UTF-8",
            _list_not_utf8,
            None,
            "art_train.txt",
            split_lists="tree/lists",
        ),
    ]


def _instead(path: Path, data: bytes | None) -> None:
    """Put a file where a folder was, or a link to itself."""
    shutil.rmtree(path)
    path.symlink_to(path.name) if data is None else path.write_bytes(data)


def _linked_domains(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")


def _thin(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def _folders_for_images(root: Path) -> None:
    for path in (root / "art" / "cat").iterdir():
        path.unlink()
        path.mkdir()


def _list_not_utf8(root: Path) -> None:
    (root / "lists").mkdir()
    for domain in DOMAINS:
        for side in ("train", "test"):
            (root / "lists" / f"{domain}_{side}.txt").write_bytes(b"art/cat/\xff.png\n")


# Names -------------------------------------------------------------------------------------------

FINE_NAMES = (
    "$x^$", "$\\frac$", "it's \"so\"", "Käse", "猫", "a b", "a,b", "a=b", "[x]", "{x}", "%s %d",
    "<script>alert(1)<script>", "&amp;", "-r", "#1", "~", "*", "a;b", "`id`", "$(id)", "null",
    "true", "1", "1e5", "x..", "c" * 200, "\\n", "_underscore_", "a:b", "🙂", "@x", "%(x)s",
    "${oc.env:HOME}",
)  # fmt: skip
ODD_NAMES = (
    "a\nb", "\x1b[31mred", "tab\there", "bell\a", "\r", "\u202egpj", "\u2028", "\x7f", "\x9b31m",
    os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff\xfe"),
)  # fmt: skip


def _name_cases(undisturbed: str) -> list[Case]:
    def of_domain(name: str) -> Do:
        def run(cwd: Path) -> tuple[Verdict, str]:
            write_tree(cwd / "tree", (name, "photo"))
            outcome = running(cwd)
            return verdict(outcome, lambda: _named_scores(cwd, name, undisturbed), cwd)

        return run

    def of_class(name: str) -> Do:
        def run(cwd: Path) -> tuple[Verdict, str]:
            pixels = write_tree(cwd / "tree", classes=(name, "dog"))
            outcome = loading(cwd)
            expected = {"domains": list(DOMAINS), "classes": sorted((name, "dog")), "count": 12}
            return verdict(
                outcome,
                lambda: json.loads(outcome.out.splitlines()[0]) == expected and holds(cwd, pixels),
                cwd,
            )

        return run

    def of_file(name: str, broken: bool) -> Do:
        def run(cwd: Path) -> tuple[Verdict, str]:
            pixels = write_tree(cwd / "tree", first=f"{name}.png")
            if broken:
                (cwd / "tree" / "art" / "cat" / f"{name}.png").write_bytes(b"none")
                return verdict(loading(cwd), None, cwd, "art/cat/")
            return verdict(loading(cwd), lambda: holds(cwd, pixels), cwd)

        return run

    def refused(what: str, name: str) -> Do:
        def run(cwd: Path) -> tuple[Verdict, str]:
            if what == "domain":
                write_tree(cwd / "tree", (name, "photo"))
            else:
                write_tree(cwd / "tree", classes=(name, "dog"))
            return verdict(loading(cwd), None, cwd, repr(name))

        return run

    # Domains are what tables, figures and files of a run are named by: whole runs, those that
    # differ most.
    return [
        *(Case(f"name: domain {n!r}", of_domain(n)) for n in FINE_NAMES[::5]),
        *(Case(f"name: class {n!r}", of_class(n)) for n in FINE_NAMES),
        *(Case(f"name: file {n!r}", of_file(n, False)) for n in (*FINE_NAMES, *ODD_NAMES)),
        *(Case(f"name: broken file {n!r}", of_file(n, True)) for n in ODD_NAMES),
        *(Case(f"name: domain {n!r}", refused("domain", n)) for n in ODD_NAMES),
        *(Case(f"name: class {n!r}", refused("class", n)) for n in ODD_NAMES[::3]),
    ]


def _named_scores(cwd: Path, name: str, undisturbed: str) -> bool:
    """Return whether as many scores are there as in the undisturbed run."""
    found = (cwd / "run" / "scores.csv").read_text(encoding="utf-8")
    return len(found.splitlines()) >= len(undisturbed.splitlines())


# Permissions -------------------------------------------------------------------------------------


def _permission_cases() -> list[Case]:
    def case(name: str, change: Callable[[Path], object], named: str, right: bool = False) -> Case:
        def run(cwd: Path) -> tuple[Verdict, str]:
            if os.geteuid() != 0:
                return Verdict.RIGHT, "needs root"
            pixels = write_tree(cwd / "tree")
            (cwd / "cache").mkdir()
            for path in (cwd.parent, cwd):
                path.chmod(0o755)
            for path in (cwd, cwd / "cache"):
                os.chown(path, NOBODY, NOBODY)
            change(cwd)
            outcome = loading(cwd, before=lambda: os.setuid(NOBODY))
            found = verdict(outcome, (lambda: holds(cwd, pixels)) if right else None, cwd, named)
            for path in (cwd, *cwd.rglob("*")):
                path.chmod(0o755)
            return found

        return Case(f"permission: {name}", run)

    return [
        case("nothing is forbidden", lambda _: None, "", right=True),
        case("an image", lambda c: (c / "tree/art/cat/0.png").chmod(0), "art/cat/0.png"),
        case("a class", lambda c: (c / "tree/art/cat").chmod(0), "art/cat"),
        case("a class, listed only", lambda c: (c / "tree/art/cat").chmod(0o444), "art/cat"),
        case("a domain", lambda c: (c / "tree/art").chmod(0), "art"),
        case("a domain, listed only", lambda c: (c / "tree/art").chmod(0o444), "art"),
        case("the root", lambda c: (c / "tree").chmod(0), "tree"),
        case("the root, listed only", lambda c: (c / "tree").chmod(0o444), "tree"),
        case("to write to the cache", lambda c: (c / "cache").chmod(0o555), "cache"),
        case("the cache", lambda c: (c / "cache").chmod(0), "cache"),
    ]


# Caches ------------------------------------------------------------------------------------------

Damage = Callable[[Path, bytes, random.Random], object]


def _zero(path: Path, data: bytes, draw: random.Random) -> None:
    begin = 128 + draw.randrange(12) * SIZE * SIZE * 3
    path.write_bytes(data[:begin] + bytes(SIZE * SIZE * 3) + data[begin + SIZE * SIZE * 3 :])


def _inverted(path: Path, data: bytes, _: random.Random) -> None:
    path.write_bytes(data[:128] + bytes(255 - b for b in data[128:]))


def _inverted_pixels(path: Path, data: bytes, _: random.Random) -> None:
    end = 128 + 12 * SIZE * SIZE * 3
    path.write_bytes(data[:128] + bytes(255 - b for b in data[128:end]) + data[end:])


def _swapped(path: Path, data: bytes, draw: random.Random) -> None:
    one, two = sorted(draw.sample(range(12), 2))
    array = np.frombuffer(data[128 : 128 + 12 * SIZE * SIZE * 3], np.uint8).reshape(12, -1).copy()
    array[[one, two]] = array[[two, one]]
    path.write_bytes(data[:128] + array.tobytes() + data[128 + array.size :])


def _swapped_channels(path: Path, data: bytes, _: random.Random) -> None:
    end = 128 + 12 * SIZE * SIZE * 3
    array = np.frombuffer(data[128:end], np.uint8).reshape(-1, 3)[:, ::-1]
    path.write_bytes(data[:128] + array.tobytes() + data[end:])


def _flipped(path: Path, data: bytes, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])


def _exchanged(path: Path, data: bytes, _: random.Random) -> None:
    """Put a whole file of other images, with their right checksums, in its place."""
    from cl_lora.benchmarks.cache import ImageSource, cached_images

    with_others = path.parent.parent / "others"
    source = ImageSource("others", 12, lambda i, s: np.full((s, s, 3), i, np.uint8))
    cached_images(source, SIZE, with_others)
    (file,) = with_others.glob("*.npy")
    path.write_bytes(file.read_bytes())


def _header(old: bytes, new: bytes) -> Damage:
    return lambda path, data, _: path.write_bytes(data.replace(old, new, 1))


def _folder(path: Path, _: bytes, __: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe_instead(path: Path, _: bytes, __: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _looped(path: Path, _: bytes, __: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _behind_a_link(path: Path, _: bytes, __: random.Random) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _lock_left(path: Path, _: bytes, __: random.Random) -> None:
    path.with_suffix(".lock").write_bytes(b"")
    path.unlink()


def _lock_is_folder(path: Path, _: bytes, __: random.Random) -> None:
    path.with_suffix(".lock").mkdir()
    path.unlink()


def _unlinked(path: Path, _: bytes, __: random.Random) -> None:
    path.unlink()


def _cache_is_file(path: Path, _: bytes, __: random.Random) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"")


def _cache_is_loop(path: Path, _: bytes, __: random.Random) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to(path.parent.name)


DAMAGES: dict[str, Damage] = {
    "nothing": lambda path, data, _: None,
    "deleted": _unlinked,
    "an image zeroed": _zero,
    "all zeroed": lambda path, data, _: path.write_bytes(bytes(len(data))),
    "pixels zeroed": lambda p, d, _: p.write_bytes(d[:128] + bytes(36864) + d[128 + 36864 :]),
    "inverted": _inverted,
    "pixels inverted": _inverted_pixels,
    "two images swapped": _swapped,
    "channels swapped": _swapped_channels,
    **{f"bit flipped, draw {number}": _flipped for number in range(8)},
    "cut to nothing": lambda path, data, _: path.write_bytes(b""),
    "cut to its header": lambda path, data, _: path.write_bytes(data[:128]),
    "cut in its header": lambda path, data, _: path.write_bytes(data[:50]),
    "cut in half": lambda path, data, _: path.write_bytes(data[: len(data) // 2]),
    "cut by a byte": lambda path, data, _: path.write_bytes(data[:-1]),
    "cut behind its images": lambda path, data, _: path.write_bytes(data[: 128 + 36864]),
    "without its first byte": lambda path, data, _: path.write_bytes(data[1:]),
    "longer": lambda path, data, _: path.write_bytes(data + b"\0"),
    "twice": lambda path, data, _: path.write_bytes(data + data),
    "another shape": _header(b"(12, 32, 32, 3)", b"(12, 32, 32, 2)"),
    "another order": _header(b"'fortran_order': False", b"'fortran_order': True "),
    "another type": _header(b"|u1", b"|i1"),
    "another version": lambda p, d, _: p.write_bytes(d[:6] + b"\2\0" + d[8:]),
    "a header of code": _header(b"{'descr': '|u1'", b"{'descr': exit( )"),
    "a pickle": lambda path, data, _: path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit'\ntR."),
    "text": lambda path, data, _: path.write_bytes(b"not found"),
    "CRLF": lambda path, data, _: path.write_bytes(data.replace(b"\n", b"\r\n")),
    "other images": _exchanged,
    "a folder": _folder,
    "a pipe": _pipe_instead,
    "a link to itself": _looped,
    "behind a link": _behind_a_link,
    "a lock left": _lock_left,
    "a lock that is a folder": _lock_is_folder,
    "a cache that is a file": _cache_is_file,
    "a cache that is a link to itself": _cache_is_loop,
}
MAY_REFUSE = {
    "a folder", "a pipe", "a link to itself", "a lock that is a folder", "a cache that is a file",
    "a cache that is a link to itself",
}  # fmt: skip
WHOLE_RUNS = ("nothing", "an image zeroed", "pixels inverted", "two images swapped", "cut in half",
              "other images")  # fmt: skip
SILENT = {"nothing", "deleted", "behind a link", "a lock left"}


def _cache_cases(seed: int, prepared: Path, scores: str, loaded: str) -> list[Case]:
    def case(name: str, damage: Damage, whole_run: bool) -> Case:
        def run(cwd: Path) -> tuple[Verdict, str]:
            shutil.copytree(prepared / "tree", cwd / "tree")
            shutil.copytree(prepared / ("cache" if whole_run else "loaded"), cwd / "cache")
            (file,) = (cwd / "cache").glob("*.npy")
            whole = file.read_bytes()
            damage(file, whole, random.Random(f"{seed}-cache-{name}"))
            outcome = running(cwd) if whole_run else loading(cwd)
            if outcome.code == 2 and name not in MAY_REFUSE:
                return Verdict.UNCLEAR, f"refused: {outcome.err[-300:]}"
            if outcome.code == 0 and ("is made again" in outcome.err) != (name not in SILENT):
                return Verdict.UNCLEAR, f"says nothing, or too much: {outcome.err[-300:]}"

            def right() -> bool:
                if whole_run:
                    numbers = (cwd / "run" / "scores.csv").read_text() == scores
                else:
                    numbers = outcome.out == loaded
                return numbers and file.read_bytes() == whole

            return verdict(outcome, right, cwd)

        return Case(f"cache{', whole run' * whole_run}: {name}", run)

    def unwritable(name: str, damage: Damage, right: bool) -> Case:
        def run(cwd: Path) -> tuple[Verdict, str]:
            if os.geteuid() != 0:
                return Verdict.RIGHT, "needs root"
            shutil.copytree(prepared / "tree", cwd / "tree")
            shutil.copytree(prepared / "loaded", cwd / "cache")
            (file,) = (cwd / "cache").glob("*.npy")
            damage(file, file.read_bytes(), random.Random(f"{seed}-unwritable-{name}"))
            for path in (cwd.parent, cwd):
                path.chmod(0o755)
            (cwd / "cache").chmod(0o555)
            outcome = loading(cwd, before=lambda: os.setuid(NOBODY))
            pixels = np.load(file) if right else None
            return verdict(outcome, (lambda: pixels is not None) if right else None, cwd, "cache/")

        return Case(f"cache that may not be written: {name}", run)

    return [
        *(case(name, damage, False) for name, damage in DAMAGES.items()),
        *(case(name, DAMAGES[name], True) for name in WHOLE_RUNS),
        unwritable("whole", lambda *_: None, True),
        unwritable("damaged", _zero, False),
        unwritable("cut", lambda path, data, _: path.write_bytes(data[:-1]), False),
        unwritable("unreadable", lambda path, data, _: path.chmod(0), False),
    ]


# All ---------------------------------------------------------------------------------------------


def cases(seed: int, prepared: Path) -> list[Case]:
    """Return the cases; makes the undisturbed run."""
    write_tree(prepared / "tree")
    outcome = running(prepared)
    if outcome.code:
        raise RuntimeError(f"the undisturbed run failed: {outcome.err}")
    scores = (prepared / "run" / "scores.csv").read_text()
    loaded = loading(prepared, cache_dir="loaded").out
    return [
        *map(_file_case, made_files(seed)),
        *_no_file_cases(),
        *_tree_cases(),
        *_name_cases(scores),
        *_permission_cases(),
        *_cache_cases(seed, prepared, scores, loaded),
    ]


GROUP = Group("images", "images and folder trees", cases)
