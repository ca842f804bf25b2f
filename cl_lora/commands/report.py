"""``cl-lora report``: the report, the figures and the TensorBoard files of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_lora.commands.terminal import Parser, quieten
from cl_lora.support.printing import say


def run(given: Sequence[str]) -> int:
    """Make the report of a run again, and print where it is."""
    parser = Parser(
        "report",
        "Make the report of a finished run again from its folder: the HTML page, the figures and "
        "the TensorBoard files.",
        ["report runs/NAME", "report runs/NAME --tracker mlflow"],
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument(
        "--tracker",
        metavar="NAME",
        dest="trackers",
        action="append",
        default=[],
        help="also send what is not there yet to a tracker: mlflow or wandb; may be given "
        "several times",
    )
    parser.add_plugins()
    arguments = parser.parse_args(given)
    quieten()
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(arguments.plugins)
    folder: Path = arguments.run
    sent = _report_and_send(folder, arguments.trackers) if arguments.trackers else []
    if not arguments.trackers:
        write_reports(folder)
    say(f"Report:      {folder / 'report.html'}")
    say(f"Figures:     {folder / 'figures'}")
    say(f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}")
    for name, place in sent:
        say(f"Sent to:     {name}, {place}")
    return 0 if len(sent) == len(arguments.trackers) else 2


def _report_and_send(folder: Path, trackers: Sequence[str]) -> list[tuple[str, str]]:
    """Write the reports and send the run; return the trackers that hold all of it, and where."""
    from cl_lora.run_folder.reader import RunFolder
    from cl_lora.tracking import connected

    RunFolder.read(folder)  # what is no finished run is said before anything is connected to
    with connected(trackers) as tracking:
        write_reports(folder)
        tracking.finished(folder)
    return [(sender.name, sender.place) for sender in tracking.senders if sender.works]


def write_reports(folder: str | Path) -> tuple[Path, ...]:
    """Write every report of a finished run: ``report.html``, ``figures/``, ``tensorboard/``.

    Returns:
        What was written, the HTML report first.

    Raises:
        UserError: if the folder is no finished run, or cannot be written.
    """
    from cl_lora.reporting.figures import draw_figures, write_figures
    from cl_lora.reporting.html import write_html
    from cl_lora.reporting.tensorboard import write_tensorboard
    from cl_lora.run_folder.freshness import record_made, sources
    from cl_lora.run_folder.lock import reporting
    from cl_lora.run_folder.reader import RunFolder

    folder = Path(folder)
    source = sources(folder)
    finished = RunFolder.read(folder)
    with reporting(folder):
        drawn = draw_figures(finished)
        others = (*write_figures(finished, drawn), *write_tensorboard(finished))
        made = (write_html(finished, drawn), *others)
        record_made(folder, source)
    return made
