import json
import math

import numpy as np
import pytest
import yaml
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_run

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder.layout import FORMAT
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.records import AdapterFact, Relation, StreamRecord
from cl_lora.run_folder.rows import COEFFICIENTS, FACTS, RELATIONS
from cl_lora.support.errors import UserError


def test_everything_is_read(run_path):
    run = RunFolder.read(run_path)
    assert run.name == "pacs_trial"
    assert run.seeds == (0, 1)
    assert run.arms == tuple(ARMS)
    assert run.references == REFERENCES
    assert run.experiences == DOMAINS
    assert [e.test for e in run.stream.experiences] == [300] * 4
    assert run.settings("ties_w1")["density"] == 0.2
    assert run.settings("joint") == {}
    assert run.environment["torch"] == "2.13.0"
    assert run.scores.to_csv() == (run_path / "scores.csv").read_text()
    assert tuple(run.coefficients.columns) == COEFFICIENTS.columns
    assert run.coefficients["value"].dtype == np.float64
    fixed = run.coefficients[run.coefficients["arm"] == "ties_w1"]
    assert set(fixed["value"]) == {1.0}
    assert set(run.coefficients["group"]) == {"all"}


def test_training_curves_of_every_bank(run_path):
    curves = RunFolder.read(run_path).curves
    found = [(c.seed, c.bank, c.experience, c.name) for c in curves]
    assert found == [
        (seed, bank, i, name)
        for seed in (0, 1)
        for bank, names in (("fresh", DOMAINS), ("joint", ["all"]), ("sequential", DOMAINS))
        for i, name in enumerate(names)
    ]
    assert curves[0].epochs == (0, 1, 2, 3, 4)
    assert len(curves[0].losses) == len(curves[0].values) == 5
    assert curves[0].metric == "accuracy"


def test_what_a_killed_process_left_is_ignored(run_path):
    bank = run_path / "adapters" / "seed-0"
    before = len(RunFolder.read(run_path).curves)
    (bank / ".04-extra.a1b2").mkdir()
    (bank / "notes").mkdir()
    (run_path / "adapters" / "cache").mkdir()
    (run_path / "adapters" / "readme.txt").write_text("x")
    assert len(RunFolder.read(run_path).curves) == before


def test_what_is_optional_may_be_missing(run_path):
    (run_path / "coefficients.csv").unlink()
    (run_path / "environment.json").unlink()
    path = run_path / "adapters" / "seed-0" / "00-photo" / "training.json"
    path.write_text(json.dumps({"loss": [{"epoch": 0, "loss": 1.0}]}))
    run = RunFolder.read(run_path)
    assert run.coefficients.empty
    assert tuple(run.coefficients.columns) == COEFFICIENTS.columns
    assert run.environment == {}
    assert run.curves[0].metric == ""
    assert math.isnan(run.curves[0].values[0])


def message(path, **options):
    with pytest.raises(UserError) as caught:
        RunFolder.read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_run_folder(tmp_path):
    assert "none is missing; give the folder" in message(tmp_path / "none")
    assert "is no run folder: it has no config.yaml" in message(tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file" in message(tmp_path / "file")


def test_another_version(run_path):
    config = yaml.safe_load((run_path / "config.yaml").read_text())
    for version in (1, FORMAT + 1, None):
        (run_path / "config.yaml").write_text(yaml.safe_dump({**config, "format": version}))
        text = message(run_path)
        assert "written by another version" in text
        assert f"expected format {FORMAT} in config.yaml but got {version}" in text


def test_unfinished_says_what_is_there_and_what_is_missing(run_path):
    whole = RunFolder.read(run_path).scores
    part = [s for s in whole if not (s.seed == 1 and s.stage == 3 and s.arm != "last")]
    ScoreTable(part).write(run_path / "scores.csv")
    text = message(run_path)
    # base is scored under the head of every stage; last is complete.
    assert "8 of 8 adapters are trained and 9 of 16 arms are scored" in text
    assert "missing 'ta_w1' of seed 1, 'ta_adaptive_b3' of seed 1" in text
    assert "and 4 more; run the same command again" in text
    assert len(RunFolder.read(run_path, allow_unfinished=True).missing()) == 7


def test_unfinished_before_any_score(run_path):
    (run_path / "scores.csv").unlink()
    assert "8 of 8 adapters are trained and 0 of 16 arms" in message(run_path)
    assert len(RunFolder.read(run_path, allow_unfinished=True).scores) == 0
    (run_path / "stream.json").unlink()
    assert "no stream.json, so nothing was trained yet" in message(run_path, allow_unfinished=True)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("config.yaml", "a: [", "config.yaml is damaged (while parsing"),
        ("config.yaml", "", "it holds no settings"),
        ("config.yaml", "{format: 2, name: a}", "expected a dict as 'identity' but got None"),
        ("stream.json", "{", "stream.json is damaged"),
        ("stream.json", "[]", "stream.json but got list; delete it and run the command again"),
        ("stream.json", "{}", "'tasks' is missing"),
        ("environment.json", "{", "environment.json is damaged"),
        ("coefficients.csv", "seed,arm\n0,a\n", "missing columns stage, group, adapter, value"),
        (
            "coefficients.csv",
            ",".join(COEFFICIENTS.columns) + "\n0,a,0,all,0,high\n",
            "coefficients.csv is damaged",
        ),
        ("coefficients.csv", "", "coefficients.csv is damaged"),
        # Cut within 0.8125: still a number, but none that was measured.
        (
            "coefficients.csv",
            ",".join(COEFFICIENTS.columns) + "\n0,ties_w1,0,all,0,0.8",
            "its last line is cut off",
        ),
        (
            "coefficients.csv",
            ",".join(COEFFICIENTS.columns) + "\n0,ties_w1,4,all,0,1.0\n",
            "rows of other experiences than the 4 of the stream",
        ),
        ("scores.csv", "seed\n", "scores.csv, line 1: missing columns arm"),
        ("adapters/seed-0/00-photo/training.json", '{"loss": [{"epoch": 0}]}', "'loss' is no list"),
        ("adapters/seed-0/00-photo/training.json", '{"loss": [3]}', "'loss' is no list"),
    ],
)
def test_damage_is_one_sentence_with_file_and_remedy(run_path, file, text, expected):
    (run_path / file).write_text(text)
    told = message(run_path)
    assert expected in told
    assert file.rsplit("/", maxsplit=1)[-1] in told
    assert "run" in told.rsplit(";", maxsplit=1)[-1]


