"""The three sentences that a run is told in, and the order of its arms behind them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from fabricate import ARMS, fabricate_few_shot, fabricate_hits, fabricate_run, many_arms
from multitask_runs import fabricate_multitask
from other_runs import RMSE, as_errors, as_stages
from reuse_runs import fabricate_reuse

from cl_lora.evaluation.aggregate import paired_difference
from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting.answers import BETTER, FORGET, GAIN, KEEP, LOSE, SURE, USE, answers_of, use
from cl_lora.reporting.differences import Source
from cl_lora.reporting.ranking import Ranking, rank, ranking_of
from cl_lora.run_folder.reader import RunFolder

THREE = {
    "close": {0: 0.80, 1: 0.82, 2: 0.81},
    "best": {0: 0.81, 1: 0.81, 2: 0.82},
    "far": {0: 0.60, 1: 0.61, 2: 0.62},
    "half": {0: 0.99, 1: 0.99},
    "joint": {0: 0.90, 1: 0.90, 2: 0.90},
}
ARMS_OF_THREE = ("far", "close", "best", "half")


def ranked(values: dict[str, dict[int, float]], arms: tuple[str, ...], metric=ACCURACY) -> Ranking:
    baselines = tuple(row for row in values if row not in arms)
    return rank(Source((), values), arms, baselines, metric)


def of(path: Path) -> dict[str, str]:
    answers = answers_of(RunFolder.read(path))
    assert all("<" not in a.sentence for a in answers)
    return {a.question: a.sentence.replace("\N{NO-BREAK SPACE}", " ") for a in answers}


def test_the_best_has_every_seed_and_the_group_is_what_cannot_be_told_from_it() -> None:
    ranking = ranked(THREE, ARMS_OF_THREE)
    # Better than all, but by two seeds: it stands first in the table, and is no answer.
    assert ranking.arms == ("half", "best", "close", "far")
    assert (ranking.best, ranking.close, ranking.group) == ("best", ("close",), ("best", "close"))
    best = list(THREE["best"].values())
    for row in ("close", "far", "joint"):
        expected = paired_difference(list(THREE[row].values()), best)
        assert ranking.difference(row).low == expected.low
        assert (expected.low <= 0 <= expected.high) == (row in ranking.close)
    assert ranking.baselines == ("joint",)
    assert ranking.note.endswith("the difference to best over 3 seeds includes 0.")


def test_of_errors_the_smallest_mean_is_the_best() -> None:
    ranking = ranked(THREE, ("far", "close", "best"), RMSE)
    assert ranking.arms == ("far", "close", "best")
    assert ranking.best == "far"
    assert ranking.difference("best").mean == pytest.approx(0.2033, abs=1e-4)
    assert use(ranking, {"joint": "joint training"}).endswith("is 0.290 px worse.")


def test_arms_that_never_differ_cannot_be_told_apart() -> None:
    ranking = ranked({"a": THREE["far"], "b": THREE["far"]}, ("a", "b"))
    assert ranking.group == ("a", "b")
    assert use(ranking) == "Use a (61.0\N{NO-BREAK SPACE}%). b cannot be told from it with 3 seeds."


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "The run has no arms, only baselines: there is nothing to choose from."),
        (1, "The only arm, a0, reaches 60.0 %."),
        (2, "Use a1 (60.5 %). It is better than the other arm with 3 seeds."),
        (3, "Use a2 (61.0 %). It is better than every other arm with 3 seeds."),
    ],
)
def test_plurals_are_right(count: int, told: str) -> None:
    values = {
        f"a{k}": {s: 0.6 + 0.005 * k + 0.01 * (s - 1) for s in range(3)} for k in range(count)
    }
    assert use(ranked(values, tuple(values))).replace("\N{NO-BREAK SPACE}", " ") == told


def test_names_are_capped() -> None:
    draw = np.random.default_rng(0)
    values = {f"arm{k}": {s: 0.6 + draw.normal(0, 0.01) for s in range(3)} for k in range(9)}
    values["far"] = dict.fromkeys(range(3), 0.1)
    told = use(ranked(values, tuple(values)))
    assert re.search(r"\)\. arm\d, arm\d, arm\d and 5 more cannot be told from it", told)
    del values["far"]
    assert "None of the other 8 arms can be told from it" in use(ranked(values, tuple(values)))


def test_a_stream_of_three_seeds(tmp_path: Path) -> None:
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=many_arms(), seeds=(0, 1, 2)))
    answers = answers_of(run)
    assert [a.question for a in answers] == [USE, FORGET, SURE]
    ranking = ranking_of(run, ACCURACY)
    assert answers[0].arms == ranking.group
    assert not {*answers[0].arms} & {*run.references}
    told = answers[0].sentence.replace("\N{NO-BREAK SPACE}", " ")
    mean = 100 * ranking.estimates[str(ranking.best)].mean
    assert told.startswith(f"Use {ranking.best} ({mean:.1f} %). ")
    assert re.search(r"Joint training \(joint\) is [\d.]+ points (better|worse)", told)
    assert re.fullmatch(
        r"It forgets [\d.]+ points; the last adapter alone forgets [\d.]+ points\.",
        answers[1].sentence,
    )
    assert answers[2].sentence == (
        "3 seeds, 1,200 test samples; intervals are 95 % over seeds (Student's t), for these "
        "domains."
    )


def test_one_seed_forms_no_group_without_test_samples(tmp_path: Path) -> None:
    told = of(fabricate_run(tmp_path / "run", seeds=(4,)))
    assert re.match(
        r"\w+ leads with [\d.]+ %\. With one seed no arm can be told from another\.", told[USE]
    )
    assert told[SURE] == (
        "1 seed, 1,200 test samples; no intervals: training noise is unknown with one seed."
    )
    path = fabricate_run(tmp_path / "hits", seeds=(4,))
    fabricate_hits(path, (4,), tuple(ARMS))
    told = of(path)
    assert "over the test samples of one seed." in told[USE]
    assert "(paired bootstrap): training noise is unknown with one seed." in told[SURE]


def test_without_time_the_second_sentence_is_the_distance_to_a_baseline(tmp_path: Path) -> None:
    told = of(as_stages(as_errors(fabricate_run(tmp_path / "run")), {"all": None}))
    assert re.fullmatch(r"It is [\d.]+ px better than the baseline base\.", told[BETTER])


def test_a_few_shot_run_answers_for_every_k(tmp_path: Path) -> None:
    run = RunFolder.read(fabricate_few_shot(tmp_path / "run"))
    told = of(run.path)
    assert re.match(
        r"Use \w+ at K = 1 \([\d.]+ %.*, \w+ at K = 5 \(.*, \w+ at K = all \(", told[USE]
    )
    assert "over LoRA from scratch (lora)." in told[GAIN]
    assert "At K = all LoRA from scratch itself is the best." in told[GAIN]
    assert "2 draws of each support set" in told[SURE]
    assert answers_of(run)[0].arms[-1] == "lora"


def test_a_few_shot_run_in_time_answers_there_too(tmp_path: Path) -> None:
    told = of(fabricate_few_shot(tmp_path / "run", in_time=True, references=("joint",), seeds=(0,)))
    assert "In time: The only arm, uniform, reaches " in told[USE]
    assert told[USE].startswith("With one seed the best are ")


def test_merged_subsets_answer_for_each_group_and_name_who_loses_most(tmp_path: Path) -> None:
    told = of(fabricate_multitask(tmp_path / "run", seeds=(0, 1, 2), failed=("landmarks",)))
    assert re.match(r"Merged in pairs: use mean \(.*Merged in triples: use ", told[USE])
    assert re.fullmatch(
        r"In pairs mean keeps [\d.]+ % of the single-task score on average\. age \([\d.]+ %\) "
        r"keeps least of its single-task score, emotion \([\d.]+ %\) most\.",
        told[KEEP],
    )
    assert "Failed single tasks" in told[SURE]


def test_tasks_in_time_forget_and_one_of_them_most(tmp_path: Path) -> None:
    told = of(fabricate_multitask(tmp_path / "run", in_time=True))
    assert re.match(r"It forgets [\d.]+ points\. landmarks \(−[\d.]+ %\) keeps least", told[FORGET])
    assert "One adapter per task (single) is " in told[USE]


def test_reuse_answers_for_every_budget(tmp_path: Path) -> None:
    told = of(fabricate_reuse(tmp_path / "run"))
    assert told[USE].startswith("Use regmean with nothing beside the backbone (72.9 %; ")
    assert "peru_lora_q4 within 1.1× the backbone (82.9 %, 1.06×)" in told[USE]
    assert told[USE].count("peru_fft_10 of any size") == 1
    assert "points worse than single (89.8 %, 1.48× the backbone)" in told[LOSE]
    assert told[LOSE].endswith("single needs no more numbers than peru_fft_10 and scores better.")


def test_a_run_without_arms_has_nothing_to_choose(tmp_path: Path) -> None:
    told = of(fabricate_run(tmp_path / "run", arms={}, references=("base", "joint")))
    assert told[USE].startswith("The run has no arms")
    assert set(told) == {USE, SURE}


def test_an_arm_without_a_whole_set_of_seeds_is_no_answer() -> None:
    values = {"a": {0: 0.5}, "b": {1: 0.6}}
    ranking = rank(Source((), values), ("a", "b"), (), ACCURACY, seeds=2)
    assert ranking.best is None
    assert ranking.group == ()
    assert math.isnan(ranking.difference("a").mean)
    assert use(ranking) == "No arm has a score on every seed: there is none to recommend."
