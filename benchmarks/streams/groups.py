"""Groups of classes, each an experience: pure functions on numbers of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cl_lora.benchmarks.core import Experience
from cl_lora.benchmarks.images import Pixels
from cl_lora.benchmarks.sources.image_sets import ImageSet
from cl_lora.benchmarks.splits import Indices, Splits
from cl_lora.benchmarks.streams.held_out import stream_order
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.seeding import numpy_generator
from cl_lora.tasks import CLASS, Task

_LEAST = 2  # classes that make a task


@dataclass(frozen=True)
class Group:
    """Some classes of an image set.

    Attributes:
        name: of the experience, and of its task where it has one of its own.
        classes: numbers of the classes; their order is that of the task's labels.
    """

    name: str
    classes: tuple[int, ...]


def class_order(count: int, seed: int | None) -> tuple[int, ...]:
    """Return the order in which classes are handed out: their own, or a permutation drawn."""
    if seed is None:
        return tuple(range(count))
    return tuple(numpy_generator(seed, "class groups").permutation(count).tolist())


def disjoint_groups(
    order: Sequence[int], upstream_tasks: int, downstream_classes: int | None = None
) -> tuple[Group, ...]:
    """Split classes into disjoint groups, the downstream one the last.

    A group is named by the places of its classes in the order (``classes_75_99``): the downstream
    group is the same, and has the same name, whatever the number of upstream tasks.

    Args:
        order: the classes in the order in which they are handed out.
        upstream_tasks: N, number of upstream groups, all of one size.
        downstream_classes: size D of the last group; None for N + 1 equal groups.

    Raises:
        UserError: the classes do not split so, or a group would have fewer than two.
    """
    count = len(order)
    if downstream_classes is None:
        parts, rest = upstream_tasks + 1, count
        remedy = "choose another benchmark.upstream_tasks, or give benchmark.downstream_classes"
    else:
        parts, rest = upstream_tasks, count - downstream_classes
        remedy = "choose another benchmark.upstream_tasks or benchmark.downstream_classes"
    size = rest // parts
    if rest != size * parts:
        raise UserError(
            f"Expected {rest} of the {count} classes to split into {parts} equal groups but "
            f"{rest} is not a multiple of {parts}; {remedy}"
        )
    last = size if downstream_classes is None else downstream_classes
    if min(size, last) < _LEAST:
        raise UserError(
            f"Expected at least {_LEAST} classes in each group but {count} classes give "
            f"{upstream_tasks} upstream groups of {max(size, 0)} and {last} downstream; {remedy}"
        )
    starts = [*range(0, size * upstream_tasks, size), count - last]
    sizes = [size] * upstream_tasks + [last]
    return tuple(
        Group(f"classes_{start}_{start + length - 1}", tuple(order[start : start + length]))
        for start, length in zip(starts, sizes, strict=True)
    )


def equal_groups(order: Sequence[int], number: int) -> tuple[Group, ...]:
    """Split all classes into disjoint groups of one size, ``group_0``, ``group_1``, ...

    Args:
        order: the classes in the order in which they are handed out.
        number: of groups, at least 2.

    Raises:
        UserError: the classes do not split so, or a group would have fewer than two.
    """
    count = len(order)
    fitting = [n for n in range(2, count // _LEAST + 1) if count % n == 0]
    remedy = f"give {', '.join(map(str, fitting)) or 'more classes'}, or name the groups"
    if count < _LEAST * number:
        raise UserError(
            f"Expected benchmark.groups to leave at least {_LEAST} classes for each group but "
            f"{count} classes do not give {number} groups; {remedy}"
        )
    if count % number:
        raise UserError(
            f"Expected benchmark.groups to divide the number of classes but {count} is not a "
            f"multiple of {number}; {remedy}"
        )
    size = count // number
    return tuple(
        Group(f"group_{i}", tuple(order[i * size : (i + 1) * size])) for i in range(number)
    )


def named_groups(
    classes: Sequence[str], names: Mapping[str, Sequence[str]], what: str
) -> tuple[Group, ...]:
    """Return groups whose classes are given by name, in the given order.

    Args:
        classes: names of all classes; those that are in no group are left out.
        names: name of a group -> names of its classes, at least two groups.
        what: the set that the classes are of, for messages.

    Raises:
        UserError: a class is unknown or in two groups, or a group has fewer than two.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    group_of: dict[str, str] = {}
    groups = []
    for group, members in names.items():
        for name in members:
            if name not in number_of:
                raise unknown_name(f"class of {what} in benchmark.groups.{group}", name, classes)
            if name in group_of:
                raise UserError(
                    f"Expected benchmark.groups to name a class once but {name!r} is in "
                    f"{group_of[name]!r} and in {group!r}; leave it out of one"
                )
            group_of[name] = group
        if len(members) < _LEAST:
            raise UserError(
                f"Expected at least {_LEAST} classes in benchmark.groups.{group} but got "
                f"{len(members)}; add some"
            )
        groups.append(Group(group, tuple(number_of[name] for name in members)))
    return tuple(groups)


