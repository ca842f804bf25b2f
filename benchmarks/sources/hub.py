"""Images with a label and a domain column from Hugging Face ``datasets``: the hub or local files.

What was downloaded once, and local files, work without a network.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cl_lora.benchmarks.cache import ImageSource, shortened
from cl_lora.benchmarks.config import benchmark_kind
from cl_lora.benchmarks.core import Benchmark, domain_benchmark
from cl_lora.benchmarks.images import Pixels, UnreadableImage, decode_image, read_file
from cl_lora.benchmarks.sources.names import require_printable
from cl_lora.benchmarks.sources.settings import SplitConfig, require_text
from cl_lora.benchmarks.splits import Indices, Splits, class_problems, split_domains
from cl_lora.configuration.build import required
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.files import digest


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """Which data set is read by ``datasets``, and where its images and labels are.

    Attributes:
        path: what ``datasets.load_dataset`` takes first: a name on the hub or a local folder.
        config_name: the data set's configuration; None for its only one.
        revision: the data set's version on the hub; None for the newest.
        split: which split to read, e.g. ``train`` or ``train+test``.
        image_column: column of the images.
        label_column: column of the classes, names or numbers.
    """

    path: str = required("a data set on the Hugging Face hub or a local folder", "NAME")
    config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    label_column: str = "label"


@benchmark_kind("hub")
@dataclass(frozen=True, kw_only=True)
class HubConfig(Hosted, SplitConfig):
    """Settings of a benchmark read by ``datasets``; see its bases for the rest.

    Attributes:
        domain_column: column of the domains, names or numbers.
    """

    name: str = "hub"
    domain_column: str = "domain"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "path",
            "split",
            "image_column",
            "label_column",
            "domain_column",
            "config_name",
            "revision",
        ):
            require_text(name, getattr(self, name))

    def check(self) -> None:
        """Check columns, classes and the split; downloads the data set if it is not there."""
        table = load(self)
        _split(self, table)

    def found(self) -> str | None:
        """Say where the data set is; None if it was not downloaded and is no local folder."""
        local = Path(self.path).expanduser()
        if local.is_dir():
            return str(local)
        cached = Path(datasets_library().config.HF_DATASETS_CACHE) / self.path.replace("/", "___")
        return f"downloaded to {cached}" if cached.is_dir() else None

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark, decoding its images if no earlier run has."""
        return _build(self, image_size)


