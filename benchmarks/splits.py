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


@dataclass(frozen=True)
class SplitSettings:
    """How to split; every draw depends on ``split_seed``, never on the seed of a run.

    Attributes:
        test_fraction: share of each class and domain that is held out, between 0 and 1.
        split_seed: all draws are derived from it.
        samples_per_class: at most so many train samples per class and domain; None for all.
        test_samples_per_class: the same for test samples.
    """

    test_fraction: float
    split_seed: int
    samples_per_class: int | None = None
    test_samples_per_class: int | None = None


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
    train, test = [], []
    for label, name in enumerate(classes):
        positions = np.flatnonzero(labels == label)
        count = len(positions)
        if count < 2:
            raise UserError(
                f"Expected at least 2 samples of class {name!r} in domain {domain!r}, one to train "
                f"and one to test on, but got {count}; add samples or leave the class out"
            )
        held_out = min(max(round(count * test_fraction), 1), count - 1)
        shuffled = generator.permutation(positions)
        test.append(shuffled[:held_out])
        train.append(shuffled[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


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
) -> tuple[tuple[Indices, ...], tuple[Indices, ...]]:
    """Split every domain, then cap: a cap never moves a sample from test to train.

    Args:
        labels: int64 (N,), indices into ``classes``.
        domain_of: int64 (N,), indices into ``domains``.
        domains: domain names; a domain's split depends on its name, not on its place.
        classes: class names.
        settings: how to split.
        given: ready-made (train, test) indices by domain, used instead of a draw.

    Returns:
        Train and test indices, each a tuple with int64 (M,) for every domain.

    Raises:
        UserError: a class of a domain would be left without a train or without a test sample.
    """
    seed = settings.split_seed
    trains: list[Indices] = []
    tests: list[Indices] = []
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
        for side, indices, cap, into in (
            ("train", train, settings.samples_per_class, trains),
            ("test", test, settings.test_samples_per_class, tests),
        ):
            generator = numpy_generator(seed, "cap", side, domain)
            into.append(cap_per_class(indices, labels[indices], cap, generator))
    return tuple(trains), tuple(tests)


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
