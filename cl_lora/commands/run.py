"""``cl-lora run``: compose, check, execute, report, and print the table of all arms."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_lora.commands.jobs import announce, check
from cl_lora.commands.terminal import Verbosity, console, quieten, show_at
from cl_lora.support.errors import UserError
from cl_lora.support.printing import is_quiet, narrate, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cl_lora.tracking import Tracking

log = logging.getLogger(__name__)

_IMPORTS = (
    "cl_lora.experiment.pipeline",
    "cl_lora.strategies.lora",
    "cl_lora.benchmarks.avalanche",
    "peft",  # only after ours, which make it loadable beside any torch
    "timm.models.vision_transformer",
)
"""What every job imports sooner or later."""


_FLAGS = {
    "-q": "quiet",
    "--quiet": "quiet",
    "-v": "verbose",
    "--verbose": "verbose",
    "--dry-run": "dry_run",
}
"""Flags of ours, which Hydra does not know."""


def run(given: Sequence[str]) -> int:
    """Run what Hydra's overrides and flags ask for.

    Raises:
        UserError: for the first thing that is wrong.
    """
    asked = {_FLAGS[word] for word in given if word in _FLAGS}
    if {"quiet", "verbose"} <= asked:
        raise UserError("-q and -v exclude each other; give one of them")
    show_at(Verbosity("quiet" in asked, "verbose" in asked))
    given = [word for word in given if word not in _FLAGS]
    if "dry_run" in asked:
        from cl_lora.commands import dry_run

        return dry_run.run(given)
    if any(word.startswith("--shard") for word in given):
        from cl_lora.commands import shard

        if shard.is_asked(given):
            return shard.run(given)
    from cl_lora.configuration.launch import launch

    return launch(given, job, check, _IMPORTS)


def job(composed: DictConfig) -> str:
    """Run one job of Hydra's, in this process or in one that a launcher started.

    Returns:
        Its run folder.
    """
    from cl_lora.configuration.compose import plain

    quieten()
    announce()
    return str(execute(plain(composed)))


def execute(config: Mapping[str, Any]) -> Path:
    """Execute a configuration, make its reports, print the table, and return the folder."""
    from cl_lora.commands.report import write_reports
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(config["plugins"])
    from cl_lora.experiment import pipeline
    from cl_lora.run_folder.freshness import is_fresh

    tracker = pipeline.check(config).options.tracker  # before anything is connected to
    with _connected(tracker) as tracking:
        folder = pipeline.execute(config, tracking)
        say_failed(folder)
        if config["report"] and not is_fresh(folder):
            narrate("writing report, figures and TensorBoard files")
            write_reports(folder)
        if tracking is not None:
            tracking.finished(folder)
    print_table(folder)
    if is_quiet():
        return folder
    say(f"Run folder: {folder}")
    if config["report"]:
        say(f"Report:     {folder / 'report.html'}")
    return folder


@contextmanager
def _connected(tracker: str | Sequence[str] | None) -> Iterator[Tracking | None]:
    """Yield what sends to trackers; None where none is asked for, and nothing is imported then."""
    if tracker in (None, []):
        yield None
        return
    from cl_lora.tracking import connected

    with connected(tracker) as tracking:
        yield tracking


def say_failed(folder: Path) -> None:
    """Log which single tasks failed, at the terminal and in the run's log."""
    from cl_lora.experiment.pipeline import logging_to
    from cl_lora.reporting.multitask import failed_sentence
    from cl_lora.run_folder import layout
    from cl_lora.run_folder.reader import RunFolder

    sentence = failed_sentence(RunFolder.read(folder))
    if sentence:
        with logging_to(folder / layout.LOG_FILE):
            log.warning("%s", sentence)


def print_table(folder: Path) -> None:
    """Print the comparison of all arms of a run, by the primary metric of every kind of task.

    Of a few-shot run by K, and then in time where it has stages in time; of one that merges subsets
    by their size. Unlike tasks follow each by its own metric. Below stands what they say.
    """
    from cl_lora.reporting.answers import answers_of, as_text
    from cl_lora.reporting.budgets import leading_metrics
    from cl_lora.reporting.faces import merges_subsets
    from cl_lora.reporting.tables import main_tables, tables_by_task
    from cl_lora.run_folder.reader import RunFolder

    finished = RunFolder.read(folder)
    shown = console()
    tables = []
    for metric in leading_metrics(finished):
        tables += main_tables(finished, metric)
    by_task = tables_by_task(finished)
    # Of subsets the pairs; the others are in the report.
    tables += by_task[:1] if merges_subsets(finished) else by_task
    for table in tables:
        print(table.text(shown.width, color=shown.is_terminal))
    print(as_text(answers_of(finished), shown.width), end="\n\n")
