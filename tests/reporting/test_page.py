"""What can be said of the page without a browser: of all four kinds of run, and of a large one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricate import ARMS, fabricate_few_shot, fabricate_run, many_arms
from matplotlib.figure import Figure
from matplotlib.text import Text
from multitask_runs import fabricate_multitask
from reuse_runs import fabricate_reuse
from test_figures import contrast

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting.figures import draw_figures, marks_of, render, seen_in, tell
from cl_lora.reporting.figures.ranking import draw_ranking
from cl_lora.reporting.html import render_html
from cl_lora.reporting.page.svg import VARIABLES, inline
from cl_lora.reporting.ranking import ranking_of
from cl_lora.run_folder.reader import RunFolder

KINDS = {
    "domains": lambda path: fabricate_run(path, seeds=(0, 1, 2)),
    "few_shot": lambda path: fabricate_few_shot(path, held=(2, 3)),
    "multitask": lambda path: fabricate_multitask(path, failed=("landmarks",)),
    "reuse": fabricate_reuse,
}
METHODS = (
    "task_arithmetic",
    "ties",
    "dare_ties",
    "linear",
    "cat",
    "svd",
    "dare_linear",
    "magprune",
)


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder.read(KINDS[request.param](tmp_path_factory.mktemp(request.param) / "run"))


@pytest.fixture(scope="module")
def drawn(run: RunFolder) -> dict[str, Figure]:
    return draw_figures(run)


@pytest.fixture(scope="module")
def page(run: RunFolder, drawn: dict[str, Figure]) -> str:
    return render_html(run, drawn)


class Elements(HTMLParser):
    """Every element with its attributes and those that it stands in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}, tuple(self.open)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, *tags: str) -> Iterator[dict[str, str]]:
        return (attributes for tag, attributes, _ in self.found if tag in tags)