def require_shares(overlap: Sequence[float]) -> None:
    """Refuse shares of classes that are none.

    Raises:
        UserError: there is none, or one is not between 0 and 1.
    """
    if not overlap or not all(0 <= share <= 1 for share in overlap):
        raise UserError(
            "Expected benchmark.overlap to be a list of numbers from 0 to 1, one for each upstream "
            f"task, but got {list(overlap)!r}; give such as [0.0, 0.5]"
        )


def entangled_groups(
    order: Sequence[int], downstream_classes: int, overlap: Sequence[float]
) -> tuple[Group, ...]:
    """Return upstream groups that share classes with the downstream one, the last.

    All groups have D classes. Of upstream task i, ``round(overlap_i * D)`` are classes of the
    downstream task, taken in turn from all of them; the others are in no other group. With an
    overlap of 1 a task has the downstream classes in their order.

    Args:
        order: the classes in the order in which they are handed out; the first D are downstream.
        downstream_classes: D.
        overlap: for each upstream task the share of its classes that are downstream ones.

    Raises:
        UserError: a share is not between 0 and 1, D is below two, or there are too few classes.
    """
    require_shares(overlap)
    if downstream_classes < _LEAST:
        raise UserError(
            f"Expected benchmark.downstream_classes to be at least {_LEAST} but got "
            f"{downstream_classes}; raise it"
        )
    shared = [round(share * downstream_classes) for share in overlap]
    needed = downstream_classes + sum(downstream_classes - number for number in shared)
    if needed > len(order):
        raise UserError(
            f"Expected at least {needed} classes for {downstream_classes} downstream and an "
            f"overlap of {list(overlap)!r} but got {len(order)}; choose fewer "
            "benchmark.downstream_classes or more overlap"
        )
    target, fresh = tuple(order[:downstream_classes]), list(order[downstream_classes:])
    groups, place = [], 0
    for number, common in enumerate(shared):
        taken = sorted((place + step) % downstream_classes for step in range(common))
        place += common
        own = [fresh.pop(0) for _ in range(downstream_classes - common)]
        groups.append(Group(f"upstream_{number}", (*(target[i] for i in taken), *own)))
    return (*groups, Group("downstream", target))


def held_out_group(groups: Sequence[Group], downstream: str | None) -> tuple[Group, ...]:
    """Return the groups with the one called ``downstream`` last; None leaves their order."""
    if downstream is None:
        return tuple(groups)
    by_name = {group.name: group for group in groups}
    return tuple(by_name[name] for name in stream_order(tuple(by_name), None, downstream))


def group_experience(images: ImageSet, inputs: Pixels, group: Group) -> Experience:
    """Return a group of classes as an experience whose labels count from 0.

    Args:
        images: the labels and the parts.
        inputs: (N, ...), its decoded images; shared, not copied.
        group: the classes; images of all others have target -1 and are in no part.
    """
    targets = targets_among(images, group.classes)
    task = Task(group.name, CLASS, tuple(images.classes[number] for number in group.classes))
    parts = parts_with(images.parts, targets, range(len(group.classes)))
    return Experience(group.name, task, inputs, targets, parts.train, parts.val, parts.test)


def targets_among(images: ImageSet, classes: Sequence[int]) -> Indices:
    """Return labels int64 (N,) that count from 0 in the order of some classes; -1 for others."""
    label_of = np.full(len(images.classes), -1, dtype=np.int64)
    label_of[list(classes)] = np.arange(len(classes))
    return label_of[images.labels]


def parts_with(parts: Splits, targets: Indices, labels: Sequence[int]) -> Splits:
    """Return of every part the samples whose target is one of some labels."""

    def kept(part: Indices) -> Indices:
        return part[np.isin(targets[part], labels)]

    return Splits(kept(parts.train), kept(parts.val), kept(parts.test))
