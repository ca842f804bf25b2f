"""Which samples of a domain are trained on and which are tested on: pure functions on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cl_lora.support.errors import UserError
from cl_lora.support.seeding import numpy_generator

Indices = npt.NDArray[np.int64]
Split = tuple[Indices, Indices]


@dataclass(frozen=True, eq=False)
class Splits:
    """The parts of one domain: indices, int64, sorted, disjoint.

    Attributes:
        train: to learn from.
        val: to choose by; mostly none.
        test: to be tested on.
    """

    train: Indices
    val: Indices
    test: Indices


@dataclass(frozen=True)
class SplitSettings:
    """How to split; every draw depends on ``split_seed``, never on the seed of a run.

    Attributes:
        test_fraction: share of each class and domain that is held out, between 0 and 1.
        split_seed: all draws are derived from it.
        samples_per_class: at most so many train samples per class and domain; None for all.
        test_samples_per_class: the same for test samples.
        val_fraction: share of the train samples of each class and domain that is held out to
            choose by, at least 0 and below 1.
    """

    test_fraction: float
    split_seed: int
    samples_per_class: int | None = None
    test_samples_per_class: int | None = None
    val_fraction: float = 0.0


def stratified_split(
    labels: Indices,
    test_fraction: float,
    generator: np.random.Generator,
    *,
    domain: str,
    classes: Sequence[str],
) -> Split:
    """Split one domain so that each class gives the same share to the test set.

    Args:
        labels: int64 (N,), indices into ``classes``.
        test_fraction: share of each class to hold out; rounded, but never none and never all.
        generator: what to draw with.
        domain: name for errors.
        classes: class names; each must occur in ``labels``.

    Returns:
        Positions of the train and of the test samples: int64, sorted, disjoint, together all N.

    Raises:
        UserError: a class has fewer than two samples.
    """
    for label, name in enumerate(classes):
        count = int((labels == label).sum())
        if count < 2:
            raise UserError(
                f"Expected at least 2 samples of class {name!r} in domain {domain!r}, one to train "
                f"and one to test on, but got {count}; add samples or leave the class out"
            )
    return _hold_out(labels, test_fraction, generator, len(classes))


def hold_out_validation(
    train: Indices,
    labels: Indices,
    val_fraction: float,
    split_seed: int,
    *,
    domain: str,
    classes: Sequence[str],
) -> Split:
    """Take a share of each class of a domain's train part away from it, to choose by.

    Args:
        train: int64 (N,), sorted: what the domain has to train on, after any cap.
        labels: int64 (N,), the label of each of them.
        val_fraction: share of each class to hold out; rounded, but never none and never all. With
            0 nothing is held out and nothing is drawn.
        split_seed: what to draw with, together with the domain's name.
        domain: the domain's name.
        classes: class names.

    Returns:
        The rest and what is held out: int64, sorted, disjoint, together ``train``.

    Raises:
        UserError: a class has fewer than two train samples.
    """
    if val_fraction == 0:
        return train, np.array([], dtype=np.int64)
    for label, name in enumerate(classes):
        count = int((labels == label).sum())
        if count < 2:
            raise UserError(
                f"Expected at least 2 train samples of class {name!r} in domain {domain!r}, one to "
                f"train on and one to validate on, but got {count}; add samples or give "
                "benchmark.val_fraction=0"
            )
    generator = numpy_generator(split_seed, "val", domain)
    rest, held_out = _hold_out(labels, val_fraction, generator, len(classes))
    return train[rest], train[held_out]


def _hold_out(
    labels: Indices, fraction: float, generator: np.random.Generator, classes: int
) -> Split:
    """Return the positions that stay and those held out, a share of each class, both sorted."""
    stay, held_out = [], []
    for label in range(classes):
        shuffled = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(shuffled) * fraction), 1), len(shuffled) - 1)
        held_out.append(shuffled[:count])
        stay.append(shuffled[count:])
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(held_out))


def cap_per_class(
    indices: Indices, labels: Indices, cap: int | None, generator: np.random.Generator
) -> Indices:
    """Keep at most ``cap`` samples of each class.

    Args:
        indices: int64 (N,), what to choose from.
        labels: int64 (N,), the label of each of them.
        cap: samples to keep per class; None keeps all.
        generator: what to draw with. With the same generator state a smaller cap keeps a subset
            of what a larger one keeps.

    Returns:
        The kept ``indices``, sorted.
    """
    if cap is None:
        return np.sort(indices)
    kept = [generator.permutation(indices[labels == label])[:cap] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


def split_domains(
    labels: Indices,
    domain_of: Indices,
    domains: Sequence[str],
    classes: Sequence[str],
    *,
    settings: SplitSettings,
    given: Mapping[str, Split] | None = None,
) -> tuple[Splits, ...]:
    """Split every domain, then cap: a cap never moves a sample from test to train.

    The validation part is taken last, from what the caps left: training and validation part
    together are the train part that there is without one.

    Args:
        labels: int64 (N,), indices into ``classes``.
        domain_of: int64 (N,), indices into ``domains``.
        domains: domain names; a domain's split depends on its name, not on its place.
        classes: class names.
        settings: how to split.
        given: ready-made (train, test) indices by domain, used instead of a draw.

    Returns:
        The parts of every domain.

    Raises:
        UserError: a class of a domain would be left without a train, a test or a wanted
            validation sample.
    """
    seed = settings.split_seed
    splits = []
    for number, domain in enumerate(domains):
        if given is None:
            members = np.flatnonzero(domain_of == number)
            positions = stratified_split(
                labels[members],
                settings.test_fraction,
                numpy_generator(seed, "split", domain),
                domain=domain,
                classes=classes,
            )
            train, test = members[positions[0]], members[positions[1]]
        else:
            train, test = given[domain]
            _require_every_class(labels[train], "train", domain, classes)
            _require_every_class(labels[test], "test", domain, classes)
        train, test = (
            cap_per_class(part, labels[part], cap, numpy_generator(seed, "cap", side, domain))
            for side, part, cap in (
                ("train", train, settings.samples_per_class),
                ("test", test, settings.test_samples_per_class),
            )
        )
        train, val = hold_out_validation(
            train, labels[train], settings.val_fraction, seed, domain=domain, classes=classes
        )
        splits.append(Splits(train, val, test))
    return tuple(splits)


def class_problems(classes_of: Mapping[str, set[str]]) -> list[str]:
    """Return a phrase for each class that is not in every domain, naming the odd domains.

    A class that at least half of the domains have is missing in the others; any other class is
    one too many where it is.

    Args:
        classes_of: the class names found in each domain.
    """
    problems = []
    for name in sorted(set().union(*classes_of.values())):
        having = [domain for domain, classes in classes_of.items() if name in classes]
        lacking = [domain for domain in classes_of if domain not in having]
        if not lacking:
            continue
        if len(having) >= len(lacking):
            problems.append(f"class {name!r} is missing in {_quoted(lacking)}")
        else:
            problems.append(f"class {name!r} is only in {_quoted(having)}")
    return problems


def _require_every_class(labels: Indices, side: str, domain: str, classes: Sequence[str]) -> None:
    missing = [name for label, name in enumerate(classes) if label not in labels]
    if missing:
        raise UserError(
            f"Expected a {side} sample of every class in domain {domain!r} but the {side} list has "
            f"none of {_quoted(missing)}; add some to the list"
        )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
