"""The registry of benchmark kinds, and from a plain mapping to a typed, checked config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from cl_lora.benchmarks.core import Benchmark
from cl_lora.configuration.build import build, missing_options
from cl_lora.support.errors import unknown_name
from cl_lora.support.registry import check_free

WHERE = "benchmark"  # prefix of the settings in messages, as on the command line


class BenchmarkConfig(Protocol):
    """What every kind of benchmark offers; construction checks the values."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def build(self, image_size: int) -> Benchmark:
        """Load the benchmark with square images of ``image_size`` pixels; 0 where it has none."""
        ...

    def check(self) -> None:
        """Check the data as far as possible without decoding an image; raise ``UserError``."""
        ...

    def found(self) -> str | None:
        """Say in a few words where the data is, or None if it is not there."""
        ...


KINDS: dict[str, type[BenchmarkConfig]] = {}
"""Every registered kind by the name that a config gives as ``kind``."""

TEXT_KINDS: set[str] = set()
"""The kinds whose inputs are texts, not images."""

ConfigType = TypeVar("ConfigType", bound=type[BenchmarkConfig])


def benchmark_kind(kind: str, *, texts: bool = False) -> Callable[[ConfigType], ConfigType]:
    """Register a config class, a dataclass, under the ``kind`` that a config file names.

    Args:
        kind: the name.
        texts: whether its inputs are texts; they are images else.

    Raises:
        UserError: another class has the name.
    """

    def register(config: ConfigType) -> ConfigType:
        check_free("benchmark kind", kind, KINDS.get(kind), config)
        KINDS[kind] = config
        (TEXT_KINDS.add if texts else TEXT_KINDS.discard)(kind)
        return config

    return register


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
    return missing_options(kind_of(config), config)


def read_config(config: Mapping[str, Any]) -> BenchmarkConfig:
    """Return the typed config for a plain mapping such as a resolved ``configs/benchmark`` file.

    Raises:
        UserError: unknown kind or setting, a missing required setting, or a bad value.
    """
    cls = kind_of(config)
    return build(cls, {k: v for k, v in config.items() if k != "kind"}, WHERE)
