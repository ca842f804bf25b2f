"""Any tree of images ``root/domain/class/*.jpg|jpeg|png``: PACS, Office-Home, DomainNet, ..."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from cl_lora.benchmarks.cache import ImageSource, shortened
from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, domain_benchmark
from cl_lora.benchmarks.images import Pixels, decode_image, read_file
from cl_lora.benchmarks.sources.names import require_printable
from cl_lora.benchmarks.sources.settings import SplitConfig, require_text
from cl_lora.benchmarks.splits import Indices, Split, Splits, class_problems, split_domains
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.files import digest

_SUFFIXES = (".jpg", ".jpeg", ".png")
_HASHING_THREADS = 4

# Endings of a domain's list files, the first pair that exists is taken. The kfold names are those
# of PACS, whose own test list is the whole domain: the held-out part is its crossval list.
_LIST_ENDINGS = (
    ("_train.txt", "_test.txt"),
    ("_train_kfold.txt", "_crossval_kfold.txt"),
    ("_train_kfold.txt", "_test_kfold.txt"),
)


@benchmark_kind("domains")
@dataclass(frozen=True, kw_only=True)
class DomainsConfig(SplitConfig):
    """Settings of a benchmark in a folder tree; see ``SplitConfig`` for the rest.

    Attributes:
        root: the folder that holds a folder for each domain.
        split_lists: folder of ``<domain>_train.txt`` and ``<domain>_test.txt`` with one path
            relative to ``root`` a line, used instead of a drawn split; None to draw.
    """

    root: str = required("the folder that holds a folder for each domain", "DIR")
    name: str = "domains"
    split_lists: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_text("root", self.root)
        require_text("split_lists", self.split_lists)

    def check(self) -> None:
        """Check folders, classes and the split; read no image."""
        tree = scan(self)
        _split(self, tree)

    def found(self) -> str | None:
        """Say how much is in the folder, or None if there is no such folder."""
        root = Path(self.root).expanduser()
        if not root.is_dir():
            return None
        tree = scan(self)
        return (
            f"{root}: {len(tree.paths)} images, {len(tree.classes)} classes, "
            f"domains {', '.join(tree.domains)}"
        )

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding its images if no earlier run has."""
        return _build(self, image_size)


@dataclass(frozen=True)
class ImageTree:
    """What a folder tree holds, unread.

    Attributes:
        root: the folder of the domain folders.
        classes: class names, sorted.
        domains: domain names in stream order.
        paths: relative to ``root``, with forward slashes, sorted; sample i is ``paths[i]``.
        labels: int64 (N,), indices into ``classes``.
        domain_of: int64 (N,), indices into ``domains``.
    """

    root: Path
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    paths: tuple[str, ...]
    labels: Indices
    domain_of: Indices


def scan(config: DomainsConfig) -> ImageTree:
    """List the images below ``config.root``, reading none.

    Raises:
        UserError: no such folder, unknown domains, classes that are not in every domain, or
            classes without an image; all such classes are named at once.
    """
    root = require_folder(config.root)
    lists = Path(config.split_lists).expanduser() if config.split_lists else None
    folders = [name for name in folder_names(root) if not lists or (root / name) != lists]
    domains = config.domains or tuple(folders)
    if not domains:
        raise UserError(
            f"Expected {root} to hold a folder for each domain but it holds no folder; "
            "give the right benchmark.root=DIR"
        )
    for domain in domains:
        if domain not in folders:
            raise unknown_name(f"domain of {root}", domain, folders)
    return list_images(root, domains)


