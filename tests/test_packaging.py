"""What is installed is complete, and what is promised at the top level is there."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

import cl_lora

ROOT = Path(__file__).parent.parent
TOP_LEVEL = ("benchmarks", "strategies", "configs")


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(setup: configparser.ConfigParser) -> None:
    listed = set(setup["options"]["packages"].split())
    found = {
        ".".join(("cl_lora", *path.parent.relative_to(top).parts))
        # Whether the links in cl_lora are followed or not: names are the same both ways.
        for top, folder in ((ROOT / "cl_lora", "."), *((ROOT, name) for name in TOP_LEVEL))
        for path in (top / folder).rglob("__init__.py")
    }
    assert listed == found


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_folder_is_the_package_of_its_name(name: str) -> None:
    assert (ROOT / "cl_lora" / name).resolve() == ROOT / name
    assert (ROOT / name / "__init__.py").is_file()


def test_version_is_a_literal_that_needs_no_import() -> None:
    tree = ast.parse((ROOT / "cl_lora" / "__init__.py").read_text())
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and any(isinstance(t, ast.Name) and t.id == "__version__" for t in node.targets)
    ]
    assert values == [cl_lora.__version__]


# What numpy 2 brought, by the version that did.
NUMPY = {
    (2, 0): "astype bitwise_count concat isdtype matrix_transpose permute_dims pow trapezoid "
    "unique_all unique_counts unique_inverse unique_values vecdot",
    (2, 1): "cumulative_prod cumulative_sum unstack",
    (2, 2): "matvec vecmat",
}


def test_the_oldest_numpy_allowed_has_all_that_is_used(
    setup: configparser.ConfigParser,
) -> None:
    (bound,) = re.findall(r"^numpy>=(\d+)\.(\d+)$", setup["options"]["install_requires"], re.M)
    used = {
        name
        for folder in ("cl_lora", "benchmarks", "strategies")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bnp\.(\w+)", path.read_text())
    }
    needed = [version for version, names in NUMPY.items() if used & set(names.split())]
    assert tuple(map(int, bound)) >= max(needed, default=(1, 26))


def test_every_requirement_is_pinned(setup: configparser.ConfigParser) -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    wanted = {
        re.split(r"[<>=!~ \[]", line.strip())[0].lower().replace("_", "-")
        for text in texts
        for line in text.splitlines()
        if line.strip()
    }
    assert wanted <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


def test_public_names_are_importable_from_the_top() -> None:
    from cl_lora import Adapter, AdapterBank, merge

    assert Adapter.__module__ == "cl_lora.adapters.adapter"
    assert AdapterBank.__module__ == "cl_lora.adapters.bank"
    assert merge.__module__ == "cl_lora.merging.plan"
    with pytest.raises(AttributeError, match="no attribute 'mrge'"):
        cl_lora.mrge  # noqa: B018


def test_the_citation_names_the_software_and_the_four_papers() -> None:
    """Required keys of the Citation File Format 1.2.0, here and in every reference."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["version"] == cl_lora.__version__
    assert cited["license"] == "MIT"
    for reference in cited["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert all(set(a) == {"given-names", "family-names"} for a in reference["authors"])
    first = {(r["authors"][0]["family-names"], r["year"]) for r in cited["references"]}
    assert first == {("Kesim", 2024), ("Coleman", 2024), ("Jiang", 2023), ("Asadi", 2024)}


def test_the_licence_is_the_one_that_the_metadata_says(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["license"] == "MIT"
    assert setup["metadata"]["license_files"] == "LICENSE"
    assert (
        (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the cl-lora")
    )


def test_the_changelog_has_the_version() -> None:
    """Keep a Changelog: versions as second headings, newest first, kinds of changes below them."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", text, re.M)
    assert versions[0] == "Unreleased"
    assert cl_lora.__version__ in versions
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= kinds


# The wheel ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: the build leaves files behind."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    leave = shutil.ignore_patterns("__pycache__")
    for name in ("cl_lora", *TOP_LEVEL):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(place), str(source)], place)
    (built,) = place.glob("*.whl")
    return built


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command away from the checkout, and return what it prints."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_everything_that_is_not_python(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"cl_lora/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    for folder in ("cl_lora/models/embedded", "cl_lora/reporting/templates"):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).iterdir()}
    assert len(wanted) > 50
    assert wanted | {"cl_lora/py.typed"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


_USES = """
import sys
from importlib.resources import files
from pathlib import Path

import cl_lora
from cl_lora.cli import main

assert Path(cl_lora.__file__).is_relative_to(sys.prefix), cl_lora.__file__
assert main(["list", "methods"]) == 0
assert main(["run", "--cfg", "job", "arms=coleman2024_adaptive"]) == 0
from cl_lora.models.backbones import ModelConfig, load_backbone

assert load_backbone(ModelConfig("embedded")).network is not None
assert (files("cl_lora.reporting") / "templates").is_dir()
"""


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that sees the other packages of this one, but no checkout."""
    home = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(home)], tmp_path)
    python = str(home / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([*pip, "install", "-q", "--no-deps", str(wheel)], tmp_path)
    (packages,) = home.glob("lib/python*/site-packages")
    # A line of a .pth file is a plain path: what makes the checkout importable is not read there.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert run([str(home / "bin" / "cl-lora"), "--version"], tmp_path).split() == [
        cl_lora.__version__
    ]
    printed = run([python, "-c", _USES], tmp_path)
    for part in ("dare_ties", "ta_adaptive_b1", "benchmark:"):
        assert part in printed
