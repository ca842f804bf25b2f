"""``cl-lora demo``: the run of all defaults."""

from __future__ import annotations

from collections.abc import Sequence

from cl_lora.commands import run as run_command
from cl_lora.commands.terminal import Parser


def run(given: Sequence[str]) -> int:
    """Run the defaults, which need no data and no download."""
    Parser(
        "demo",
        "Compare ten ways to merge on a drawn benchmark with a small backbone that comes with the "
        "package. The same as cl-lora run without overrides; it needs no data and no network, and "
        "takes about three minutes on two cores.",
        ["demo", "run arms=recommended   # the same benchmark with other arms"],
    ).parse_args(given)
    return run_command.run([])
