"""Importing cl_lora makes torchvision importable beside a CPU torch, and costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cl_lora.support import compat


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("library", ["peft", "timm", "torchvision"])
def test_libraries_import_after_cl_lora(library: str) -> None:
    done = _python(f"import cl_lora, {library}; print({library}.__name__)")
    assert (done.returncode, done.stdout.strip()) == (0, library), done.stderr


def test_importing_cl_lora_imports_no_torch() -> None:
    code = "import sys, cl_lora; print(sorted({'torch', 'torchvision', 'peft'} & set(sys.modules)))"
    assert _python(code).stdout.strip() == "[]"


def test_the_hook_is_gone_after_its_use_and_set_once() -> None:
    code = """
import sys, cl_lora
from cl_lora.support import compat
compat.prepare()
hooks = lambda: sum(type(f).__name__ == "_BeforeTorchvision" for f in sys.meta_path)
print(hooks())
import torchvision
print(hooks())
compat.prepare()
print(hooks())
"""
    done = _python(code)
    assert done.stdout.split() == ["1", "0", "0"], done.stderr


def test_looking_for_torchvision_is_enough_and_finds_it() -> None:
    # importlib.util.find_spec asks the hook as well, without importing anything.
    code = """
import cl_lora, importlib.util
print(importlib.util.find_spec("torchvision").name)
import torchvision
print(torchvision.__name__)
"""
    done = _python(code)
    assert done.stdout.split() == ["torchvision", "torchvision"], done.stderr


@pytest.mark.skipif(compat.library_loads(), reason="torchvision's own operators are there")
def test_a_declared_operator_says_that_it_is_not_there() -> None:
    code = """
import cl_lora, torch, torchvision
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "Couldn't load custom C++ ops" in done.stdout
    # What this project uses of torchvision works.
    code = """
import cl_lora, torch
from torchvision.transforms.v2 import functional as F
print(F.resize(torch.zeros(3, 8, 8), [4, 4], antialias=True).shape)
"""
    assert "[3, 4, 4]" in _python(code).stdout


def test_nothing_is_declared_where_the_library_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "library_loads", lambda: True)
    monkeypatch.setattr(compat, "_declared", None)
    assert compat.declare_torchvision_operators() is False
