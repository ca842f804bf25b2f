"""Which merges of a module depend on the other modules, as their metadata says and as they do."""

from __future__ import annotations

from typing import Any

import pytest
from merge_reference import toy_adapters

from cl_lora.adapters import Adapter
from cl_lora.merging import get_method, merge

CASES = [
    ("task_arithmetic", {}, False),
    ("linear", {}, False),
    ("cat", {}, False),
    ("ties", {"density": 0.3}, False),
    ("ties", {"density": 0.3, "trim": "global"}, True),
    ("magnitude_prune", {"density": 0.3, "trim": "global"}, True),
    ("magnitude_prune", {"density": 0.3}, False),
]


@pytest.mark.parametrize(("method", "options", "across"), CASES)
def test_a_module_merged_alone_is_the_same_where_the_metadata_says_so(
    method: str, options: dict[str, Any], across: bool
) -> None:
    adapters = toy_adapters(3)
    info = get_method(method)
    complete = {name: spec.default for name, spec in info.options.items()} | options
    assert info.across_modules(complete) == across
    together = merge(adapters, method, [0.7, 0.4, 1.1], **options)
    changed = []
    for module in together.modules():
        alone = [Adapter(a.name, {module: a.factors[module]}) for a in adapters]
        delta = merge(alone, method, [0.7, 0.4, 1.1], **options).delta(module)
        changed.append(not delta.allclose(together.delta(module), atol=1e-6))
    assert any(changed) == across
