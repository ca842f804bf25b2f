"""What MLflow's local store and W&B's offline files hold of a run, read back as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fabricate import fabricate_run
from tracking_doubles import wandb_records

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.run_folder.reader import RunFolder
from cl_lora.tracking import connected

ONE = {"ties_w1": {"method": "ties", "density": 0.2, "coefficients": 1.0}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One arm and one baseline, two seeds, with a report and a figure."""
    folder = fabricate_run(tmp_path / "runs" / "trial", arms=ONE, references=("base",))
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "figures").mkdir()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "figures" / "final.png")
    return folder


def send(tracker: str, folder: Path) -> None:
    with connected(tracker) as tracking:
        tracking.begun(folder)
        tracking.finished(folder)
    assert all(sender.works for sender in tracking.senders)


def scores_of(folder: Path, seed: int, arm: str) -> dict[str, dict[int, float]]:
    run = RunFolder.read(folder)
    found: dict[str, dict[int, float]] = {}
    for s in run.scores:
        if (s.seed, s.arm) == (seed, arm):
            name = f"{s.metric}/{run.experiences[s.evaluated]}"
            found.setdefault(name, {})[s.stage + 1] = s.value
    return found


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")


def test_mlflow_holds_parameters_scores_results_and_files(run: Path, mlflow_client: Any) -> None:
    send("mlflow", run)
    experiment = mlflow_client.get_experiment_by_name("cl-lora")
    runs = mlflow_client.search_runs([experiment.experiment_id])
    by_name = {found.info.run_name: found for found in runs}
    names = [f"{arm} (seed {seed})" for arm in ("ties_w1", "base") for seed in (0, 1)]
    assert by_name.keys() == {"trial", *names}
    overview = by_name["trial"]
    for name in names:
        assert by_name[name].data.tags["mlflow.parentRunId"] == overview.info.run_id
        assert by_name[name].info.status == "FINISHED"
    found = by_name["ties_w1 (seed 1)"]
    assert found.data.params["arm.method"] == "ties"
    assert found.data.params["strategy.rank"] == "8"
    assert found.data.params["identity.data"] == "f00d"
    assert found.data.tags["run_folder"] == str(run)
    assert "result/average" in found.data.metrics
    for name, values in scores_of(run, 1, "ties_w1").items():
        history = mlflow_client.get_metric_history(found.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values
        assert len(history) == len(values)
    files = [f.path for f in mlflow_client.list_artifacts(overview.info.run_id)]
    assert files == ["config.yaml", "figures", "report.html", "scores.csv", "stream.json"]
    (figure,) = mlflow_client.list_artifacts(overview.info.run_id, "figures")
    assert figure.path == "figures/final.png"

    # Once more: nothing is sent twice, and what was deleted is sent again.
    mlflow_client.delete_run(by_name["base (seed 0)"].info.run_id)
    kept = json.loads((run / "tracking.json").read_text())
    (place,) = kept["mlflow"]
    kept["mlflow"][place]["seed-0/base"]["stages"] = []
    kept["mlflow"][place]["seed-1/ties_w1"]["stages"].remove(2)
    (run / "tracking.json").write_text(json.dumps(kept))
    send("mlflow", run)
    runs = mlflow_client.search_runs([experiment.experiment_id])
    assert sorted(r.info.run_name for r in runs) == sorted(by_name)
    again = next(r for r in runs if r.info.run_name == "base (seed 0)")
    assert again.info.run_id != by_name["base (seed 0)"].info.run_id
    photo = mlflow_client.get_metric_history(again.info.run_id, "accuracy/photo")
    assert len(photo) == 5
    same = mlflow_client.get_metric_history(found.info.run_id, "accuracy/photo")
    assert len({metric.step for metric in same}) == 5


def test_mlflow_keeps_passwords_out_of_the_run_folder(
    run: Path, mlflow_client: Any, tmp_path: Path
) -> None:
    from cl_lora.tracking.tracker import without_credentials

    assert without_credentials("https://me:secret@host:5000/a?k=secret") == "https://host:5000/a"
    assert without_credentials("sqlite:///mlflow.db") == "sqlite:///mlflow.db"
    send("mlflow", run)
    (place,) = json.loads((run / "tracking.json").read_text())["mlflow"]
    assert place == f"file:{tmp_path / 'mlruns'} experiment cl-lora"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wandb = pytest.importorskip("wandb")
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path / "wandb_here"),
        "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_DATA_DIR": str(tmp_path / "data"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_PROJECT": "of_the_tests",
    }.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "wandb_here").mkdir()
    wandb.teardown()  # what was set up before has read another environment
    return tmp_path / "wandb_here"


def read_back(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the offline files hold of each run by its name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        of_run: dict[str, Any] = {"rows": [], "summary": {}, "config": {}, "files": []}
        name = ""
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                of_run |= {"id": record.run.run_id, "group": record.run.run_group}
                of_run |= {"type": record.run.job_type, "project": record.run.project}
                of_run["config"] |= {
                    u.key: json.loads(u.value_json) for u in record.run.config.update
                }
            elif kind == "history":
                row = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
                of_run["rows"].append({k: json.loads(v) for k, v in row.items()})
            elif kind == "summary":
                for u in record.summary.update:
                    of_run["summary"][u.key or "/".join(u.nested_key)] = json.loads(u.value_json)
            elif kind == "exit":
                of_run["exit"] = record.exit.exit_code
            elif kind == "artifact" or (
                kind == "request" and record.request.HasField("log_artifact")
            ):
                artifact = (
                    record.artifact if kind == "artifact" else record.request.log_artifact.artifact
                )
                of_run["files"] += [entry.path for entry in artifact.manifest.contents]
        found.setdefault(name, {"parts": []})["parts"].append(of_run)
    return found


def test_wandb_holds_parameters_scores_results_and_files(run: Path, offline: Path) -> None:
    table = ScoreTable.read(run / "scores.csv")
    ScoreTable(s for s in table if s.stage < 3).write(run / "scores.csv", ["ties_w1", "base"])
    with connected("wandb") as tracking:  # a command that does not come to its end
        tracking.begun(run)
    table.write(run / "scores.csv", ["ties_w1", "base"])
    send("wandb", run)
    found = read_back(offline)
    names = {f"{arm} (seed {seed})" for arm in ("ties_w1", "base") for seed in (0, 1)}
    assert found.keys() == {"trial", *names}
    first, second = found["ties_w1 (seed 1)"]["parts"]
    assert first["id"] == second["id"]
    assert (first["exit"], second["exit"]) == (1, 0)
    assert first["config"]["arm"]["method"] == "ties"
    assert first["config"]["strategy"]["rank"] == 8
    assert first["config"]["identity"]["data"] == "f00d"
    assert first["config"]["run_folder"] == str(run)
    assert (first["group"], first["type"], first["project"]) == ("trial", "arm", "of_the_tests")
    assert [row["stage"] for row in first["rows"]] == [0, 1, 2, 3]
    assert [row["stage"] for row in second["rows"]] == [4]
    rows = [*first["rows"], *second["rows"]]
    for name, values in scores_of(run, 1, "ties_w1").items():
        assert {row["stage"]: row[name] for row in rows} == values
    assert "result/average" in second["summary"]
    files = [path for part in found["trial"]["parts"] for path in part["files"]]
    assert {"report.html", "figures/final.png", "scores.csv", "config.yaml"} <= set(files)
    assert any(
        "figures/final/path" in row for part in found["trial"]["parts"] for row in part["rows"]
    )
