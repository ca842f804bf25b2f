"""A user's own modules: by name from the current folder, or installed with an entry point."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from cl_lora.configuration import plugins
from cl_lora.configuration.plugins import load_plugins
from cl_lora.evaluation.metrics import METRICS
from cl_lora.support.errors import UserError

SOURCE = """\
from cl_lora.evaluation.metrics import Metric, register_metric

register_metric(Metric("{0}", "A title"))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, and everything as it was at the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for name in ("mine", "mine.metrics", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "modules", sys.modules)
    for name in ("of_a_module", "of_a_package"):
        monkeypatch.setitem(METRICS, name, METRICS["accuracy"])
        monkeypatch.delitem(METRICS, name)
    return tmp_path


def test_a_module_of_the_current_folder_registers_once(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "metrics.py").write_text(SOURCE.format("of_a_module"))
    for _ in range(2):
        load_plugins(["mine.metrics"])
    assert METRICS["of_a_module"].title == "A title"


def test_installed_plugins_are_loaded_without_being_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.py").write_text(SOURCE.format("of_a_package"))
    monkeypatch.syspath_prepend(str(folder))
    points = [EntryPoint("mine", "mine", plugins.ENTRY_POINTS)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    load_plugins()
    assert "of_a_package" in METRICS


def test_an_installed_plugin_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("x", "no_such_module", plugins.ENTRY_POINTS)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    with pytest.raises(UserError, match="installed plugin 'no_such_module'"):
        load_plugins()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("x = 1 /", "SyntaxError"),
        (SOURCE.format("accuracy"), "registered already"),
    ],
)
def test_a_module_that_fails_is_one_sentence(folder: Path, source: str, expected: str) -> None:
    (folder / "broken.py").write_text(source)
    with pytest.raises(UserError) as caught:
        load_plugins(["broken"])
    assert "The plugin 'broken' cannot be imported" in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["mine", [1], [""], None, {"mine": 1}])
def test_plugins_are_a_list_of_names(names: Any) -> None:
    with pytest.raises(UserError, match="plugins"):
        load_plugins(names)
