"""The registry of figures: what each is called, says and needs.

Adding a figure is one function with one line above it::

    @figure("spread", "Spread over seeds", "Bars: the standard deviation over seeds.")
    def spread(run: RunFolder, metric: Metric) -> Figure | None:
        ...

The function draws from the run folder alone (``run.scores``, ``run.stream``, ``run.coefficients``)
and returns a matplotlib figure, or None where the run has nothing to draw. It is called with the
style of all figures in force, and nothing else has to be told of it: the files, the report and its
caption come from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure

from cl_lora.evaluation.metrics import Metric
from cl_lora.reporting.faces import faces
from cl_lora.reporting.figures.style import STYLE
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.registry import check_free

Draw: TypeAlias = Callable[[RunFolder, Metric], Figure | None]
"""A function that draws one figure of a run for one metric; None where there is nothing to draw."""

FewShot: TypeAlias = Literal["too", "only", "never"]
"""Whether a figure shows a few-shot run by K too, shows nothing else, or never does."""

SECTIONS = ("", "first", "interference", "budgets", "costs")
"""The sections of the report that figures stand in; the empty one is that of all figures.

``first`` stands beside the answers, on the first screen.
"""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class FigureInfo:
    """A registered figure.

    Attributes:
        name: of its files, ``figures/<name>.png`` and ``.svg``.
        title: heading in the report.
        caption: what is seen, in sentences.
        draw: the function that draws it.
        ordered: whether it needs stages that follow one another in time; it is left out of runs
            whose stages do not.
        few_shot: ``too``: of a few-shot run the figure is drawn in time where it has stages in
            time, else by K, draws averaged (:mod:`cl_lora.reporting.faces`); ``only``: it needs
            few-shot stages, and is drawn from the run as it is; ``never``: not by K.
        position: figures stand in the report by position, then in the order of registration.
        whole: whether it is drawn from the run as it is, whatever its faces.
        section: of the report it stands in, one of :data:`SECTIONS`; the figures', if empty.
        open: whether it is seen at once; folded, if not.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    ordered: bool
    few_shot: FewShot
    position: int
    whole: bool = False
    section: str = ""
    open: bool = False

    def of(self, run: RunFolder, metric: Metric) -> Figure | None:
        """Return the figure of ``run``, in the style of all; None where nothing is to be drawn."""
        with mpl.rc_context(dict(STYLE)):
            return self._drawn(run, metric)

    def _drawn(self, run: RunFolder, metric: Metric) -> Figure | None:
        if self.whole:
            return self.draw(run, metric)
        found = faces(run)
        if self.few_shot == "only":
            if found[0].kind != "shots" or (self.ordered and not run.stream.ordered):
                return None
            return self.draw(run, metric)
        # In time, where there is time; of subsets the pairs.
        face = found[0] if found[0].kind == "group" else found[-1]
        if (self.ordered and not face.run.stream.ordered) or (
            self.few_shot == "never" and face.kind == "shots"
        ):
            return None
        # A task of another kind may be scored on the other face alone.
        return self.draw(face.run, metric) if metric.name in face.run.scores.metrics else None


FIGURES: dict[str, FigureInfo] = {}
"""Every registered figure by name."""


def figure(
    name: str,
    title: str,
    caption: str,
    *,
    ordered: bool = False,
    few_shot: FewShot = "too",
    position: int = 100,
    whole: bool = False,
    section: str = "",
    open: bool = False,
) -> Callable[[Draw], Draw]:
    """Register the decorated function as the figure ``name``.

    Args:
        name: of its files: small letters, digits, ``_`` and ``-``.
        title: heading in the report.
        caption: what is seen, in sentences.
        ordered: whether it needs stages that follow one another in time.
        few_shot: whether it shows few-shot runs by K ``too``, ``only``, or ``never``.
        position: place in the report, the smallest first; this project's own take 1 to 80.
        whole: whether it is drawn from the run as it is, whatever its faces.
        section: of the report it stands in, one of :data:`SECTIONS`; the figures', if empty.
        open: whether it is seen at once; folded, if not.

    Raises:
        UserError: if the name is another function's already, or cannot name a file, or there is no
            such section.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"Expected a figure's name of small letters, digits, _ and - but got {name!r}: it "
            "names the figure's files; choose another name"
        )
    if section not in SECTIONS:
        raise unknown_name("section of the report", section, [s for s in SECTIONS if s])

    def register(draw: Draw) -> Draw:
        taken = FIGURES.get(name)
        check_free("figure", name, taken.draw if taken else None, draw)
        FIGURES[name] = FigureInfo(
            name, title, caption, draw, ordered, few_shot, position, whole, section, open
        )
        return draw

    return register


def in_order() -> tuple[FigureInfo, ...]:
    """Return every registered figure in the order of the report."""
    return tuple(sorted(FIGURES.values(), key=lambda info: info.position))