def require_folder(given: str) -> Path:
    """Return the folder that ``benchmark.root`` names.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UserError(
            f"Expected benchmark.root to be a folder but got {given!r}, "
            f"which {'is a file' if root.exists() else 'does not exist'}; give benchmark.root=DIR"
        )
    return root


def list_images(root: Path, domains: tuple[str, ...], what: str = "domain") -> ImageTree:
    """List the images ``root/domain/class/*``, reading none.

    Args:
        root: the folder of the domain folders.
        domains: the folders to look into, in stream order.
        what: what to call such a folder in an error; ``benchmark.domains`` chooses domains only.

    Raises:
        UserError: classes that are not in every domain, or without an image; all are named.
    """
    found = {
        domain: {name: _images(root / domain / name) for name in folder_names(root / domain)}
        for domain in domains
    }
    _require_complete(root, found, what)
    classes = sorted(found[domains[0]])
    samples = sorted(
        (f"{domain}/{name}/{file}", classes.index(name), domains.index(domain))
        for domain, by_class in found.items()
        for name, files in by_class.items()
        for file in files
    )
    paths, labels, domain_of = zip(*samples, strict=True)
    return ImageTree(
        root,
        tuple(classes),
        domains,
        paths,
        np.array(labels, dtype=np.int64),
        np.array(domain_of, dtype=np.int64),
    )


def read_split_lists(folder: Path, tree: ImageTree) -> dict[str, Split]:
    """Read each domain's train and test list.

    A line is a path relative to the tree's root, with anything that follows its last space
    ignored if it is a number (a label). Empty lines are skipped.

    Args:
        folder: where the lists are.
        tree: the images they may name; one that no list names is left out of the split.

    Returns:
        By domain the train and the test indices, int64, sorted.

    Raises:
        UserError: a list is missing, or has lines that name no image of the domain or one that is
            in the other list too; all such lines are named.
    """
    known = {path: index for index, path in enumerate(tree.paths)}
    problems: list[str] = []
    splits = {}
    for domain in tree.domains:
        sides = []
        for file in _list_files(folder, domain):
            indices = set()
            for number, path in _listed(file):
                index = known.get(path)
                if index is None or not path.startswith(f"{domain}/"):
                    problems.append(
                        f"{file.name} line {number}: no image {path!r} in domain {domain!r}"
                    )
                else:
                    indices.add(index)
            sides.append(indices)
        train, test = sides
        problems += [f"{tree.paths[i]} is in both lists" for i in sorted(train & test)]
        splits[domain] = (_array(train), _array(test))
    if problems:
        raise UserError(
            f"Expected the lists in {folder} to name each image below {tree.root} at most once "
            f"but got: {shortened(problems)}; correct the lists or benchmark.root"
        )
    return splits


def tree_content(tree: ImageTree) -> str:
    """Return a digest over path, size and bytes of every image; see :func:`files_content`."""
    return files_content(tree.root, tree.paths)


def files_content(root: Path, paths: Sequence[str]) -> str:
    """Return a digest over path, size and bytes of every file.

    One that is named often is read once. Times are left out: copying or touching a file changes
    nothing, changing one byte does.

    Args:
        root: the folder of the files.
        paths: relative to it, in the order that counts.
    """

    def identify(path: str) -> tuple[str, int, str]:
        try:
            data = read_file(root / path)
        except OSError:  # decoding fails too, and then names all such files at once
            return path, -1, ""
        return path, len(data), hashlib.blake2b(data, digest_size=16).hexdigest()

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        different = list(dict.fromkeys(paths))
        known = dict(zip(different, pool.map(identify, different), strict=True))
    return digest([known[path] for path in paths])


def tree_source(tree: ImageTree) -> ImageSource:
    """Return how the images of a tree are read; their bytes are, for the digest."""

    def read(index: int, size: int) -> Pixels:
        path = tree.root / tree.paths[index]
        return decode_image(path, size, path)

    return ImageSource(tree_content(tree), len(tree.paths), read)


def _build(config: DomainsConfig, image_size: int) -> Benchmark:
    tree = scan(config)
    splits = _split(config, tree)
    return domain_benchmark(
        tree_source(tree),
        image_size,
        config.cache_dir,
        name=config.name,
        classes=tree.classes,
        domains=tree.domains,
        labels=tree.labels,
        splits=splits,
    )


def _split(config: DomainsConfig, tree: ImageTree) -> tuple[Splits, ...]:
    given = None
    if config.split_lists is not None:
        given = read_split_lists(Path(config.split_lists).expanduser(), tree)
    return split_domains(
        tree.labels,
        tree.domain_of,
        tree.domains,
        tree.classes,
        settings=config.splitting,
        given=given,
    )


def _require_complete(
    root: Path, found: Mapping[str, Mapping[str, Sequence[str]]], what: str
) -> None:
    problems = class_problems({domain: set(classes) for domain, classes in found.items()})
    problems += [
        f"class {name!r} of {what} {domain!r} has no image ({', '.join(_SUFFIXES)})"
        for domain, classes in found.items()
        for name, files in classes.items()
        if not files
    ]
    if not any(found.values()):
        problems = [f"no {what} has a class folder"]
    if problems:
        choice = " or choose benchmark.domains" if what == "domain" else ""
        raise UserError(
            f"Expected every {what} of {root} to hold images of the same classes but: "
            f"{shortened(problems)}; complete the folders{choice}"
        )


def folder_names(folder: Path) -> list[str]:
    """Return the folders in ``folder``, sorted; hidden ones are not data.

    They name domains, classes and tasks in tables, reports and files of a run.

    Raises:
        UserError: a name is not printable, or not UTF-8.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    require_printable(names, f"the folders in {folder}")
    return names


def _images(folder: Path) -> list[str]:
    """Return what is called an image; reading finds out whether it is one."""
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".")
        ]


def _list_files(folder: Path, domain: str) -> tuple[Path, Path]:
    for train, test in _LIST_ENDINGS:
        files = (folder / f"{domain}{train}", folder / f"{domain}{test}")
        if all(file.is_file() for file in files):
            return files
    raise UserError(
        f"Expected benchmark.split_lists to hold {domain}_train.txt and {domain}_test.txt "
        f"but {folder} does not; add them, or draw the split with benchmark.split_lists=null"
    )


def _listed(file: Path) -> list[tuple[int, str]]:
    """Return line number and path for each line of a list file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {file}: {error}; replace it") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        before, _, last = text.rpartition(" ")
        if before and last.isdecimal():
            text = before.rstrip()
        if text:
            entries.append((number, str(PurePosixPath(text.replace("\\", "/")))))
    return entries


def _array(indices: set[int]) -> Indices:
    return np.array(sorted(indices), dtype=np.int64)
