"""``cl-lora demo``: the run of all defaults."""

from __future__ import annotations

from collections.abc import Sequence

from cl_lora.commands import run as run_command
from cl_lora.commands.terminal import Parser


def run(given: Sequence[str]) -> int:
    """Run the defaults, which need no data and no download."""
    Parser(
        "demo",
        "Compare ten ways to merge on a drawn benchmark with a shipped backbone: the same as "
        "cl-lora run without overrides. It takes about three minutes on two cores.",
    ).parse_args(given)
    return run_command.run([])
