"""A second protocol in one small file: everything is merged once, at the end."""

from __future__ import annotations

from cl_lora.experiment.stages import Outline, Stage, register_protocol


@register_protocol("at_once", summary="all adapters are merged once", ordered=False)
def at_once(outline: Outline) -> tuple[Stage, ...]:
    """Return the one stage."""
    everything = outline.indices
    return (Stage(0, "all", everything, everything, everything),)
