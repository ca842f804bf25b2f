"""The settings that several sources share, and the checks of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cl_lora.benchmarks.splits import SplitSettings
from cl_lora.support.errors import UserError, shown
from cl_lora.support.ranges import LARGEST_SEED, at_most

MOST_SAMPLES = 1_000_000
"""Of a class, the most that a benchmark has."""

MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """The settings that say how existing images are split, whatever the experiences are.

    Attributes:
        name: of the benchmark, for reports.
        test_fraction: share of each class and domain that is held out, between 0 and 1.
        split_seed: the splits and the caps are drawn with it.
        samples_per_class: at most so many train samples per class and domain; None for all.
        test_samples_per_class: the same for test samples.
        val_fraction: share of the train samples of each class and domain that is held out to
            choose by.
        cache_dir: where decoded images are kept; None for the user's cache folder.
    """

    name: str
    test_fraction: float = at_most(1, 0.2)
    split_seed: int = at_most(LARGEST_SEED, 0)
    samples_per_class: int | None = at_most(MOST_SAMPLES, None)
    test_samples_per_class: int | None = at_most(MOST_SAMPLES, None)
    val_fraction: float = at_most(1, 0.0)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require_text("name", self.name)
        if not 0 < self.test_fraction < 1:
            raise UserError(
                "Expected benchmark.test_fraction to be a number between 0 and 1 "
                f"but got {self.test_fraction!r}; give such as 0.2"
            )
        require_share("val_fraction", self.val_fraction)
        require_least("split_seed", self.split_seed, 0)
        require_least("samples_per_class", self.samples_per_class, 1)
        require_least("test_samples_per_class", self.test_samples_per_class, 1)
        require_text("cache_dir", self.cache_dir)

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


@dataclass(frozen=True, kw_only=True)
class SplitConfig(PartsConfig):
    """The settings that all benchmarks on existing images of domains share.

    Attributes:
        domains: which domains, in stream order; None for all, sorted.
    """

    domains: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_names("domains", self.domains)


# Types are the builder's to check; None has passed there only where it is allowed.


def require_least(name: str, value: int | None, least: int) -> None:
    """Raise ``UserError`` if ``value`` is below ``least``."""
    if value is not None and value < least:
        raise UserError(
            f"Expected benchmark.{name} to be an integer of at least {least} but got "
            f"{value!r}; raise it"
        )


def require_share(name: str, value: float) -> None:
    """Raise ``UserError`` unless ``value`` is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise UserError(
            f"Expected benchmark.{name} to be a number of at least 0 and below 1 but got "
            f"{value!r}; give such as 0.1"
        )


def require_text(name: str, value: str | None) -> None:
    """Raise ``UserError`` if ``value`` is empty."""
    if value == "":
        raise UserError(
            f"Expected benchmark.{name} to be a text but got ''; give one, or leave it out"
        )


def require_names(name: str, value: Sequence[str] | None) -> None:
    """Raise ``UserError`` unless the names in ``value`` are different, at least one."""
    if value is not None and (not value or len(set(value)) != len(value)):
        raise UserError(
            f"Expected benchmark.{name} to be a list of different names but got "
            f"{shown(list(value))}; name each once, at least one"
        )
