"""What is recorded of where a run was computed, above all the commit of the right checkout."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from cl_lora.run_folder.environment import environment, git_commit, package_versions


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _checkout(root: Path, name: str = "cl-lora") -> Path:
    """Make a repository of a project ``name`` with the package; return the package."""
    package = root / "cl_lora"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / "setup.cfg").write_text(f"[metadata]\nname = {name}\nversion = attr: x%y\n")
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "commit", "-q", "-m", "begin")
    return package


def test_the_commit_of_the_own_checkout(tmp_path: Path) -> None:
    package = _checkout(tmp_path / "project")
    head = _git(package, "rev-parse", "HEAD")
    assert git_commit(package) == head
    (tmp_path / "project" / "notes.txt").write_text("not tracked")
    assert git_commit(package) == head


def test_changed_files_are_marked(tmp_path: Path) -> None:
    package = _checkout(tmp_path / "project")
    head = _git(package, "rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = 1\n")
    assert git_commit(package) == f"{head}+dirty"
    _git(package, "add", "-u")
    assert git_commit(package) == f"{head}+dirty"


def test_a_repository_that_holds_an_installed_package_is_another_project(tmp_path: Path) -> None:
    project = tmp_path / "other"
    _checkout(project, name="other")
    installed = project / "venv" / "lib" / "site-packages" / "cl_lora"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_commit(installed) is None  # the repository's root is elsewhere
    assert git_commit(project / "cl_lora") is None  # a project of another name


def test_a_package_that_the_checkout_does_not_track(tmp_path: Path) -> None:
    package = _checkout(tmp_path / "project")
    _git(package, "rm", "-q", "--cached", "__init__.py")
    _git(package, "commit", "-q", "-m", "without the package")
    assert git_commit(package) is None


def test_no_repository_no_commit_and_a_damaged_setup(tmp_path: Path) -> None:
    package = tmp_path / "plain" / "cl_lora"
    package.mkdir(parents=True)
    assert git_commit(package) is None
    _git(package.parent, "init", "-q")
    (package.parent / "setup.cfg").write_text("[metadata]\nname = cl-lora\n")
    assert git_commit(package) is None  # nothing committed
    (package.parent / "setup.cfg").write_text("no section")
    assert git_commit(package) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _checkout(tmp_path / "project")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(package) is None


def test_git_variables_of_a_hook_do_not_lead_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _checkout(tmp_path / "project")
    head = _git(package, "rev-parse", "HEAD")
    other = _checkout(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other.parent / ".git"))
    assert git_commit(package) == head


def test_what_is_recorded() -> None:
    here = environment(device="cuda:1", device_name="some GPU", precision="bf16", seeds=(3, 1))
    assert (here["device"], here["device_name"]) == ("cuda:1", "some GPU")
    assert (here["precision"], here["seeds"]) == ("bf16", [3, 1])
    assert here["python"] == platform.python_version()
    assert here["packages"]["torch"]


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert package_versions(["torch", "no-such-package"])["no-such-package"] is None