def test_every_picture_says_what_is_seen_and_every_head_what_it_heads(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    ids = [a["id"] for _, a, _ in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    for svg in elements.of("svg"):
        assert svg["role"] == "img"
        title, seen = svg["aria-labelledby"].split()
        assert {title, seen} <= set(ids)
        (words,) = re.findall(rf'<p id="{seen}" hidden>(.*?)</p>', page)
        assert len(words) > 20
    assert all(len(image["alt"]) > 20 for image in elements.of("img"))
    assert {th["scope"] for th in elements.of("th")} <= {"col", "row", "rowgroup"}
    assert len(list(elements.of("caption"))) == len(list(elements.of("table")))
    # Every row begins with its head.
    assert "<tr><td" not in page


def test_headings_go_down_one_at_a_time_and_the_results_can_be_jumped_to(page: str) -> None:
    levels = [int(tag[1]) for tag, _, _ in Elements(page).found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert '<a class="skip" href="#main">' in page
    assert '<main id="main">' in page
    assert '<html lang="en">' in page


def test_tabs_name_their_panels_and_panels_their_tabs(page: str) -> None:
    elements = Elements(page)
    tabs = [a for a in elements.of("button") if a.get("role") == "tab"]
    panels = {a["id"]: a for a in elements.of("div") if a.get("role") == "tabpanel"}
    assert [tab["aria-controls"] for tab in tabs] == list(panels)
    assert [panel["aria-labelledby"] for panel in panels.values()] == [t["id"] for t in tabs]
    if not tabs:  # a single table
        assert 'role="tab' not in page.split("<script>", maxsplit=1)[0].split("</style>")[1]
        return
    assert [tab["aria-selected"] for tab in tabs] == ["true"] + ["false"] * (len(tabs) - 1)
    # Without the script no panel is hidden, and there are no tabs.
    assert not any("hidden" in panel for panel in panels.values())
    (tablist,) = (a for a in elements.of("div") if a.get("role") == "tablist")
    assert "hidden" in tablist


def test_nothing_is_loaded_and_the_script_is_small(page: str) -> None:
    elements = Elements(page)
    loaded = [a.get("src", "") for _, a, _ in elements.found] + [
        a.get("href", "") for tag, a, _ in elements.found if tag in ("link", "image", "use")
    ]
    assert all(address.startswith(("data:", "#")) for address in loaded if address)
    assert "http" not in page
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) < 10_000
    assert len(page.encode()) < 3_000_000


def test_the_table_is_sorted_and_the_signs_of_sorting_say_nothing_else(page: str) -> None:
    body = page.split("</style>")[1].split("<script>", maxsplit=1)[0]
    assert 'aria-sort="descending"' in body
    # Arrows and triangles are of sorting, which the style draws.
    assert not set("↑↓↕▲▼") & set(re.sub(r"<svg.*?</svg>", "", body, flags=re.DOTALL))


def test_the_answers_the_picture_and_the_table_come_in_this_order(page: str) -> None:
    places = [page.index(x) for x in ('class="answers"', 'id="fig-ranking-title"', "<h2", "<table")]
    assert places == sorted(places)
    details = page.split("<h2>Details</h2>")
    assert "<details" not in details[0]
    for folded in ("arms", "training", "numbers", "configuration", "definitions"):
        assert f'<details id="{folded}">' in details[1]


def palette(page: str, dark: bool) -> dict[str, str]:
    style = page.split("<style>")[1].split("</style>", maxsplit=1)[0]
    light, _, rest = style.partition("prefers-color-scheme: dark")
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", rest.split("}")[0] if dark else light))


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast_on_both_grounds(page: str, dark: bool) -> None:
    colors = palette(page, dark)
    assert set(palette(page, False)) == set(palette(page, True))
    grounds = [colors["--ground"], colors["--stripe"]]
    for text in ("--ink", "--muted", "--accent"):
        assert all(contrast(colors[text], ground) >= 4.5 for ground in grounds), text
    assert contrast(colors["--ground"], colors["--accent"]) >= 4.5  # of a chosen tab
    for mark in (*(f"--c{k}" for k in range(8)), "--muted", "--pale", "--line"):
        assert contrast(colors[mark], colors["--ground"]) >= 3, mark
    assert set(VARIABLES.values()) <= set(colors)


def test_what_files_draw_is_seen_on_white() -> None:
    marks = [color for color, name in VARIABLES.items() if name not in ("--grid", "--ground")]
    assert all(contrast(color, "#ffffff") >= 3 for color in marks if color != "#F4F6F8")


def test_no_text_of_a_figure_is_smaller_than_nine_points(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text()]
        assert min(sizes) >= 9, name
        assert seen_in(figure), name


def test_every_arm_is_named_by_a_mark_with_its_numbers(
    run: RunFolder, page: str, drawn: dict[str, Figure]
) -> None:
    tips = re.findall(r'data-tip="(.*?)"', page)
    ranking = ranking_of(run, next(m for m in run.stream.metrics.values()))
    for arm in ranking.arms:
        assert any(tip.startswith(f"{arm}: ") and "±" in tip for tip in tips), arm
    assert len(marks_of(drawn["ranking"])) == len(ranking.arms) + len(ranking.baselines)


def test_fifty_arms_and_three_seeds_are_a_page_of_less_than_three_megabytes(tmp_path: Path) -> None:
    arms = dict(list({**many_arms(METHODS), **ARMS}.items())[:50])
    run = RunFolder.read(fabricate_run(tmp_path / "run", arms=arms, seeds=(0, 1, 2)))
    assert len(run.arms) == 50
    drawn = draw_figures(run)
    assert len(render_html(run, drawn).encode()) < 3_000_000
    figure = drawn["ranking"]
    assert figure.get_figheight() * 96 < 1000  # little more than a screen
    assert figure.get_figwidth() * 96 < 366  # a phone without its margins


def test_marks_of_a_line_have_words_each_and_ids_are_those_of_the_figure() -> None:
    figure = Figure()
    ax = figure.add_subplot()
    (line,) = ax.plot([1, 2, 3], marker="o", color="#0072B2")
    (point,) = ax.plot(2, 2, "x", color="black")
    tell(line, "a: 1", "a: 2", "a: <3>")
    tell(point, "b & c")
    text = inline(figure, "one")
    assert [text.count(f'data-tip="{t}"') for t in ("a: 1", "a: 2", "a: &lt;3&gt;")] == [1, 1, 1]
    assert 'data-tip="b &amp; c"' in text
    assert all(name.startswith("one-") for name in re.findall(r'\bid="(.*?)"', text))
    used = {*re.findall(r'href="#(.*?)"', text), *re.findall(r"url\(#(.*?)\)", text)}
    assert used == {*re.findall(r'\bid="(.*?)"', text)}
    assert "var(--c0)" in text
    assert "#0072b2" not in text
    assert "<metadata" not in text
    assert "<text" in text  # read and found as text
    assert b"<text" not in render(figure, "svg")  # files look alike everywhere


def test_one_arm_alone_and_arms_that_never_differ_have_a_picture(tmp_path: Path) -> None:
    for name, arms in {"one": {"a": ARMS["ties_w1"]}, "none": {}}.items():
        run = RunFolder.read(fabricate_run(tmp_path / name, arms=arms, references=("joint",)))
        figure = draw_ranking(ranking_of(run, ACCURACY), {"joint": "joint training"})
        assert (figure is None) == (not arms)
        if figure is not None:
            assert render(figure, "svg")
