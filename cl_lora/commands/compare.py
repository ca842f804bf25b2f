"""``cl-lora compare``: finished runs side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cl_lora.commands.terminal import Parser, console
from cl_lora.support import files
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.printing import tell


def run(given: Sequence[str]) -> int:
    """Print the comparison of runs, and draw it where that was asked for."""
    parser = Parser(
        "compare",
        "Put finished runs side by side. Seeds are averaged where data, splits, model, training, "
        "precision and device are the same; everything else gets a column of its own.",
        [
            "compare runs/A runs/B",
            "compare runs/A --to ta_uniform",
            "compare runs/A runs/B --format latex > table.tex",
            "compare runs/A runs/B --html comparison.html",
        ],
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folders of runs")
    parser.add_argument(
        "--metric", metavar="NAME", help="the metric to compare (default: the runs' primary metric)"
    )
    parser.add_argument(
        "--to",
        metavar="ARM",
        help="add differences to this arm with their intervals (over seeds; with one seed, over "
        "test samples); CONDITION:ARM takes the arm of one condition",
    )
    parser.add_argument(
        "--format",
        default="table",
        metavar="FORMAT",
        help="table (default), markdown, latex or csv",
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="average all runs together; if that is impossible, an error says why",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="also draw the comparison into a .png or .svg file",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write the comparison as a page: answers, table and figures in one file",
    )
    arguments = parser.parse_args(given)

    from cl_lora.configuration.plugins import load_plugins
    from cl_lora.reporting.compare import (
        RENDERERS,
        compare_runs,
        comparison_figure,
        comparison_table,
        require_poolable,
    )
    from cl_lora.run_folder.reader import RunFolder

    load_plugins()
    if arguments.format not in ("table", *RENDERERS):
        raise unknown_name("format", arguments.format, ("table", *RENDERERS))
    kind = _kind(arguments.figure, "--figure", ("png", "svg")) if arguments.figure else ""
    if arguments.html:
        _kind(arguments.html, "--html", ("html", "htm"))
    runs = [RunFolder.read(path) for path in arguments.runs]
    if arguments.pool:
        require_poolable(runs)
    comparison = compare_runs(runs, arguments.metric, arguments.to)
    if arguments.format == "table":
        shown = console()
        text = comparison_table(comparison).text(shown.width, color=shown.is_terminal)
    else:
        text = RENDERERS[arguments.format](comparison)
    print(text, end="")
    if arguments.figure:
        from cl_lora.reporting.figures import render

        files.write_bytes(arguments.figure, render(comparison_figure(comparison), kind))
        tell(f"Figure: {arguments.figure}")
    if arguments.html:
        from cl_lora.reporting.compare.page import comparison_html

        command = shlex.join(["cl-lora", "compare", *given])
        files.write_text(arguments.html, comparison_html(comparison, arguments.html, command))
        tell(f"Page: {arguments.html}")
    return 0


def _kind(path: Path, option: str, kinds: Sequence[str]) -> str:
    """Return how the name of a file ends, in small letters, after checking its folder."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in kinds:
        ends = " or ".join(f".{k}" for k in kinds)
        raise UserError(
            f"Expected {option} to end in {ends} but got {str(path)!r}; name the file so"
        )
    if not path.parent.is_dir():
        raise UserError(
            f"Expected {option} to be in a folder that exists but {str(path.parent)!r} is none; "
            "make it first, or choose another one"
        )
    return kind
