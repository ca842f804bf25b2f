"""The documentation site builds without a warning; the notebook runs from first cell to last."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from tools.run_notebook import as_python, code_cells, run_cells, with_outputs

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_comparison.ipynb"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is there, and the API page holds what docstrings say."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    api = (tmp_path / "api.html").read_text()
    for name in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M):
        assert f'id="{name}"' in api
    assert ":func:" not in api
    assert (tmp_path / "notebooks" / NOTEBOOK.name).is_file()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """In an empty folder, and what it prints is like what is stored beside its cells."""
    environment = warm.environment(tmp_path)
    command = [*warm.python(), str(ROOT / "tools" / "run_notebook.py"), str(NOTEBOOK)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("learned", "oracle", "Forgetting", "vs mean", "blocks.0.attn.qkv: (384, 128)"):
        assert part in done.stdout
    assert (tmp_path / "merged" / "adapter_config.json").is_file()


def test_every_cell_has_its_output_stored() -> None:
    cells = code_cells(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)


def test_cells_run_in_one_namespace_and_commands_in_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["x = 2\n", "print(x + 1)\n!echo a \\\n  b > file\n!cat file", "y = 1"]
    cells = [{"cell_type": "code", "source": s.splitlines(True)} for s in sources]
    notebook = {"cells": [{"cell_type": "markdown", "source": []}, *cells]}
    outputs = run_cells(notebook)
    assert outputs == ["", "3\na b\n", ""]
    written = with_outputs(notebook, outputs)["cells"][1:]
    assert [cell["execution_count"] for cell in written] == [1, 2, 3]
    assert written[1]["outputs"][0]["text"] == ["3\n", "a b\n"]
    assert not written[0]["outputs"]


def test_a_command_that_fails_ends_the_notebook() -> None:
    cell = {"cell_type": "code", "source": ["!false\n", "print(1)"]}
    with pytest.raises(subprocess.CalledProcessError):
        run_cells({"cells": [cell]})
    assert as_python("a = 1\n!ls") == "a = 1\n_shell('ls')"
