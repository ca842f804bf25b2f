"""``cl-lora run``: compose, check, execute, report, and print the table of all arms."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_lora.commands.terminal import Verbosity, console, quieten, show_at
from cl_lora.support.errors import UserError
from cl_lora.support.printing import is_quiet, narrate, say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cl_lora.experiment.settings import Settings
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


def announce() -> None:
    """Say which job of a sweep begins."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        narrate(f"[{hydra.job.num + 1}] {' '.join(hydra.overrides.task)}")


def check(
    jobs: Sequence[Mapping[str, Any]], side_by_side: bool = False
) -> dict[int, dict[str, Any]]:
    """Check every job before the first is trained, and that no two differ in one folder.

    Args:
        jobs: their configurations.
        side_by_side: whether two may run at the same time, each then in a folder of its own.

    Returns:
        Job -> what is set for it: where jobs side by side differ in their seeds alone, that their
        seeds have run folders apart.

    Raises:
        UserError: with the first thing that is wrong.
    """
    from cl_lora.configuration.plugins import load_plugins

    for config in jobs:
        load_plugins(config["plugins"])
    from cl_lora.experiment import pipeline

    recipes: dict[str, Mapping[str, Any]] = {}
    variants: dict[tuple[str, str], Mapping[str, Any]] = {}
    shared: dict[str, list[int]] = {}
    every = [pipeline.check(config) for config in jobs]
    check_trackers([settings.options.tracker for settings in every])
    for number, settings in enumerate(every):
        recipe, folder = settings.recipe, settings.given_folder
        # Where the configuration names the folder, jobs of one recipe share it.
        place = f"run_dir={folder}" if folder else json.dumps(recipe, default=str)
        shared.setdefault(place, []).append(number)
        if recipes.setdefault(place, recipe) != recipe:
            raise UserError(
                f"The combinations of --multirun need a folder each but all go to {place}; leave "
                "run_dir out, or give runs_root=DIR"
            )
        for arm in settings.arms:
            if variants.setdefault((place, arm.name), arm.variant) != arm.variant:
                raise UserError(
                    f"The combinations of --multirun would define arm {arm.name!r} in several ways "
                    "in one run folder; give each a run_dir, or the arms names of their own"
                )
    if not side_by_side:
        return {}
    changes: dict[int, dict[str, Any]] = {}
    for numbers in shared.values():
        if len(numbers) > 1:
            _check_apart(numbers, [every[n] for n in numbers])
            changes |= {n: {"seeds_apart": True} for n in numbers}
    return changes


def _check_apart(numbers: Sequence[int], jobs: Sequence[Settings]) -> None:
    """Refuse jobs of one run folder that may run at the same time, unless their seeds differ."""
    taken: dict[int, int] = {}
    for number, settings in zip(numbers, jobs, strict=True):
        for seed in settings.seeds:
            first = taken.setdefault(seed, number)
            if first != number:
                raise UserError(
                    f"Jobs {first + 1} and {number + 1} of --multirun would write to one run "
                    f"folder at the same time, both with seed {seed}; let one job do both, as "
                    "arms=[A,B], or give each a run_dir, or set hydra/launcher=basic"
                )
    if jobs[0].given_folder is not None:
        raise UserError(
            f"Jobs {numbers[0] + 1} and {numbers[1] + 1} of --multirun would write to "
            f"run_dir={jobs[0].given_folder} at the same time; leave run_dir out, or set "
            "hydra/launcher=basic"
        )


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


def check_trackers(given: Sequence[str | Sequence[str] | None]) -> None:
    """Connect once to every tracker that some job is sent to."""
    if any(tracker not in (None, []) for tracker in given):
        from cl_lora.tracking import check, names_of

        check(list(dict.fromkeys(name for tracker in given for name in names_of(tracker))))


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
