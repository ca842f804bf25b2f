"""The pages under docs/: examples run, the generated page is current, links and names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from cl_lora.arms import make_arms
from cl_lora.launch import compose_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LONGEST_EXAMPLE = 40

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(page: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the fenced blocks (language, text) of every second-level section that has any."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    found = {t: _FENCE.findall(body) for t, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: blocks for title, blocks in found.items() if blocks}


EXAMPLES = sections(DOCS / "extending.md")


def test_there_is_an_example_of_everything_that_can_be_brought() -> None:
    assert list(EXAMPLES) == ["Data", "Model", "Merge method", "Coefficient rule"]


@pytest.mark.slow
@pytest.mark.parametrize("section", EXAMPLES)
def test_examples_run(section: str, tmp_path: Path) -> None:
    """Blocks of a section run in order, in one empty folder, each in a process of its own."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CL_LORA_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    for language, text in EXAMPLES[section]:
        assert language in ("python", "console")
        shell = ["bash", "-euo", "pipefail", "-c", text]
        command = [sys.executable, "-c", text] if language == "python" else shell
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("section", EXAMPLES)
def test_examples_are_short(section: str) -> None:
    for language, text in EXAMPLES[section]:
        if language == "python":
            assert len(text.splitlines()) < LONGEST_EXAMPLE


def test_the_page_of_methods_is_what_the_registries_say() -> None:
    spec = spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "methods.md").read_text() == module.page(), "run python tools/make_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", _FENCE.sub("", page.read_text())):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """A path in backticks that looks like a file of this repository is one."""
    for name in re.findall(
        r"`((?:cl_lora|configs|benchmarks|strategies|perf|tools)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_commands_of_the_reproduction_compose() -> None:
    text = (DOCS / "reproducing_paper_b.md").read_text()
    commands = [line for _, block in _FENCE.findall(text) for line in block.splitlines()]
    assert len(commands) >= 4
    for command in commands:
        config = compose_config(shlex.split(command)[2:])
        assert config["seeds"] == [0, 1, 2]
        assert config["strategy"]["name"] == "paper_b"
        assert make_arms(config["arms"], spc=config["spc"])
