"""Domains may be called anything: figures, tables and events show it, and nothing breaks."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from fabricate import fabricate_run
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cl_lora.reporting.figures import draw_figures, render
from cl_lora.reporting.figures.numbers import metric_of
from cl_lora.reporting.html import render_html
from cl_lora.reporting.tables import main_tables
from cl_lora.reporting.tensorboard import write_tensorboard
from cl_lora.run_folder.reader import RunFolder

NAMES = ("$x^$", r"\frac{", "\x1b[31mred\nline", "[bold]\U0001f389")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("names") / "run"
    return RunFolder.read(fabricate_run(folder, domains=NAMES))


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_no_formulas_and_svg_is_well_formed(run: RunFolder) -> None:
    shown = set()
    for figure in draw_figures(run).values():
        ElementTree.fromstring(render(figure, "svg"))
        shown |= {text.get_text() for text in figure.findobj(Text)}
    assert {"$x^$", r"\frac{"} <= shown
    assert all(c.isprintable() or c == "\n" for text in shown for c in text)


def test_tables_show_names_escaped(run: RunFolder) -> None:
    (table, *_) = main_tables(run, metric_of(run))
    for shown in (table.text(200), table.markdown(), table.latex(), table.csv()):
        assert all(c.isprintable() or c == "\n" for c in shown)
    assert r"\x1b[31mred\nline" in table.csv()
    assert "[bold]" in table.text(200)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_page_and_the_events_hold_every_name(run: RunFolder) -> None:
    assert "$x^$" in render_html(run)
    write_tensorboard(run)
    events = EventAccumulator(str(run.path / "tensorboard" / "ties_w1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {f"accuracy/{name}" for name in NAMES} <= tags


def test_nothing_hidden_is_left(run: RunFolder) -> None:
    assert not [p for p in Path(run.path).rglob(".*") if p.name != ".lock"]
