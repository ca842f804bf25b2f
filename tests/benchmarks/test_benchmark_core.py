"""The fingerprint, and what experiences share."""

from __future__ import annotations

import numpy as np
from toy_tasks import ScalarKind, make_experience

from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.core import fingerprint
from cl_lora.benchmarks.splits import Splits
from cl_lora.tasks import CLASS, Task

NONE = np.array([], dtype=np.int64)
ONE, TWO, THREE = np.array([1, 2]), np.array([3]), np.array([4])


def test_fingerprint_changes_with_each_of_its_parts():
    base = {
        "content": "x",
        "classes": ("a",),
        "domains": ("p", "q"),
        "labels": np.zeros(4, dtype=np.int64),
        "splits": (Splits(ONE, NONE, TWO), Splits(TWO, NONE, ONE)),
    }
    changes = [
        {"content": "y"},
        {"classes": ("b",)},
        {"domains": ("q", "p")},
        {"labels": np.ones(4, dtype=np.int64)},
        {"splits": (Splits(ONE, NONE, TWO), Splits(ONE, NONE, ONE))},
        {"splits": (Splits(ONE, NONE, TWO), Splits(TWO, NONE, TWO))},
        {"splits": (Splits(ONE, THREE, TWO), Splits(TWO, NONE, ONE))},
        {"splits": (Splits(ONE, NONE, TWO), Splits(TWO, THREE, ONE))},
    ]
    values = [fingerprint(**base), *(fingerprint(**base | change) for change in changes)]
    assert len(set(values)) == 1 + len(changes)
    assert fingerprint(**base) == values[0]


def test_fingerprint_without_validation_parts_is_what_it_was_before_there_were_any():
    splits = (Splits(ONE, NONE, TWO), Splits(TWO, NONE, ONE))
    labels = np.array([0, 1, 0, 1])
    value = fingerprint(
        "content", classes=("a", "b"), domains=("p", "q"), labels=labels, splits=splits
    )
    assert value == "561c5e41eb2965d30a4089ec4732c42f"


def test_names_and_different_tasks_in_the_order_of_the_stream():
    classes = Task("c", CLASS, ("a", "b"))
    size = Task("s", ScalarKind())
    labels, sizes = np.zeros(8, dtype=np.int64), np.zeros(8)
    benchmark = Benchmark(
        "toy",
        (
            make_experience("third", size, sizes),
            make_experience("first", classes, labels),
            make_experience("second", size, sizes),
        ),
        "x",
    )
    assert benchmark.names == ("third", "first", "second")
    assert benchmark.tasks == (size, classes)
    assert not benchmark.annotations


def test_upstream_is_all_but_what_is_downstream():
    labels = np.zeros(8, dtype=np.int64)
    task = Task("c", CLASS, ("a", "b"))
    experiences = tuple(make_experience(name, task, labels) for name in "pqr")
    assert Benchmark("toy", experiences, "x").downstream == ()
    assert Benchmark("toy", experiences, "x").upstream == (0, 1, 2)
    assert Benchmark("toy", experiences, "x", downstream=(1,)).upstream == (0, 2)
