"""What is wrong with a tracker is one sentence, exit 2, before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from tracking_doubles import RememberingTracker

from cl_lora.cli import main
from cl_lora.support.errors import UserError
from cl_lora.tracking import TRACKERS, check, names_of, register_tracker

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command into a folder, which must not come to be."""

    def refused(*given: str) -> str:
        folder = tmp_path / "run"
        began = time.monotonic()
        assert main(["run", *tiny_run.overrides(folder, *given)]) == 2
        assert time.monotonic() - began < 30
        assert not folder.exists()
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("cl-lora: ")]
        return line

    return refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tracker=mlfow", "Unknown tracker 'mlfow': did you mean 'mlflow'?"),
        ("tracker=[wandb,weights]", "Unknown tracker 'weights': known: mlflow, wandb"),
        ("tracker=[wandb,wandb]", "A tracker is named twice in tracker=['wandb', 'wandb']"),
        ("tracker=5", "Expected tracker to be a list, as [A,B], but got 5"),
        ("tracker=[5]", "Expected tracker[0] to be a text but got 5"),
    ],
)
def test_an_unknown_tracker(said: Any, given: str, words: str) -> None:
    assert words in said(given)


def test_an_unknown_tracker_of_a_report(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_path), "--tracker", "wandbb"]) == 2
    assert "did you mean 'wandb'?" in capsys.readouterr().err
    assert not (run_path / "report.html").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_names_the_extra(
    said: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    hidden = ModuleSpec(name, None)  # a folder ./wandb is found as well, and is no package
    for found in (None, hidden):

        def missing(module: str, package: str | None = None, found: Any = found) -> Any:
            return found if module == name else find(module, package)

        monkeypatch.setattr("cl_lora.tracking.tracker.importlib.util.find_spec", missing)
        assert said(f"tracker={name}").endswith(
            f"tracker={name} sends by the package {name}, which is not installed; pip install "
            f"'cl-lora[{name}]', or leave tracker out"
        )


def test_mlflow_without_its_server(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    line = said("tracker=mlflow")
    assert f"The MLflow server at {NOWHERE} does not answer (" in line
    assert "`cl-lora report RUN --tracker mlflow` sends a finished run later" in line
    assert "secret" not in line


def test_mlflow_that_cannot_be_used(
    said: Any, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    server.status = 403
    assert f"MLflow at {server.url} cannot be used (" in said("tracker=mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    assert "MLflow at nonsense://x cannot be used (" in said("tracker=mlflow")


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    from cl_lora.tracking.tracker import answers

    monkeypatch.setattr("cl_lora.tracking.tracker.PATIENCE_S", 0.2)
    server.hang = 2.0
    began = time.monotonic()
    assert "timed out" in answers(server.url)
    assert time.monotonic() - began < 1.5


class Server(ThreadingHTTPServer):
    """Answers everything with one status."""

    status, hang = 404, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        time.sleep(self.server.hang)
        data = json.dumps({"error_code": "PERMISSION_DENIED", "message": "not you"}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    wandb = pytest.importorskip("wandb")
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": NOWHERE,
        "WANDB_CONFIG_DIR": str(tmp_path / "config"),
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(key, value)
    wandb.teardown()
    yield wandb
    wandb.teardown()


def test_wandb_online_without_login(said: Any, online: Any) -> None:
    assert said("tracker=wandb").endswith(
        f"tracker=wandb has no login for {NOWHERE}; run `wandb login`, set WANDB_API_KEY, set "
        "WANDB_MODE=offline, or leave tracker out"
    )


def test_wandb_online_without_its_server(
    said: Any, online: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    line = said("tracker=wandb")
    assert f"The W&B server at {NOWHERE} does not answer (" in line
    assert key not in line


def test_several_jobs_are_checked_first(said: Any) -> None:
    assert "Unknown tracker 'nothing'" in said("--multirun", "strategy.rank=2,4", "tracker=nothing")


def test_names_are_ones_own() -> None:
    class Another(RememberingTracker):
        name = "mlflow"

    with pytest.raises(UserError, match="'mlflow' is registered already"):
        register_tracker(Another)
    assert names_of(None) == ()
    assert names_of("wandb") == ("wandb",)
    check(())
    assert TRACKERS.keys() >= {"mlflow", "wandb"}
