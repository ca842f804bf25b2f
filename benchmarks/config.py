"""From a plain mapping to a typed, checked benchmark config; the registry of benchmark kinds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from cl_lora.benchmarks.core import Benchmark
from cl_lora.benchmarks.splits import SplitSettings
from cl_lora.support.errors import UserError, unknown_name

MISSING = "???"  # what Hydra writes for a value that the user must give


class BenchmarkConfig(Protocol):
    """What every kind of benchmark offers; construction checks the values."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark with square images of ``image_size`` pixels."""
        ...

    def check(self) -> None:
        """Check the data as far as possible without decoding an image; raise ``UserError``."""
        ...

    def found(self) -> str | None:
        """Say in a few words where the data is, or None if it is not there."""
        ...


KINDS: dict[str, type[BenchmarkConfig]] = {}
ConfigType = TypeVar("ConfigType", bound=type[BenchmarkConfig])


def benchmark_kind(kind: str) -> Callable[[ConfigType], ConfigType]:
    """Register a config class under the ``kind`` that a config file names."""

    def register(config: ConfigType) -> ConfigType:
        KINDS[kind] = config
        return config

    return register


def required(meaning: str, example: str) -> Any:
    """Return a dataclass field without default, described for the error when it is missing."""
    return dataclasses.field(metadata={"meaning": meaning, "example": example})


def kind_of(config: Mapping[str, Any]) -> type[BenchmarkConfig]:
    """Return the config class that ``config["kind"]`` names.

    Raises:
        UserError: no or an unknown kind.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown_name("benchmark.kind", kind, KINDS)
    return KINDS[kind]


def missing_settings(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that must be given and are not."""
    fields = dataclasses.fields(kind_of(config))
    needed = {field.name for field in fields if "meaning" in field.metadata}
    return [
        field.name
        for field in fields
        if config.get(field.name) == MISSING
        or (field.name in needed and config.get(field.name) is None)
    ]


def read_config(config: Mapping[str, Any]) -> BenchmarkConfig:
    """Return the typed config for a plain mapping such as a resolved ``configs/benchmark`` file.

    Raises:
        UserError: unknown kind or setting, a missing required setting, or a bad value.
    """
    cls = kind_of(config)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    given = {str(name): value for name, value in config.items() if name != "kind"}
    for name in given:
        if name not in fields:
            raise unknown_name(f"setting of benchmark kind {config['kind']!r}", name, fields)
    for name in missing_settings(config):
        meaning = fields[name].metadata.get("meaning", "a value")
        example = fields[name].metadata.get("example", "VALUE")
        raise UserError(
            f"Expected benchmark.{name}, {meaning}, but it is not given; "
            f"add benchmark.{name}={example}"
        )
    return cls(**{name: _frozen(value) for name, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The settings that all benchmarks on existing images share.

    Attributes:
        name: of the benchmark, for reports.
        domains: which domains, in stream order; None for all, sorted.
        test_fraction: share of each class and domain that is held out, between 0 and 1.
        split_seed: the split and the caps are drawn with it.
        samples_per_class: at most so many train samples per class and domain; None for all.
        test_samples_per_class: the same for test samples.
        val_fraction: share of the train samples of each class and domain that is held out to
            choose by.
        cache_dir: where decoded images are kept; None for the user's cache folder.
    """

    name: str
    domains: tuple[str, ...] | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    samples_per_class: int | None = None
    test_samples_per_class: int | None = None
    val_fraction: float = 0.0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require_text("name", self.name)
        require_names("domains", self.domains, optional=True)
        fraction = self.test_fraction
        if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
            raise UserError(
                "Expected benchmark.test_fraction to be a number between 0 and 1 "
                f"but got {fraction!r}"
            )
        require_share("val_fraction", self.val_fraction)
        require_integer("split_seed", self.split_seed, 0)
        require_integer("samples_per_class", self.samples_per_class, 1, optional=True)
        require_integer("test_samples_per_class", self.test_samples_per_class, 1, optional=True)
        require_text("cache_dir", self.cache_dir, optional=True)

    @property
    def splitting(self) -> SplitSettings:
        """The part that says how to split."""
        return SplitSettings(
            self.test_fraction,
            self.split_seed,
            self.samples_per_class,
            self.test_samples_per_class,
            self.val_fraction,
        )


def require_integer(name: str, value: object, least: int, *, optional: bool = False) -> None:
    """Raise ``UserError`` unless ``value`` is an integer of at least ``least`` (or None)."""
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"Expected benchmark.{name} to be an integer of at least {least}"
            f"{' or null' if optional else ''} but got {value!r}"
        )


def require_share(name: str, value: object) -> None:
    """Raise ``UserError`` unless ``value`` is a number of at least 0 and below 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(
            f"Expected benchmark.{name} to be a number of at least 0 and below 1 but got {value!r}"
        )


def require_text(name: str, value: object, *, optional: bool = False) -> None:
    """Raise ``UserError`` unless ``value`` is a string that is not empty (or None)."""
    if optional and value is None:
        return
    if not isinstance(value, str) or not value:
        raise UserError(
            f"Expected benchmark.{name} to be a text{' or null' if optional else ''} "
            f"but got {value!r}"
        )


def require_names(name: str, value: object, *, optional: bool = False) -> None:
    """Raise ``UserError`` unless ``value`` is a tuple of different strings, at least one."""
    if optional and value is None:
        return
    if (
        not isinstance(value, tuple)
        or not value
        or not all(isinstance(item, str) for item in value)
        or len(set(value)) != len(value)
    ):
        received = list(value) if isinstance(value, tuple) else value
        raise UserError(
            f"Expected benchmark.{name} to be a list of different names but got {received!r}"
        )


def _frozen(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(value) if isinstance(value, list) else value
