"""Parts of a run: who scores what, what they hold together, and what does not go together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.config_file import read_config, write_config
from cl_lora.run_folder.folding import fold_hits, fold_records, remove_parts
from cl_lora.run_folder.hits import read_hits
from cl_lora.run_folder.layout import hits_file
from cl_lora.run_folder.lock import in_turn, locked, shared
from cl_lora.run_folder.parts import Joined, Plan, Shard, joined_hits, part_folders
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import Coefficient
from cl_lora.run_folder.results import Results
from cl_lora.run_folder.rows import ACCOUNTS, COEFFICIENTS
from cl_lora.support.errors import UserError

WANTED = {"arms": {"a": {"method": "ties", "options": {"density": 0.2}}}, "seeds": [0]}


def unit(row: str, stage: int, value: float = 0.5, experiences: int = 2) -> list[Score]:
    return [Score(0, row, stage, j, "accuracy", value) for j in range(experiences)]


def put(place: Path, scores: list[Score], weights: list[Coefficient] | None = None) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    ScoreTable(scores).write(place / "scores.csv")
    if weights is not None:
        (place / "coefficients.csv").write_text(COEFFICIENTS.text(weights))
    return place


def weight(row: str, stage: int, value: float = 1.0) -> Coefficient:
    return Coefficient(0, row, stage, "all", 0, value)


def sentence(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Shards and plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1/1", "2/3", "3/3", "17/1000"])
def test_a_shard_is_a_number_of_a_count(text: str) -> None:
    shard = Shard.parse(text)
    assert str(shard) == text
    number, count = text.split("/")
    assert shard.folder(Path("run")) == Path(f"run/parts/shard-{number}-of-{count}")


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "a/b", "1/0", "0/0", "-1/2", "1", "1/2/3", "", "1.0/2", " 1/2", "1/"]
)
def test_anything_else_is_none(text: str) -> None:
    said = sentence(Shard.parse, text)
    assert said.startswith("Expected --shard i/n, part i of n with 1 <= i <= n, but got")
    assert repr(text) in said


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Plan.read(tmp_path) is None
    units = (frozenset({(0, "a", -1), (0, "a", 2), (1, "b", 0)}), frozenset())
    plan = Plan(WANTED, units)
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan
    assert plan.shards == (Shard(1, 2), Shard(2, 2))
    assert plan.of(Shard(2, 2)) == frozenset()
    plan.require(tmp_path, Shard(1, 2), WANTED)


def test_another_count_or_command_is_refused(tmp_path: Path) -> None:
    plan = Plan(WANTED, (frozenset(), frozenset()))
    said = sentence(plan.require, tmp_path, Shard(1, 3), WANTED)
    assert "is dealt out to 2 shards but got --shard 1/3; give --shard i/2, or join" in said
    other = json.loads(json.dumps(WANTED))
    other["arms"]["a"]["options"]["density"] = 0.3
    said = sentence(plan.require, tmp_path, Shard(1, 2), other)
    assert "(arms.a.options.density is 0.2 there and 0.3 here)" in said
    more = {**WANTED, "seeds": (0, 1)}
    assert "(seeds is [0] there and [0, 1] here)" in sentence(
        plan.require, tmp_path, Shard(1, 2), more
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"wanted": {}, "parts": [[[1, "a"]]]}'])
def test_a_damaged_plan_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "parts" / "plan.json"
    path.parent.mkdir()
    path.write_text(text)
    said = sentence(Plan.read, tmp_path)
    assert f"{path} is damaged" in said
    assert "run the command without --shard" in said


def test_a_part_begins_with_its_record(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        folder = Shard(number, 10).folder(tmp_path)
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    Shard(3, 10).folder(tmp_path).mkdir()
    assert [p.name for p in part_folders(tmp_path)] == [
        f"shard-{number}-of-10" for number in (2, 9, 10)
    ]


# What they hold together --------------------------------------------------------------------------


def test_units_are_taken_from_where_their_scores_are(tmp_path: Path) -> None:
    # Coefficients come before the scores: a process that was killed between leaves such.
    run = put(tmp_path / "run", unit("b", 0), [weight("b", 0), weight("a", 0, 7.0)])
    part = put(tmp_path / "part", unit("a", 0), [weight("a", 0), weight("c", 0)])
    joined = Joined(run, [part])
    assert joined.scores("ab") == [*unit("a", 0), *unit("b", 0)]
    assert joined.rows(COEFFICIENTS, "ab") == [weight("a", 0), weight("b", 0)]
    assert joined.rows(ACCOUNTS) == []


def test_one_folder_is_what_its_files_say(tmp_path: Path) -> None:
    run = put(tmp_path, [*unit("b", 0), *unit("a", 0)], [weight("x", 3)])
    assert Joined(run).scores("ab") == list(ScoreTable.read(run / "scores.csv"))
    assert Joined(run).rows(COEFFICIENTS) == [weight("x", 3)]
    assert Joined(tmp_path / "new").scores() == []


def test_a_unit_that_is_there_twice_is_taken_once(tmp_path: Path) -> None:
    places = [put(tmp_path / name, unit("a", 0), [weight("a", 0)]) for name in "123"]
    joined = Joined(places[0], places[1:])
    assert joined.scores() == unit("a", 0)
    assert joined.rows(COEFFICIENTS) == [weight("a", 0)]


def test_a_unit_is_whole_where_more_of_it_is(tmp_path: Path) -> None:
    run = put(tmp_path / "run", unit("a", 0, experiences=1), [weight("a", 0, 3.0)])
    part = put(tmp_path / "part", unit("a", 0), [weight("a", 0)])
    assert Joined(run, [part]).scores() == unit("a", 0)
    assert Joined(run, [part]).rows(COEFFICIENTS) == [weight("a", 0)]
    assert Joined(part, [run]).scores() == unit("a", 0)


def test_a_unit_that_differs_is_refused(tmp_path: Path) -> None:
    run = put(tmp_path / "run", unit("a", 0), [weight("a", 0)])
    part = put(tmp_path / "part", unit("a", 0, 0.25), [weight("a", 0)])
    said = sentence(Joined, run, [part])
    assert f"{run} and {part} both have scored 'a' of seed 0 at stage 0 but not alike" in said
    other = put(tmp_path / "other", unit("a", 0), [weight("a", 0, 0.5)])
    assert f"{run} and {other} both" in sentence(Joined(run, [other]).rows, COEFFICIENTS)


def test_results_count_what_parts_hold_and_write_it(tmp_path: Path) -> None:
    run = put(tmp_path / "run", unit("b", 0), [weight("b", 0)])
    part = put(tmp_path / "part", unit("a", 0), [weight("a", 0)])
    cells = {0: frozenset((j, "accuracy") for j in range(2))}
    made = Results(run, ["a", "b"], cells, [part])
    assert made.done(0, "a", 0)
    assert made.done(0, "b", 0)
    made.write()
    assert list(ScoreTable.read(run / "scores.csv")) == [*unit("a", 0), *unit("b", 0)]
    assert COEFFICIENTS.read(run / "coefficients.csv") == [weight("a", 0), weight("b", 0)]


# A run of which two parts hold the half -----------------------------------------------------------


def split(run: Path) -> tuple[Path, Path]:
    """Move the scores of two arms into parts; what else the run holds stays."""
    config, whole = read_config(run), ScoreTable.read(run / "scores.csv")
    weights = COEFFICIENTS.read(run / "coefficients.csv")
    arms = list(config.arms)[:2]
    folders = tuple(Shard(i + 1, 2).folder(run) for i in range(2))
    units = []
    for arm, folder in zip(arms, folders, strict=True):
        mine = [s for s in whole if s.arm == arm]
        put(folder, mine, [w for w in weights if w.arm == arm])
        write_config(folder, config)
        units.append(frozenset((s.seed, s.arm, s.stage) for s in mine))
        for path in sorted((run / "hits").glob(f"seed-*/{arm}.npz")):
            there = folder / path.relative_to(run)
            there.parent.mkdir(parents=True)
            path.rename(there)
    ScoreTable(s for s in whole if s.arm not in arms).write(run / "scores.csv")
    rest = [w for w in weights if w.arm not in arms]
    (run / "coefficients.csv").write_text(COEFFICIENTS.text(rest))
    Plan({}, tuple(units)).write(run)
    return folders


def test_a_reader_sees_one_run(run_path: Path) -> None:
    whole = RunFolder.read(run_path)
    hits = joined_hits(run_path, 0, whole.arms[0])
    split(run_path)
    joined = RunFolder.read(run_path)
    assert list(joined.scores) == list(whole.scores)
    assert joined.coefficients.equals(whole.coefficients)
    assert joined.missing() == ()
    assert joined.missing_parts == ""
    again = joined_hits(run_path, 0, whole.arms[0])
    assert again.keys() == hits.keys()


def test_a_part_that_is_missing_is_named(run_path: Path) -> None:
    first, second = split(run_path)
    shutil.rmtree(second)
    said = sentence(RunFolder.read, run_path)
    assert said.startswith(f"{run_path} lacks the part 2/2: ")
    assert "run the same command with --shard 2/2, or without --shard" in said
    shutil.rmtree(first)
    said = sentence(RunFolder.read, run_path)
    assert said.startswith(f"{run_path} lacks the parts 1/2, 2/2: ")
    there = RunFolder.read(run_path, allow_unfinished=True)
    assert there.missing_parts == said


def test_an_arm_that_diverged_in_a_part_is_not_missing(run_path: Path) -> None:
    first, _ = split(run_path)
    config = read_config(first)
    name = next(iter(config.arms))
    entry = {"arm": config.arms[name], "variant": config.variants[name], "reason": "NaN"}
    arms = {k: v for k, v in config.arms.items() if k != name}
    write_config(first, replace(config, arms=arms, stopped={name: entry}))
    (first / "scores.csv").unlink()
    run = RunFolder.read(run_path)
    assert name not in run.arms
    assert run.config["stopped"][name]["reason"] == "NaN"


def test_a_part_of_another_run_is_refused(run_path: Path) -> None:
    first, _ = split(run_path)
    config = read_config(first)
    write_config(first, replace(config, identity={**config.identity, "precision": "bf16"}))
    assert f"{first} belongs to another run (precision is 'bf16' there" in sentence(
        RunFolder.read, run_path
    )


def test_what_parts_hold_moves_into_the_run_any_number_of_times(run_path: Path) -> None:
    arm = RunFolder.read(run_path).arms[0]
    path = hits_file(run_path, 0, arm)
    before = read_hits(path) if path.is_file() else None
    folders = split(run_path)
    for number, folder in enumerate(folders):
        (folder / "environment.json").write_text(json.dumps({"device": f"cpu:{number}"}))
        (folder / "log.txt").write_text(f"log of {number}\n")
    log = run_path / "log.txt"
    log.write_text("begun\n")
    fold_hits(run_path, folders)
    for _ in range(2):
        fold_records(run_path, folders)
    if before is not None:
        assert read_hits(path).keys() == before.keys()
    record = json.loads((run_path / "environment.json").read_text())
    devices = [record["device"], *(e.get("device") for e in record["earlier"])]
    assert devices.count("cpu:0") == devices.count("cpu:1") == 1
    assert log.read_text().startswith("begun\nlog of 0\nlog of 1\n")
    remove_parts(run_path)
    remove_parts(run_path)
    assert not [p for p in run_path.iterdir() if "parts" in p.name]


# Who may write ------------------------------------------------------------------------------------


def test_parts_share_a_folder_and_keep_others_from_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with shared(run), shared(run):
        with in_turn(run, "seed-0"), in_turn(run, "seed-1"):
            pass
        with pytest.raises(UserError, match="Another process is writing to"), locked(run):
            pass
        with locked(Shard(1, 2).folder(run)), locked(Shard(2, 2).folder(run)):
            pass
    (run / "config.yaml").write_text("format: 2\n")
    (run / ".parts.0123456789abcdef").mkdir()
    with locked(run):
        assert {p.name for p in run.iterdir()} == {".lock", "config.yaml", "parts"}
        with pytest.raises(UserError, match="Another process is writing to"), shared(run):
            pass