@dataclass(frozen=True)
class ImageTable:
    """The rows of a data set that belong to the wanted domains, in their order.

    Attributes:
        rows: a ``datasets.Dataset`` with the image column only, undecoded: each row holds the
            image's ``bytes`` or its ``path``.
        column: name of that column.
        classes: class names.
        domains: domain names in stream order.
        labels: int64 (N,), indices into ``classes``.
        domain_of: int64 (N,), indices into ``domains``.
    """

    rows: Any
    column: str
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    labels: Indices
    domain_of: Indices

    def encoded(self, index: int) -> bytes:
        """Return the encoded image of a row.

        Raises:
            UnreadableImage: there is none, or its file cannot be read.
        """
        cell = self.rows[index][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise UnreadableImage(f"row {index}", "no image")
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return read_file(cell["path"])
        except (OSError, ValueError) as error:  # of a path with a null character
            reason = error.strerror if isinstance(error, OSError) else None
            raise UnreadableImage(cell["path"], reason or str(error)) from error


def load(config: HubConfig) -> ImageTable:
    """Read the table with ``datasets.load_dataset``; no code of a data set is ever run.

    Raises:
        UserError: ``datasets`` is not installed, the data set cannot be loaded, a column or a
            domain is unknown, a label or domain is missing, or a class is not in every domain.
    """
    columns = (config.image_column, config.label_column, config.domain_column)
    table = read_table(config, columns)
    label_names, labels = column_names(table, config.label_column)
    domain_names, domain_of = column_names(table, config.domain_column)
    domains = config.domains or tuple(sorted(domain_names))
    for domain in domains:
        if domain not in domain_names:
            raise unknown_name(f"domain of {config.path}", domain, domain_names)
    kept = [row for row, domain in enumerate(domain_of) if domain in domains]
    present = {labels[row] for row in kept}
    classes = tuple(name for name in label_names if name in present)
    _require_complete(config.path, domains, [(domain_of[row], labels[row]) for row in kept])
    return ImageTable(
        encoded_images(config, table.select(kept)),
        config.image_column,
        classes,
        domains,
        np.array([classes.index(labels[row]) for row in kept], dtype=np.int64),
        np.array([domains.index(domain_of[row]) for row in kept], dtype=np.int64),
    )


def read_table(config: Hosted, columns: Sequence[str], split: str | None = None) -> Any:
    """Read a split by ``datasets``, which downloads it if it is not there.

    Args:
        config: what to read.
        columns: that it must have.
        split: in place of the config's.

    Raises:
        UserError: ``datasets`` is not installed, the data set cannot be loaded, or a column is
            unknown.
    """
    library = datasets_library()
    local = Path(config.path).expanduser()
    try:
        table = library.load_dataset(
            str(local) if local.is_dir() else config.path,
            name=config.config_name,
            split=split or config.split,
            revision=config.revision,
        )
    # What goes wrong in there ranges from a missing file over an unknown split to the network;
    # the library has no common base class for it, and its messages name the cause.
    except Exception as error:
        raise UserError(
            f"Cannot load benchmark.path={config.path} with datasets: "
            f"{type(error).__name__}: {' '.join(str(error).split())}; check path, config_name and "
            "split, and the network if it was never downloaded"
        ) from error
    for column in columns:
        if column not in table.column_names:
            raise unknown_name(f"column of {config.path}", column, table.column_names)
    return table


def encoded_images(config: Hosted, table: Any) -> Any:
    """Return the column of images alone, undecoded.

    Raises:
        UserError: the column holds something else.
    """
    images = table.select_columns([config.image_column])
    try:
        return images.cast_column(config.image_column, datasets_library().Image(decode=False))
    except Exception as error:  # pyarrow's errors
        raise UserError(
            f"Expected column {config.image_column!r} of {config.path} to hold images but it holds "
            f"{table.features[config.image_column]}; give benchmark.image_column=NAME"
        ) from error


def datasets_library(what: str = "benchmark.kind=hub") -> Any:
    """Return the module ``datasets``, which is optional.

    Args:
        what: what needs it, for the error.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasets  # here because it is optional, and slow to import
    except ImportError as error:
        raise UserError(
            f"Expected the package 'datasets' for {what} but it is not installed; "
            "run: pip install 'cl-lora[hub]'"
        ) from error
    return datasets


def table_source(table: ImageTable) -> ImageSource:
    """Return how the images of a table are read; for the digest all of their bytes are."""

    def read(index: int, size: int) -> Pixels:
        return decode_image(io.BytesIO(table.encoded(index)), size, f"row {index}")

    return ImageSource(_content(table), len(table.labels), read)


def _build(config: HubConfig, image_size: int) -> Benchmark:
    table = load(config)
    splits = _split(config, table)
    return domain_benchmark(
        table_source(table),
        image_size,
        config.cache_dir,
        name=config.name,
        classes=table.classes,
        domains=table.domains,
        labels=table.labels,
        splits=splits,
    )


def _split(config: HubConfig, table: ImageTable) -> tuple[Splits, ...]:
    return split_domains(
        table.labels, table.domain_of, table.domains, table.classes, settings=config.splitting
    )


def _content(table: ImageTable) -> str:
    """Return a digest over the bytes of every image."""
    hashes = []
    for index in range(len(table.labels)):
        try:
            data = table.encoded(index)
        except UnreadableImage:
            data = b""  # named together with all others when they are decoded
        hashes.append(hashlib.blake2b(data, digest_size=16).hexdigest())
    return digest(hashes)


def column_names(table: Any, column: str) -> tuple[list[str], list[str]]:
    """Return the names a column can hold, in their order, and the name in each row."""
    values = list(table[column])
    declared = getattr(table.features[column], "names", None)
    missing = [
        f"row {row}"
        for row, value in enumerate(values)
        if value is None or (declared is not None and value < 0)
    ]
    if missing:
        raise UserError(
            f"Expected a value in column {column!r} of every row but got none in "
            f"{shortened(missing)}; fill them in"
        )
    different = list(declared) if declared is not None else sorted(set(values))
    names = [str(value) for value in different]
    require_printable(names, f"the values of column {column!r}")
    if declared is not None:
        return names, [names[value] for value in values]
    return names, [str(value) for value in values]


def _require_complete(
    path: str, domains: Sequence[str], samples: Sequence[tuple[str, str]]
) -> None:
    classes_of: dict[str, set[str]] = {domain: set() for domain in domains}
    for domain, name in samples:
        classes_of[domain].add(name)
    problems = class_problems(classes_of)
    if problems:
        raise UserError(
            f"Expected every domain of {path} to hold images of the same classes but: "
            f"{shortened(problems)}; choose other benchmark.domains or complete the data set"
        )
