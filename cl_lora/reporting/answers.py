"""A run in three sentences: which merge to use, what is lost by it, and how sure that is.

Plain text, for the head of a page, a terminal and TensorBoard alike. Baselines are never the
answer; a sentence may say how far they are.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cl_lora.evaluation.aggregate import ALL_EXPERIENCES, estimates
from cl_lora.evaluation.metrics import RELATIVE, Metric
from cl_lora.reporting.budgets import (
    Point,
    backbone_of,
    best_within,
    choosable,
    has_budgets,
    headline,
    points_of,
    singles,
)
from cl_lora.reporting.faces import (
    downstream,
    draws,
    faces,
    is_few_shot,
    merges_subsets,
    samples_per_class,
)
from cl_lora.reporting.multitask import failed_sentence, failed_tasks, is_multitask
from cl_lora.reporting.ranking import (
    Ranking,
    by_shots,
    rank,
    ranking_of,
    ranking_of_face,
    source_of,
)
from cl_lora.reporting.rows import bounds_of, forgetful_of
from cl_lora.reporting.shots import lora_from_scratch
from cl_lora.reporting.tables.column import Column
from cl_lora.run_folder.reader import RunFolder

USE, SURE = "Which merge should I use?", "How sure is that?"
FORGET, GAIN = "How much does it forget?", "What does it gain over training from scratch?"
KEEP, LOSE = "How much of each task is kept?", "What is lost against one model per task?"
BETTER = "How far is it from the baselines?"

LIMITS = (1.0, 1.1, 1.5, 2.0)
"""Multiples of the backbone within which the best arm is named."""

_MOST = 3
_SLACK = 1e-9


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: what a reader asks.
        sentence: one to three sentences of plain text.
        arms: the arms that it recommends, the best first; none where it recommends none.
    """

    question: str
    sentence: str
    arms: tuple[str, ...] = ()


def answers_of(run: RunFolder, metric: Metric | None = None) -> tuple[Answer, ...]:
    """Return the three answers that a run gives.

    Args:
        run: a finished run.
        metric: the one that is judged by; that which leads its report, if not given.
    """
    metric = metric or headline(run)
    if metric.name not in run.scores.metrics:
        return ()
    if has_budgets(run) and any(a in points_of(run, metric) for a in choosable(run)):
        found = (_use_by_budget(run, metric), _lost_by_budget(run, metric))
    elif is_few_shot(run):
        found = (_use_by_shots(run, metric), _gain(run, metric))
    elif merges_subsets(run):
        found = (_use_by_group(run, metric), _kept(run, metric))
    else:
        ranking = ranking_of(run, metric)
        found = (Answer(USE, use(ranking, bounds_of(run)), ranking.group), _lost(run, ranking))
    sure = Answer(SURE, _sure(run, ranking_of(run, metric)))
    return (*(answer for answer in found if answer is not None), sure)


def as_text(answers: Sequence[Answer], width: int) -> str:
    """Return answers one below another, as a terminal of ``width`` columns shows them."""
    return "\n".join(
        textwrap.fill(a.sentence, width, break_long_words=False, break_on_hyphens=False)
        for a in answers
    )


def use(ranking: Ranking, bounds: Mapping[str, str] | None = None) -> str:
    """Say which arm to use, which arms cannot be told from it, and how far the bounds are.

    Args:
        ranking: the rows in order.
        bounds: baselines that say how good it could be -> in words.
    """
    best = ranking.best
    if best is None:
        return (
            "No arm has a score on every seed: there is none to recommend."
            if ranking.arms
            else "The run has no arms, only baselines: there is nothing to choose from."
        )
    value = score(ranking, best)
    if len(ranking.arms) == 1:
        told = [f"The only arm, {best}, reaches {value}."]
    elif not ranking.formed:
        told = [f"{best} leads with {value}.", _untold(ranking)]
    elif ranking.over_images:
        told = [f"{best} leads with {value}.", _close(ranking, "over the test samples of one seed")]
    else:
        told = [f"Use {best} ({value}).", _close(ranking, f"with {ranking.seeds} seeds")]
    return " ".join([*told, *_bounds(ranking, bounds or {})])


def score(ranking: Ranking, row: str, unit: bool = True) -> str:
    """Return the mean of a row as shown, with its unit."""
    metric = ranking.metric
    text = Column("", "", "", percent=metric.percent).number(ranking.estimates[row].mean)
    return f"{text}\N{NO-BREAK SPACE}{metric.unit}" if unit and metric.unit else text


