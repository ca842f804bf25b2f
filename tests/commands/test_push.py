"""An exported folder is handed to a hub on the loopback address: as one commit, or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cl_lora.cli import main
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import execute

TOKEN = "hf_secret_of_the_tests"
RUN = (
    *("model.img_size=16", "precision=fp32", "device=cpu", "report=false", "seeds=[0]"),
    *("strategy.epochs=1", "strategy.batch_size=8", "strategy.rank=2", "strategy.targets=[q]"),
    *("benchmark.classes=2", "benchmark.styles=[photo,sketch]", "benchmark.samples_per_class=2"),
    *("benchmark.test_samples_per_class=2", "references=[]", "arms=none"),
    "+arms.half={method: task_arithmetic, coefficients: 0.5}",
)


class Hub(ThreadingHTTPServer):
    """What of the hub a push calls: repositories, files that are large, commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.calls: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        known = name in self.server.repositories
        found = {"id": name, "private": self.server.repositories.get(name)}
        self._answer(found if known else {"error": f"no {name}"}, 200 if known else 404)

    def do_PUT(self) -> None:
        data = self._body()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        hub = self.server
        hub.calls.append(self.path)
        hub.tokens.add(self.headers.get("authorization"))
        for part, status in hub.refuse.items():
            if part in self.path:
                self._answer({"error": f"refused by the tests: {part}"}, status)
                return
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            known = name in hub.repositories
            hub.repositories.setdefault(name, given.get("visibility") == "private")
            self._answer({"url": f"{hub.url}/{name}"}, 409 if known else 200)
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/put/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._answer(self._commit([json.loads(line) for line in body.splitlines()]))
        else:
            self._answer({"error": f"the tests know no {self.path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        files: dict[str, bytes] = {}
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.commits.append((message, files))
        url = f"{self.server.url}/me/half/commit/{'1' * 40}"
        return {"commitUrl": url, "commitOid": "1" * 40, "success": True}

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    point_at(monkeypatch, server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does where it is set before the client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # Large files by HTTP: the chunks of Xet Storage go to a server of their own.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(compose_config([f"run_dir={tmp_path_factory.mktemp('push') / 'run'}", *RUN]))


def push(run: Path, out: Path, repository: str, *more: str) -> int:
    return main(
        ["export", str(run), "--arm", "half", "--out", str(out), "--push", repository, *more]
    )


def test_the_whole_folder_is_one_commit(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    assert push(run, out, "me/half") == 0
    said = capsys.readouterr()
    assert f"Hub:     {hub.url}/me/half" in said.out
    ((message, files),) = hub.commits
    assert message.startswith("cl-lora export of half, stage sketch, seed 0 of shapes-")
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"README.md", "adapter_model.safetensors", "heads.safetensors"} <= files.keys()
    assert hub.large.keys() == {
        hashlib.sha256(files[name]).hexdigest() for name in files if name.endswith(".safetensors")
    }
    assert hub.repositories == {"me/half": False}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in said.out + said.err


def test_a_repository_that_is_there_gets_another_commit(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    assert push(run, tmp_path / "one", "half", "--private") == 0
    assert push(run, tmp_path / "two", "half", "--private") == 0
    assert hub.repositories == {"me/half": True}
    assert len(hub.commits) == 2


def test_what_is_to_be_private_is_not_made_public(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["me/half"] = False
    assert push(run, tmp_path / "out", "me/half", "--private") == 2
    assert "me/half is there and public, so nothing was pushed" in capsys.readouterr().err
    assert not hub.commits
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("/api/repos/create", 401, "the token is not accepted: run `hf auth login` again"),
        ("/api/repos/create", 403, "the token may not write there"),
        ("/preupload/", 400, "try again later"),
        ("/commit/", 403, "the token may not write there"),
    ],
)
def test_a_hub_that_refuses_leaves_the_export(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    part: str,
    status: int,
    words: str,
) -> None:
    hub.refuse[part] = status
    out = tmp_path / "half"
    assert push(run, out, "me/half") == 2
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()[-1:]
    assert line.startswith(f"cl-lora: {hub.url} did not take the folder for me/half (")
    assert f"the export itself is whole in {out}" in line
    assert words in line
    assert TOKEN not in said.out + said.err
    assert not hub.commits
    assert (out / "heads.safetensors").exists()


def test_a_hub_that_is_not_there_leaves_the_export(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")
    assert push(run, tmp_path / "half", "me/half") == 2
    assert "http://127.0.0.1:9 did not take the folder" in capsys.readouterr().err
    assert (tmp_path / "half" / "README.md").exists()


@pytest.mark.parametrize(
    ("repository", "more", "words"),
    [
        ("a/b/c", (), "Expected --push to be NAME or OWNER/NAME, of letters"),
        ("me/my model", (), "got 'me/my model'; choose another name"),
        ("", (), "got ''"),
        ("-half", (), "got '-half'"),
    ],
)
def test_a_bad_name_is_said_before_anything_is_written(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    repository: str,
    more: tuple[str, ...],
    words: str,
) -> None:
    command = ["export", str(run), "--arm", "half", "--out", str(tmp_path / "x")]
    assert main([*command, f"--push={repository}", *more]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not hub.calls


def test_without_token_or_network_nothing_is_written(
    run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert push(run, tmp_path / "x", "me/half") == 2
    assert "but HF_HUB_OFFLINE is set; unset it" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, tmp_path / "x", "me/half") == 2
    assert "but there is no token; run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert not hub.calls


def test_private_says_nothing_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x")
    assert main(["export", str(run), "--arm", "half", "--out", out, "--private"]) == 2
    assert "give --push REPO too" in capsys.readouterr().err
