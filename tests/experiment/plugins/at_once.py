"""A second protocol in one small file: everything is merged once, at the end."""

from __future__ import annotations

from collections.abc import Sequence

from cl_lora.experiment.stages import Stage, register_protocol


@register_protocol("at_once", summary="all adapters are merged once", ordered=False)
def at_once(names: Sequence[str]) -> tuple[Stage, ...]:
    """Return the one stage."""
    everything = tuple(range(len(names)))
    return (Stage(0, "all", everything, everything, everything),)
