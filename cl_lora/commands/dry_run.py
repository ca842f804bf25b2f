"""``cl-lora run --dry-run``: check everything, and say what would be trained and evaluated."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cl_lora.commands.jobs import announce, check, check_trackers
from cl_lora.support.errors import UserError
from cl_lora.support.printing import say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cl_lora.experiment.dry_run import BankOutlook, Outlook, ScoreOutlook

FLAG = "--dry-run"

_LAUNCHERS = ("hydra/launcher=", "hydra.launcher.")
_WIDTH, _LABEL = 80, 14


def run(given: Sequence[str]) -> int:
    """Look ahead to what the rest of the command line asks for, job by job in this process."""
    from cl_lora.commands.shard import is_asked
    from cl_lora.configuration.launch import launch

    if is_asked(given):
        raise UserError(f"{FLAG} looks at the whole run; leave --shard out")
    return launch([word for word in given if not word.startswith(_LAUNCHERS)], look, check)


def look(composed: DictConfig) -> None:
    """Say what one job of Hydra's would do."""
    from cl_lora.configuration.compose import plain
    from cl_lora.configuration.plugins import load_plugins

    announce()
    config = plain(composed)
    load_plugins(config["plugins"])
    from cl_lora.experiment import pipeline
    from cl_lora.experiment.dry_run import look_ahead

    check_trackers([pipeline.check(config).options.tracker])
    for line in lines_of(look_ahead(config)):
        say(line)


def lines_of(outlook: Outlook) -> Iterator[str]:
    """Yield what would be done, in lines of at most 80 characters (but for names of folders)."""
    yield "Dry run: everything is checked, nothing is trained or written."
    yield _entry("Run folder", f"{outlook.folder} ({'new' if outlook.new else 'there already'})")
    yield from _wrapped("Experiences", f"{outlook.data}: {', '.join(outlook.experiences)}")
    yield from _wrapped("Arms", _listed(outlook.arms))
    yield from _wrapped("Baselines", _listed(outlook.baselines))
    yield _entry("Stages", str(outlook.stages))
    yield from _labelled("Adapters", map(_bank, outlook.banks))
    yield from _labelled("Scores", map(_scores, outlook.scores))
    yield from _labelled("Time", _times(outlook))


def _bank(bank: BankOutlook) -> str:
    copied = f", {bank.copied} to copy" if bank.copied else ""
    what = f"{len(bank.missing)} to train" + f" ({', '.join(bank.missing)})" * bool(bank.missing)
    return f"seed {bank.seed}, bank {bank.bank}: {bank.there} there{copied}, {what}"


def _scores(scores: ScoreOutlook) -> str:
    on = f" on {scores.inputs:,} test inputs in all" if scores.missing else ""
    return f"seed {scores.seed}: {scores.there} there, {scores.missing} to compute{on}"


def _times(outlook: Outlook) -> Iterator[str]:
    from cl_lora.experiment.estimate import in_words

    total = outlook.total
    if not total.known and not total.unknown:
        yield "nothing is left to do"
        return
    parts = {
        "training": outlook.training,
        "adapting": outlook.adaptation,
        "scoring": outlook.scoring,
    }
    if total.known:
        each = [f"{n} {in_words(e.seconds)}" for n, e in parts.items() if e.known]
        yield f"about {in_words(total.seconds)} ({', '.join(each)}), by what this folder measured"
    unknown = [name for name, estimate in parts.items() if estimate.unknown]
    untimed = "scoring" in unknown and any(scores.there for scores in outlook.scores)
    if untimed:
        unknown.remove("scoring")
    if unknown:
        *others, last = unknown
        named = f"{', '.join(others)} and {last}" if others else last
        yield (
            f"nothing was measured yet of {named}: run one seed (seeds=[0]); after that "
            "--dry-run estimates the others"
        )
    if untimed:
        yield "not counted: scoring, which is not timed in such a run"
    learned = sum(scores.learned for scores in outlook.scores)
    if learned:
        s = "s" * (learned != 1)
        yield f"not counted: learning or choosing coefficients, {learned} time{s}"


def _labelled(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Yield lines of several texts, the first with its label."""
    for text in texts:
        yield from _wrapped(label, text)
        label = ""


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _entry(label: str, text: str) -> str:
    return f"{f'{label}:' if label else '':{_LABEL}}{text}"


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=_entry(label, ""),
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