def distance(value: float, metric: Metric) -> str:
    """Return how far two values lie apart, in points or in the metric's unit, without a sign."""
    text = Column("", "", "", percent=metric.percent).number(abs(value))
    return f"{text} {metric.points}" if metric.points else text


def listed(names: Sequence[str], most: int = _MOST, joint: str = "and") -> str:
    """Return names in a row, capped.

    Example:
        >>> listed("ab"), listed("abc"), listed("abcdefgh")
        ('a and b', 'a, b and c', 'a, b, c and 5 more')
    """
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        # One more name is as short as its number.
        shown = [*shown, f"{more} more"] if more > 1 else list(names)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {joint} {shown[-1]}"


def _close(ranking: Ranking, how: str) -> str:
    if not ranking.close:
        others = "every other arm" if len(ranking.arms) > 2 else "the other arm"
        return f"It is better than {others} {how}."
    if len(ranking.close) == len(ranking.arms) - 1 > 1:
        return f"None of the other {len(ranking.close)} arms can be told from it {how}."
    return f"{listed(ranking.close)} cannot be told from it {how}."


def _untold(ranking: Ranking) -> str:
    told = "With one seed no" if ranking.seeds == 1 else "No"
    return f"{told} arm can be told from another."


def _bounds(ranking: Ranking, bounds: Mapping[str, str]) -> Iterator[str]:
    told = []
    for row, words in bounds.items():
        d = ranking.difference(row).mean
        if not math.isnan(d):
            told.append(f"{words} ({row}) is {_better(d, ranking.metric)}")
    if told:
        text = listed(told[:2])
        yield f"{text[0].upper()}{text[1:]}."


def _better(difference: float, metric: Metric) -> str:
    """Say whether a value is better, which lies by so much above another.

    Example:
        >>> from cl_lora.evaluation.metrics import ACCURACY, ANGLE_ERROR
        >>> _better(0.02, ACCURACY), _better(3.0, ANGLE_ERROR), _better(0.0001, ACCURACY)
        ('2.0 points better', '3.000 degrees worse', 'just as good')
    """
    if not float(distance(difference, metric).split()[0]):
        return "just as good"
    better = (difference > 0) == metric.higher_is_better
    return f"{distance(difference, metric)} {'better' if better else 'worse'}"


def _compared(difference: float, metric: Metric) -> str:
    told = _better(difference, metric)
    return f"{told} {'as' if told.startswith('just') else 'than'}"


def _lost(run: RunFolder, ranking: Ranking) -> Answer | None:
    """Say what the best arm forgets; where nothing is in time, how far it is from a baseline."""
    if ranking.best is None:
        return None
    face = faces(run)[-1].run
    metric = ranking.metric
    if face.stream.shape(metric.name).in_time and len(face.experiences) > 1:
        return _forgotten(face, ranking)
    row = run.yardstick
    d = ranking.difference(row).mean if row is not None else math.nan
    if math.isnan(d):
        return None
    return Answer(BETTER, f"It is {_compared(-d, metric)} the baseline {row}.")


def _forgotten(run: RunFolder, ranking: Ranking) -> Answer | None:
    metric, best = ranking.metric, str(ranking.best)
    numbers = estimates(run.scores, metric.name, run.stream.shape(metric.name))

    def of(row: str) -> float:
        found = numbers.get((row, "forgetting", ALL_EXPERIENCES))
        return math.nan if found is None else found.mean

    def said(value: float) -> str:
        if value < 0 and float(distance(value, metric).split()[0]):
            return f"nothing, and gains {distance(value, metric)}"
        return distance(value, metric)

    mine = of(best)
    if math.isnan(mine):
        return None
    it = "It" if ranking.formed or len(ranking.arms) == 1 else best
    told = f"{it} forgets {said(mine)}"
    beside = forgetful_of(run)
    if beside is not None and not math.isnan(of(beside[0])):
        told += f"; {beside[1]} forgets {said(of(beside[0]))}"
    return Answer(FORGET, f"{told}.{_extremes(run, ranking)}")


