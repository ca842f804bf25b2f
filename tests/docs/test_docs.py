"""README and docs/: examples run, commands compose, links lead on, what is named exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml

from cl_lora.configuration.choices import config_names
from cl_lora.configuration.compose import compose_config, known_keys
from cl_lora.evaluation.scores import COLUMNS
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arms
from cl_lora.experiment.references import REFERENCES
from cl_lora.merging import METHODS, RULES
from cl_lora.models.head_policies import HEAD_POLICIES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LONGEST_EXAMPLE = 40

TINY = (
    "benchmark.classes=2 benchmark.samples_per_class=4 benchmark.test_samples_per_class=2",
    "strategy.epochs=1 arms=none references=[base]",
    "'+arms.half={method: task_arithmetic, coefficients: 0.5}'",
)
"""What makes a run of an example short."""

REPORTED = ("Metric", "Figure")
"""Sections about what stands in a report; the others are run without, which takes most of a run."""

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(page: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the fenced blocks (language, text) of every second-level section that has any."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    found = {t: _FENCE.findall(body) for t, body in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: blocks for title, blocks in found.items() if blocks}


EXAMPLES = sections(DOCS / "extending.md")


def test_there_is_an_example_of_everything_that_can_be_brought() -> None:
    assert list(EXAMPLES) == [
        "Data",
        "Model",
        "Merge method",
        "Coefficient rule",
        "Task kind",
        "Metric",
        "Head policy and baseline",
        "Protocol",
        "Adaptation",
        "Figure",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("section", EXAMPLES)
def test_examples_run(section: str, tmp_path: Path) -> None:
    """Blocks of a section run in order, in one empty folder, each in a process of its own."""
    environment = warm.environment(tmp_path)
    for language, given in EXAMPLES[section]:
        assert language in ("python", "console")
        text = given
        if (saved := re.search(r"plugins=\[(\w+)\]", given)) is not None:
            (tmp_path / f"{saved[1]}.py").write_text(EXAMPLES[section][0][1])
            if "experiment=" not in given:  # an experiment's example is short by itself
                text = given.replace("run_dir=", f"{' '.join(TINY)} run_dir=")
        if section not in REPORTED:
            text = text.replace('"run", ', '"run", "report=false", ')
            text = text.replace("cl-lora run ", "cl-lora run report=false ")
        shell = ["bash", "-euo", "pipefail", "-c", text]
        command = [*warm.python(), "-c", text] if language == "python" else shell
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr[-3000:]}"


def test_the_four_avalanche_streams_as_the_page_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CL_LORA_CACHE", str(tmp_path))
    ((language, text),) = sections(DOCS / "few_shot.md")["Streams"]
    assert language == "python"
    exec(compile(text, "docs/few_shot.md", "exec"), {})


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
    """Every relative link names a file, and its anchor, if it has one, a heading of that file."""
    for target, anchor in re.findall(
        r"\]\(([^)#]*)(?:#([^)]*))?\)", _FENCE.sub("", page.read_text())
    ):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, made as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+\.md)\)", (DOCS / "index.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """A path in backticks that looks like a file of this repository is one."""
    for name in re.findall(
        r"`((?:cl_lora|configs|benchmarks|strategies|perf|tests|tools)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_options_exist(page: Path, options: set[str]) -> None:
    """An option in backticks, as `strategy.rank` or `benchmark.root=DIR`, is one."""
    for name in re.findall(r"`((?:benchmark|model|strategy)\.\w+)(?:=[^`]*)?`", page.read_text()):
        assert name in options, f"{page.name} names the option {name}"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of the configuration, whatever is chosen."""
    groups = ("benchmark", "model", "strategy")
    choices = [f"{group}={name}" for group in groups for name in config_names(group)]
    return {key for choice in choices for key in known_keys([choice])}


def commands(page: Path) -> list[list[str]]:
    """Return the overrides of every `cl-lora run` in a page's console blocks."""
    lines = [
        shlex.split(line, comments=True)
        for language, text in _FENCE.findall(page.read_text())
        if language == "console"
        for line in text.replace("\\\n", " ").splitlines()
    ]
    return [words[2:] for words in lines if words[:2] == ["cl-lora", "run"]]


def arms_of(config: Mapping[str, Any]) -> tuple[Arm, ...]:
    return make_arms(
        config["arms"],
        ArmDefaults(config["spc"], config["buffer_batch_size"], config["strategy"]["head"]),
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_compose(page: Path) -> None:
    """Every command is a configuration whose arms are valid; `...` stands for an earlier one."""
    for overrides in commands(page):
        config = compose_config([word for word in overrides if word != "..."])
        if config["plugins"]:  # may register what its arms name; test_examples_run runs it whole
            assert page == DOCS / "extending.md"
            continue
        arms_of(config)


def test_commands_of_the_reproduction_are_those_of_the_paper() -> None:
    found = commands(DOCS / "coleman2024.md")
    assert len(found) >= 5
    for overrides in found:
        config = compose_config(overrides)
        assert config["seeds"] == [0, 1, 2]
        assert config["strategy"]["name"] == "coleman2024"
        assert arms_of(config)


def test_what_the_reproduction_sets_can_be_set(options: set[str]) -> None:
    """The last column of its tables names options of the run, of an arm, a method or a rule."""
    of_arms = {"method", "space", "coefficients", "spc", "buffer_batch_size", "head", "tune_head"}
    of_methods = {name for info in METHODS.values() for name in info.options}
    of_rules = set(RULES["adaptive"].options)
    text = (DOCS / "coleman2024.md").read_text()
    cells = re.findall(r"^\|.*\| ([^|]*) \|$", text.partition("### Data")[2], flags=re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}
    assert len(named) > 30
    assert named <= options | of_arms | of_methods | of_rules


def test_the_readme_says_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert f"`{', '.join(COLUMNS)}`" in text
    for names in (REFERENCES, HEAD_POLICIES):
        assert all(f"`{name}`" in text for name in names)
    arms = [yaml.safe_load(block) for language, block in _FENCE.findall(text) if language == "yaml"]
    assert all(make_arms(arm, ArmDefaults()) for arm in arms)
    assert arms


def test_no_paper_is_named_by_a_letter() -> None:
    """Authors, year and title say which one it is."""
    texts = [*PAGES, *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "cl_lora").rglob("*.py")]
    for path in texts:
        assert not re.search(r"\b[Pp]aper [A-D]\b", path.read_text()), path
