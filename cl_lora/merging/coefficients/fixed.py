"""Fixed coefficients: one number for all adapters, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cl_lora.merging.coefficients.registry import register_rule
from cl_lora.merging.coefficients.state import DTYPE, Given
from cl_lora.merging.registry import OptionSpec, is_number
from cl_lora.support.errors import UserError


def _is_fixed_value(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value) > 0 and all(map(is_number, value))
    return is_number(value)


@register_rule(
    "fixed",
    formula="alpha_i = value, or value_i of a list",
    paper="Ilharco et al. 2023",
    scale=("value", "W"),
    options={
        "value": OptionSpec(
            1.0,
            _is_fixed_value,
            "a finite number or a list of them",
            "the coefficient of every adapter, or one per adapter",
        )
    },
)
def _fixed(options: Mapping[str, Any], n: int, modules: Sequence[str]) -> Given:
    value = options["value"]
    values = [value] * n if is_number(value) else list(value)
    if len(values) != n:
        raise UserError(
            f"Expected {n} fixed coefficients, one per adapter, but got {len(values)}: {values}; "
            "give one number for any number of adapters"
        )
    return Given(torch.tensor(values, dtype=DTYPE))
