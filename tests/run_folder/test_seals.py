"""Digests in a run folder: what was lost or changed is never taken as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fabricate import fabricate_run

from cl_lora.evaluation.scores import Score, ScoreTable
from cl_lora.run_folder.config_file import read_config, write_config
from cl_lora.run_folder.identity import take_threads
from cl_lora.run_folder.parts import Joined, Plan
from cl_lora.run_folder.reader import RunFolder, read_stages, read_stream
from cl_lora.run_folder.records import Account, Coefficient, Relation, Seal, Timing
from cl_lora.run_folder.results import Results
from cl_lora.run_folder.rows import COEFFICIENTS, RELATIONS, SEALS, TIMES
from cl_lora.run_folder.seals import is_table_intact, read_table, seal_of, timed, write_table
from cl_lora.support import files
from cl_lora.support.errors import UserError

CELLS = {stage: frozenset({(0, "accuracy"), (1, "accuracy")}) for stage in (0, 1)}


def unit(row: str, stage: int, value: float = 0.5) -> list[Score]:
    return [Score(0, row, stage, j, "accuracy", value) for j in range(2)]


def weights(row: str, stage: int) -> list[Coefficient]:
    return [Coefficient(0, row, stage, "all", i, 0.25 + i) for i in range(2)]


def cost(row: str, stage: int) -> list[Account]:
    return [Account(0, row, stage, "parameters", 100.0)]


def times(row: str, stage: int, value: float = 1.5) -> list[Timing]:
    return [timed(0, row, stage, "milliseconds", value)]


def results(folder: Path) -> Results:
    return Results(folder, ["a", "b"], CELLS)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Two rows at two stages; no test shares it."""
    made = results(tmp_path)
    for row in ("a", "b"):
        for stage in (0, 1):
            made.add(unit(row, stage), weights(row, stage), cost(row, stage), times(row, stage))
    return tmp_path


def done(folder: Path) -> list[tuple[str, int]]:
    made = results(folder)
    return [(row, stage) for row in "ab" for stage in (0, 1) if made.done(0, row, stage)]


ALL = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_what_was_measured_counts(measured: Path) -> None:
    assert done(measured) == ALL
    assert Joined(measured).broken == {}
    assert len(SEALS.read(measured / "seals.csv")) == 4


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("scores.csv", "0,a,1,1,accuracy,0.5,true\n", "0,a,1,1,accuracy,0.75,true\n"),
        ("scores.csv", "0,a,1,1,accuracy,0.5,true\n", ""),
        ("scores.csv", "0,a,1,1,", "1,a,1,1,"),
        ("coefficients.csv", "0,a,1,all,1,1.25\n", "0,a,1,all,1,1.2\n"),
        ("coefficients.csv", "0,a,1,all,1,1.25\n", ""),
        ("coefficients.csv", "0,a,1,all,1,", "0,a,1,all,2,"),
        ("accounts.csv", "0,a,1,parameters,100.0\n", "0,a,1,parameters,10.0\n"),
        ("accounts.csv", "0,a,1,parameters,100.0\n", ""),
        ("times.csv", "0,a,1,milliseconds,1.5,", "0,a,1,milliseconds,1.4,"),
        ("times.csv", "0,a,1,milliseconds,1.5,", "0,a,1,seconds,1.5,"),
        ("seals.csv", "0,a,1,", "0,a,1,0"),
    ],
)
def test_a_unit_of_which_a_row_is_lost_or_changed_is_measured_again(
    measured: Path, name: str, old: str, new: str
) -> None:
    path = measured / name
    text = path.read_text()
    before = {p.name: p.read_bytes() for p in measured.iterdir()}
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    made = results(measured)
    assert [u for u in ALL if made.done(0, *u)] == [("a", 0), ("b", 0), ("b", 1)]
    with made.writing():
        made.add(unit("a", 1), weights("a", 1), cost("a", 1), times("a", 1))
    assert {p.name: p.read_bytes() for p in measured.iterdir()} == before
    assert done(measured) == ALL


def test_another_time_is_no_other_measurement(measured: Path) -> None:
    """What a clock says is in no seal; without it nothing is measured again."""
    path = measured / "times.csv"
    assert {t.value for t in TIMES.read(path)} == {1.5}
    path.write_text(TIMES.text(times("a", 1, 7.5)))
    assert done(measured) == ALL
    path.unlink()
    assert done(measured) == ALL


def test_times_go_with_their_rows(measured: Path) -> None:
    made = results(measured)
    made.forget(["a"])
    assert {t.arm for t in TIMES.read(measured / "times.csv")} == {"b"}


@pytest.mark.parametrize("name", ["coefficients.csv", "accounts.csv", "scores.csv"])
def test_without_a_table_everything_is_measured_again(measured: Path, name: str) -> None:
    (measured / name).unlink()
    assert done(measured) == []