def _extremes(run: RunFolder, ranking: Ranking) -> str:
    """Say which of several unlike tasks keeps least and which most by the best arm."""
    metric = ranking.metric
    best, shape = ranking.best, run.stream.shape(metric.name)
    if not is_multitask(run) or metric.name != RELATIVE.name or best is None:
        return ""
    failed = failed_tasks(run)
    means: dict[str, float] = {}
    for j in shape.final:
        values = [
            run.scores.matrix(seed, best, metric.name, shape).values[-1, j]
            for seed in run.scores.seeds
        ]
        mean = float(sum(values) / len(values)) if values else math.nan
        if run.experiences[j] not in failed and not math.isnan(mean):
            means[run.experiences[j]] = mean
    if len(means) < 2:
        return ""
    ordered = sorted(means, key=lambda name: means[name])
    share = Column("", "", "")
    least, most = (
        f"{name} ({share.number(means[name])}\N{NO-BREAK SPACE}%)"
        for name in (ordered[0], ordered[-1])
    )
    return f" {least} keeps least of its single-task score, {most} most."


def _use_by_shots(run: RunFolder, metric: Metric) -> Answer:
    """Say which arm to use at each K, and in time where there is time."""
    face, *timely = faces(run)
    parts, arms = [], []
    for ranking, stage in zip(by_shots(face, metric), face.run.stream.trained_stages, strict=False):
        if ranking.best is None:
            continue
        arms.append(ranking.best)
        close = ranking.close
        cannot = f"; {listed(close)} cannot be told from it" if close else ""
        parts.append(
            f"{ranking.best} at K = {samples_per_class(stage)} ({score(ranking, ranking.best)}"
            f"{cannot})"
        )
    seeds = len(run.scores.seeds)
    told = [f"Use {', '.join(parts)}." if parts else "No arm has a score on every seed."]
    if parts and seeds == 1:
        told = [f"With one seed the best are {', '.join(parts)}. No arm can be told from another."]
    for other in timely:
        ranking = ranking_of_face(other, metric)
        if ranking.best is not None:
            told.append(f"In time: {use(ranking, bounds_of(other.run))}")
    return Answer(USE, " ".join(told), tuple(dict.fromkeys(arms)))


def _gain(run: RunFolder, metric: Metric) -> Answer | None:
    """Say at each K what the best arm gains over LoRA from scratch."""
    face = faces(run)[0]
    lora = lora_from_scratch(face.run)
    if lora is None:
        return None
    gains, other = [], []
    for ranking, stage in zip(by_shots(face, metric), face.run.stream.trained_stages, strict=False):
        if not stage.x or ranking.best is None:
            continue
        k = samples_per_class(stage)
        if ranking.best == lora:
            other.append(k)
            continue
        d = ranking.difference(lora)
        if math.isnan(d.mean):
            continue
        sure = "" if math.isnan(d.low) or not d.low <= 0 <= d.high else ", within noise"
        gains.append(f"{distance(d.mean, metric)} at K = {k}{sure}")
    told = []
    if gains:
        told.append(f"The best arm gains {listed(gains, 6)} over LoRA from scratch ({lora}).")
    if other:
        told.append(f"At K = {listed(other, 6)} LoRA from scratch itself is the best.")
    return Answer(GAIN, " ".join(told)) if told else None


def _use_by_group(run: RunFolder, metric: Metric) -> Answer:
    told: list[str] = []
    arms: list[str] = []
    for face in faces(run):
        ranking = ranking_of_face(face, metric)
        if ranking.arms:
            where = face.run.stream.trained_stages[0].name
            text = use(ranking)
            start = text if text.startswith(ranking.arms) else text[0].lower() + text[1:]
            told.append(f"Merged in {where}: {start}" if len(faces(run)) > 1 else text)
            arms += ranking.group
    words = " ".join(told) or use(ranking_of(run, metric))
    return Answer(USE, words, tuple(dict.fromkeys(arms)))


def _kept(run: RunFolder, metric: Metric) -> Answer | None:
    face = faces(run)[0]
    ranking = ranking_of_face(face, metric)
    if ranking.best is None:
        return None
    where = face.run.stream.trained_stages[0].name
    told = f"In {where} {ranking.best} keeps {score(ranking, ranking.best)}"
    of_single = " of the single-task score" if metric.name == RELATIVE.name else ""
    told += f"{of_single} on average."
    return Answer(KEEP, told + _extremes(face.run, ranking))


