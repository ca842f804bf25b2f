"""What a finished run shows: the table of all arms, and where everything is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def present(config: Mapping[str, Any]) -> Path:
    """Execute a configuration, make its reports, print the table, and return the folder."""
    from cl_lora.commands.reports import write_reports
    from cl_lora.experiment.pipeline import execute

    folder = execute(config)
    if config["report"] and _is_older(folder / "report.html", folder / "scores.csv"):
        print("writing report, figures and TensorBoard files", file=sys.stderr)
        write_reports(folder)
    print_table(folder)
    print(f"Run folder: {folder}")
    if config["report"]:
        print(f"Report:     {folder / 'report.html'}")
    return folder


def _is_older(made: Path, source: Path) -> bool:
    return not made.exists() or made.stat().st_mtime_ns < source.stat().st_mtime_ns


def print_table(folder: Path) -> None:
    """Print the comparison of all arms of a run at the terminal's width."""
    from rich.console import Console

    from cl_lora.reporting.tables import result_table
    from cl_lora.run_folder.reader import RunFolder

    run = RunFolder.read(folder)
    console = Console()
    table = result_table(run.scores, run.domains, run.references, arms=run.arms)
    print(table.text(console.width, color=console.is_terminal))
