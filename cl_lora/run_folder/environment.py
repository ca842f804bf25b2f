"""Where a run was computed: versions, commit, device; recorded, but never part of its identity."""

from __future__ import annotations

import configparser
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cl_lora import __version__
from cl_lora.support import files

_RECORDED = ("torch", "torchvision", "avalanche-lib", "timm", "peft", "hydra-core", "numpy")
_PACKAGE = Path(__file__).resolve().parents[1]
_GIT_TIMEOUT_S = 10
# A hook or another tool may have pointed these at its own repository.
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def environment(
    *, device: str, device_name: str, precision: str, seeds: Sequence[int]
) -> dict[str, Any]:
    """Return what the results may depend on beside the configuration.

    Args:
        device: the torch device, e.g. ``"cuda:0"``.
        device_name: what the hardware calls itself.
        precision: ``"fp32"`` or ``"bf16"``, as resolved for the device.
        seeds: the seeds of this command.
    """
    return {
        "cl-lora": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": device,
        "device_name": device_name,
        "precision": precision,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "seeds": list(seeds),
        "command": sys.argv,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_environment(path: Path, here: Mapping[str, Any]) -> None:
    """Write where a command runs; where earlier ones ran stays below ``earlier``.

    A damaged file is replaced: nothing is computed from it.
    """
    there: Any = None
    with suppress(OSError, ValueError, RecursionError):
        there = json.loads(path.read_text(encoding="utf-8"))
    earlier: list[Any] = []
    if isinstance(there, dict) and files.is_intact(there):
        there.pop(files.SEAL, None)
        before = there.pop("earlier", [])
        earlier = [*(before if isinstance(before, list) else []), there]
    same = {k: v for k, v in here.items() if k != "written"}
    earlier = [
        e
        for e in earlier
        if isinstance(e, dict) and {k: v for k, v in e.items() if k != "written"} != same
    ]
    record = {**here, "earlier": earlier} if earlier else dict(here)
    files.write_json(path, files.sealed(record))


def package_versions(names: Sequence[str] = _RECORDED) -> dict[str, str | None]:
    """Return the installed version of each package, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def device_name(device: torch.device) -> str:
    """Return what the hardware of ``device`` calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()


def cpu() -> str:
    """Return the processor's name as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit of the project's own checkout, ``SHA+dirty`` where files were changed.

    None if the package does not run from such a checkout. A package that is installed into an
    environment inside another project's repository says nothing about that project's commit.

    Args:
        package: the folder of the package, ``ROOT/cl_lora`` in a checkout.
    """
    root = package.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve() or not _is_project(root):
        return None
    tracked = _git(root, "ls-files", "--", f"{package.name}/__init__.py")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not tracked or not commit:
        return None
    # What git does not know are runs and notes; a new module that counts is imported by a
    # changed one.
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if changed else commit


def _is_project(root: Path) -> bool:
    """Return whether ``root`` holds the setup.cfg of cl-lora."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(root / "setup.cfg")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return False
    return parser.get("metadata", "name", fallback=None) == "cl-lora"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints in ``folder``, None where it fails or is not installed."""
    variables = {k: v for k, v in os.environ.items() if k not in _GIT_VARIABLES}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