def shortened(stream, experiences, stages):
    """Return stream.json with the first experiences and the first stages after training."""
    kept = [
        {**s, "evaluated": s["evaluated"][:experiences]}
        for s in stream["stages"]
        if s["index"] < stages
    ]
    return {**stream, "experiences": stream["experiences"][:experiences], "stages": kept}


@pytest.mark.parametrize(
    ("experiences", "stages", "expected"),
    [
        (2, 2, "scores on 3 experiences but stream.json lists 2 experiences"),
        (3, 2, "scores on 3 stages but stream.json lists 2 stages"),
    ],
)
def test_scores_of_another_stream(tmp_path, experiences, stages, expected):
    path = fabricate_run(tmp_path / "run", domains=("a", "b", "c"))
    stream = json.loads((path / "stream.json").read_text())
    (path / "stream.json").write_text(json.dumps(shortened(stream, experiences, stages)))
    assert expected in message(path)


def test_coefficients_of_a_stage_that_is_none(tmp_path):
    path = fabricate_run(tmp_path / "run", domains=("a", "b", "c"))
    (path / "coefficients.csv").write_text(
        ",".join(COEFFICIENTS.columns) + "\n0,ties_w1,0,all,3,1.0\n"
    )
    assert "rows of other experiences than the 3" in message(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("experiences", [], "it lists no experiences"),
        ("stages", [], "it lists no stages"),
        ("stages", lambda stages: stages[:1], "it lists no stages"),
        ("experiences", lambda all_: all_[:2], "it lists stages of other experiences"),
        ("tasks", [], "it lists experiences of unknown tasks"),
        ("protocol", {"name": "prefixes", "ordered": "yes"}, "ordered is neither true nor false"),
        ("protocol", {"name": "prefixes"}, "'ordered' is missing"),
        ("backbone", "beef", "backbone is no object"),
        ("experiences", [{"name": "a"}], "'task' is missing"),
        ("stages", [3], "stream.json is damaged"),
    ],
)
def test_a_stream_that_contradicts_itself(run_path, key, value, expected):
    path = run_path / "stream.json"
    stream = json.loads(path.read_text())
    stream[key] = value(stream[key]) if callable(value) else value
    path.write_text(json.dumps(stream))
    assert expected in message(run_path)


def test_a_stream_is_read_as_it_was_written(run_path):
    stream = RunFolder.read(run_path).stream
    assert StreamRecord.from_record(json.loads(json.dumps(stream.record()))) == stream
    assert stream.names == DOMAINS
    assert list(stream.metrics) == ["accuracy", "f1"]
    assert stream.scored_by("accuracy") == (0, 1, 2, 3)
    assert stream.scored_by("rmse") == ()
    shape = stream.shape("accuracy")
    assert (shape.stages, shape.experiences, shape.ordered) == (4, 4, True)


def test_arms_that_the_configuration_does_not_name_are_left_out(run_path):
    config = yaml.safe_load((run_path / "config.yaml").read_text())
    del config["arms"]["ta_adaptive_b3"]
    (run_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = RunFolder.read(run_path)
    assert "ta_adaptive_b3" not in run.scores.arms
    assert "ta_adaptive_b3" not in set(run.coefficients["arm"])
    assert run.scores.arms == ("ta_w1", "ties_w1", *run.references)


def test_relations_and_facts_of_adapters(run_path):
    run = RunFolder.read(run_path)
    assert run.relations.empty
    assert tuple(run.relations.columns) == RELATIONS.columns
    assert tuple(run.adapter_facts.columns) == FACTS.columns
    (run_path / "relations.csv").write_text(RELATIONS.text([Relation(0, "cka", 0, 3, 0.5)]))
    (run_path / "adapter_facts.csv").write_text(FACTS.text([AdapterFact(0, 3, "norm", 2.0)]))
    run = RunFolder.read(run_path)
    assert run.relations.to_dict("records") == [
        {"seed": 0, "measure": "cka", "first": 0, "second": 3, "value": 0.5}
    ]
    assert run.adapter_facts["value"].tolist() == [2.0]
    (run_path / "relations.csv").write_text(RELATIONS.text([Relation(0, "cka", 0, 4, 0.5)]))
    assert "relations.csv is damaged: it has rows of other experiences" in message(run_path)