def test_a_folder_of_an_earlier_version_is_taken_as_it_is_and_sealed(measured: Path) -> None:
    (measured / "seals.csv").unlink()
    (measured / "coefficients.csv").unlink()
    made = results(measured)
    assert [u for u in ALL if made.done(0, *u)] == ALL
    made.write()
    assert len(SEALS.read(measured / "seals.csv")) == 4
    assert done(measured) == ALL


def test_rows_that_belong_to_nothing_do_not_stay(measured: Path) -> None:
    before = {p.name: p.read_bytes() for p in measured.iterdir()}
    for name, row in (
        ("scores.csv", "0,ghost,0,0,accuracy,0.5,true\n"),
        ("coefficients.csv", "0,ghost,0,all,0,1.0\n"),
        ("times.csv", "0,ghost,0,milliseconds,1.0,0\n"),
    ):
        path = measured / name
        path.write_text(path.read_text() + row)
    with results(measured).writing():
        pass
    assert {p.name: p.read_bytes() for p in measured.iterdir()} == before


@pytest.mark.parametrize("name", ["scores.csv", "coefficients.csv", "accounts.csv"])
def test_line_ends_of_other_programs_become_ours(measured: Path, name: str) -> None:
    before = (measured / name).read_bytes()
    (measured / name).write_bytes(before.replace(b"\n", b"\r\n"))
    made = results(measured)
    assert [u for u in ALL if made.done(0, *u)] == ALL
    with made.writing():
        pass
    assert (measured / name).read_bytes() == before


def test_a_kill_between_seals_and_scores_leaves_what_was_there(measured: Path) -> None:
    """Seals of units whose scores never came say nothing of the others."""
    path = measured / "scores.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("0,b,1")))
    assert done(measured) == ALL[:3]


def test_rows_that_are_forgotten_leave_no_seal(measured: Path) -> None:
    made = results(measured)
    made.forget(["a"])
    assert {s.arm for s in SEALS.read(measured / "seals.csv")} == {"b"}
    assert Joined(measured).broken == {}


def test_every_value_counts_and_the_order_of_scores_does_not() -> None:
    first = seal_of(unit("a", 0), weights("a", 0), cost("a", 0))
    assert seal_of(reversed(unit("a", 0)), weights("a", 0), cost("a", 0)) == first
    others = {
        seal_of(unit("a", 0, 0.5000000000000001), weights("a", 0), cost("a", 0)),
        seal_of(unit("a", 0)[:1], weights("a", 0), cost("a", 0)),
        seal_of(unit("a", 0), weights("a", 0)[:1], cost("a", 0)),
        seal_of(unit("a", 0), weights("a", 0)[::-1], cost("a", 0)),
        seal_of(unit("a", 0), weights("a", 0), []),
    }
    assert len({first, *others}) == 6


def test_parts_are_checked_by_their_own_seals(measured: Path) -> None:
    part = measured / "parts" / "shard-1-of-1"
    made = results(part)
    made.add([replace(s, seed=1) for s in unit("a", 0)])
    text = (part / "scores.csv").read_text()
    assert len(Joined(measured, [part]).scores()) == 10
    (part / "scores.csv").write_text(text.replace("0.5", "0.25", 1))
    joined = Joined(measured, [part])
    assert len(joined.scores()) == 8
    assert joined.broken == {(1, "a", 0): part}


# Reading ---------------------------------------------------------------------------------------


def sealed_run(folder: Path) -> Path:
    """A fabricated run whose units are sealed."""
    fabricate_run(folder)
    units: dict[tuple[int, str, int], list[Score]] = {}
    for s in ScoreTable.read(folder / "scores.csv"):
        units.setdefault((s.seed, s.arm, s.stage), []).append(s)
    rows: dict[tuple[int, str, int], list[Coefficient]] = {}
    for c in COEFFICIENTS.read(folder / "coefficients.csv"):
        rows.setdefault((c.seed, c.arm, c.stage), []).append(c)
    seals = [Seal(*u, seal_of(found, rows.get(u, []), [])) for u, found in units.items()]
    (folder / "seals.csv").write_text(SEALS.text(seals))
    return folder


def test_a_report_is_not_made_of_what_changed(tmp_path: Path) -> None:
    folder = sealed_run(tmp_path / "run")
    assert not RunFolder.read(folder).lost_units
    path = folder / "coefficients.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"does not hold what was measured of .*run the same comm"):
        RunFolder.read(folder)
    assert RunFolder.read(folder, allow_unfinished=True).lost_units


def test_nor_of_what_lacks_a_unit_in_the_middle(tmp_path: Path) -> None:
    folder = sealed_run(tmp_path / "run")
    scores = [s for s in ScoreTable.read(folder / "scores.csv") if s.stage != 1]
    ScoreTable(scores).write(folder / "scores.csv")
    with pytest.raises(UserError, match=r"and \d+ more: rows of scores\.csv"):
        RunFolder.read(folder)