def _use_by_budget(run: RunFolder, metric: Metric) -> Answer:
    """Say which arm is best within how many numbers; a larger limit only where it brings more."""
    points, ranking = points_of(run, metric), ranking_of(run, metric)
    arms = [a for a in choosable(run) if a in points]
    up, backbone = metric.higher_is_better, backbone_of(run)
    parts: list[str] = []
    named: list[str] = []
    # Without the backbone's size, NaN, no arm is within a multiple of it.
    limits = [(limit * backbone * (1 + _SLACK), _within(limit)) for limit in LIMITS]
    largest = max(points[a].parameters for a in arms)
    for size, words in (*limits, (largest, "of any size")):
        best = best_within(points, arms, size, up)
        if best is None or best in named:
            continue
        named.append(best)
        close = _within_noise(run, metric, best, [a for a in arms if points[a].parameters <= size])
        times = points[best].parameters / backbone
        size_told = f", {times:.2f}×" if times > 1 + _SLACK else ""
        cannot = f"; {listed(close, 2)} cannot be told from it" if close else ""
        parts.append(f"{best} {words} ({score(ranking, best)}{size_told}{cannot})")
    return Answer(USE, f"Use {', '.join(parts)}.", tuple(named))


def _within(limit: float) -> str:
    return "with nothing beside the backbone" if limit == 1 else f"within {limit:g}× the backbone"


def _within_noise(
    run: RunFolder, metric: Metric, best: str, arms: Sequence[str]
) -> tuple[str, ...]:
    """Return those of some arms that cannot be told from one of them, with several seeds."""
    source, where = source_of(faces(run)[0], metric)
    if len(run.scores.seeds) < 2:
        return ()
    ranking = rank(source, arms, (), metric, where, len(run.scores.seeds))
    return ranking.close if ranking.best == best else ()


def _lost_by_budget(run: RunFolder, metric: Metric) -> Answer | None:
    """Say how far the best arm of any size is from one model per task, and at what size."""
    points, ranking = points_of(run, metric), ranking_of(run, metric)
    rows = [row for row in singles(run) if row in points]
    best = ranking.best
    if best is None or best not in points or not rows:
        return None
    backbone = backbone_of(run)
    told = []
    for row in rows:
        d = ranking.difference(row).mean
        if not math.isnan(d):
            times = points[row].parameters / backbone
            size = "" if math.isnan(times) else f", {times:.2f}× the backbone"
            told.append(f"{_compared(-d, metric)} {row} ({score(ranking, row)}{size})")
    if not told:
        return None
    text = f"The best of any size, {best}, is {listed(told)}."
    return Answer(LOSE, " ".join([text, *_outdone(rows, points, best, metric)]))


def _outdone(
    rows: Sequence[str], points: Mapping[str, Point], best: str, metric: Metric
) -> Iterator[str]:
    """Say which single-task rows need no more than the best arm and score more."""
    sign, mine = (1 if metric.higher_is_better else -1), points[best]
    found = [
        row
        for row in rows
        if points[row].parameters <= mine.parameters and sign * points[row].mean > sign * mine.mean
    ]
    if found:
        need, score = ("needs", "scores") if len(found) == 1 else ("need", "score")
        yield f"{listed(found)} {need} no more numbers than {best} and {score} better."


def _sure(run: RunFolder, ranking: Ranking) -> str:
    """Say how many seeds and test samples there are, and what intervals are over."""
    seeds = len(run.scores.seeds)
    told = [f"{seeds} seed{'s' * (seeds != 1)}"]
    scored = downstream(run) if is_few_shot(run) else run.stream.shape(ranking.metric.name).final
    count = sum(run.stream.experiences[j].test for j in scored)
    told.append(f"{count:,} test sample{'s' * (count != 1)}")
    if draws(run) > 1:
        told.append(f"{draws(run)} draws of each support set")
    if seeds > 1:
        what = "intervals are 95 % over seeds (Student's t), for these " + _units(run) + "."
    elif ranking.over_images:
        what = (
            "intervals are 95 % over test samples (paired bootstrap): training noise is unknown "
            "with one seed."
        )
    else:
        what = "no intervals: training noise is unknown with one seed."
    failed = failed_sentence(run)
    return f"{', '.join(told)}; {what}" + (f" {failed}" if failed else "")


def _units(run: RunFolder) -> str:
    if is_few_shot(run):
        return "data sets"
    several = len({e.task for e in run.stream.experiences}) > 1 or has_budgets(run)
    return "tasks" if several else "domains"