# Records ---------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run folder whose configuration is sealed."""
    folder = fabricate_run(tmp_path / "run")
    write_config(folder, replace(read_config(folder), cpu_threads=3))
    return folder


def test_a_configuration_is_read_as_it_was_written(recorded: Path) -> None:
    config = read_config(recorded)
    assert config.cpu_threads == 3
    assert "digest" not in config.settings
    text = (recorded / "config.yaml").read_text()
    write_config(recorded, config)
    assert (recorded / "config.yaml").read_text() == text
    assert text.splitlines()[1].startswith("digest: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("coefficients: 1\n", "coefficients: 2\n"),
        ("lr: 0.0001", "lr: 0.0002"),
        ("pacs_trial", "pacs_trail"),
        ("cpu_threads: 3", "cpu_threads: 4"),
    ],
)
def test_a_configuration_that_was_edited_is_refused(recorded: Path, old: str, new: str) -> None:
    path = recorded / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match="not those that were written; restore it, or run into a n"):
        read_config(recorded)


def test_the_order_of_arms_is_part_of_the_configuration(recorded: Path) -> None:
    path = recorded / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["arms"] = dict(reversed(values["arms"].items()))
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UserError, match="not those that were written"):
        read_config(recorded)


def test_a_configuration_cut_at_any_line_is_refused(recorded: Path) -> None:
    path = recorded / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(UserError) as caught:
            read_config(recorded)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00x", b"2001-99-99\n", b"[" * 3000, b"{? {a: b} : c}\n", b"- 1\n"]
)
def test_what_is_no_configuration_is_one_sentence(recorded: Path, data: bytes) -> None:
    (recorded / "config.yaml").write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_config(recorded)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["stream.json", "environment.json"])
def test_a_record_that_was_edited_is_refused(recorded: Path, name: str) -> None:
    path = recorded / name
    record = json.loads(path.read_text())
    files.write_json(path, files.sealed(record))
    assert RunFolder.read(recorded).environment == RunFolder.read(recorded).environment
    assert "digest" not in RunFolder.read(recorded).environment
    key = "fingerprint" if name == "stream.json" else "torch"
    path.write_text(path.read_text().replace(record[key], "9.9.9"))
    with pytest.raises(UserError, match=rf"{name} is damaged: .*; delete it and run the command"):
        RunFolder.read(recorded)


def test_stages_that_nothing_else_tells_are_refused(recorded: Path) -> None:
    path = recorded / "stream.json"
    assert read_stages(path) == read_stream(path).stages
    path.write_text("{}")
    with pytest.raises(UserError, match=r"nothing else says what the stages .* delete both and"):
        read_stages(path)


def test_a_plan_that_was_edited_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    Plan({"seeds": [0]}, (frozenset({(0, "a", 1)}),)).write(tmp_path)
    path = tmp_path / "parts" / "plan.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(UserError, match=r"plan\.json is damaged .*without --shard"):
        Plan.read(tmp_path)


# Other tables ----------------------------------------------------------------------------------


def test_a_table_that_changed_is_computed_again(tmp_path: Path) -> None:
    rows = [Relation(0, "cosine", 0, 1, 0.5), Relation(0, "cosine", 0, 2, 0.25)]
    assert read_table(tmp_path, RELATIONS) == []
    write_table(tmp_path, RELATIONS, rows)
    assert read_table(tmp_path, RELATIONS) == rows
    path = tmp_path / "relations.csv"
    text = path.read_text()
    for damaged in (text.replace("0.25", "0.75"), text.rpartition("0,cosine")[0], ""):
        path.write_text(damaged)
        assert read_table(tmp_path, RELATIONS) == []
        assert not is_table_intact(tmp_path, "relations.csv")
    path.unlink()
    assert not is_table_intact(tmp_path, "relations.csv")
    path.write_text(text)
    (tmp_path / "tables.json").write_text("[")
    assert read_table(tmp_path, RELATIONS) == []
    (tmp_path / "tables.json").unlink()
    assert read_table(tmp_path, RELATIONS) == rows  # of an earlier version


def test_a_report_does_not_show_a_table_that_changed(run_path: Path) -> None:
    write_table(run_path, RELATIONS, [Relation(0, "cosine", 0, 1, 0.5)])
    assert len(RunFolder.read(run_path).relations) == 1
    path = run_path / "relations.csv"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match=r"relations\.csv is damaged: .*; delete it and run"):
        RunFolder.read(run_path)


# Threads ---------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_folder_is_computed_with_one_number_of_threads(tmp_path: Path) -> None:
    take_threads(tmp_path, None, None)
    take_threads(tmp_path, None, 2)
    take_threads(tmp_path, 2, 2)
    assert torch.get_num_threads() == 2
    with pytest.raises(UserError, match=r"computed with 1 CPU thread but threads=2.*threads=1"):
        take_threads(tmp_path, 1, 2)
    assert torch.get_num_threads() == 2
    take_threads(tmp_path, 1, None)
    assert torch.get_num_threads() == 1
