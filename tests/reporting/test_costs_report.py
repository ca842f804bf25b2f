"""What rows cost, as a person sees it: on the page, as a figure, in TensorBoard; or left out."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from fabricate import ARMS, fabricate_few_shot, fabricate_run
from matplotlib.figure import Figure
from reuse_runs import fabricate_reuse
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_figures import texts_apart

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting import tensorboard
from cl_lora.reporting.compare import compare_runs, comparison_table
from cl_lora.reporting.costs import KINDS, Cost, costs_of
from cl_lora.reporting.figures import FIGURES, GREY, STYLE, score_against_kept
from cl_lora.reporting.html import render_html
from cl_lora.reporting.tables import costs_table
from cl_lora.run_folder.reader import RunFolder
from cl_lora.run_folder.seals import timed

SIZES = {
    "bytes_to_serve": 300_000.0,
    "bytes_of_adapters": 400_000.0,
    "bytes_of_statistics": 0.0,
    "bytes_of_buffer": 0.0,
    "bytes_of_data": 0.0,
}
TOLD = {
    "ta_w1": {"passes": 1.0},
    "ta_adaptive_b3": {"passes": 1.0, "bytes_of_statistics": 50_000.0, "bytes_of_buffer": 2e6},
    "ties_w1": {"passes": 1 + 1 / 3, "bytes_of_statistics": 50_000.0},
    "joint": {"passes": 1.0, "bytes_of_statistics": 1e4, "bytes_of_data": 9e8},
}
"""What is on record of some rows; of the others nothing is."""

MILLISECONDS = {0: 5.0, 1: 2.5}
"""Of both seeds."""


def fabricate(folder: Path, **more: object) -> Path:
    """Write a run of these rows, and of one reference row more."""
    arms = {row: ARMS[row] for row in TOLD if row in ARMS}
    return fabricate_run(folder, arms=arms, references=("last", "joint"), **more)  # type: ignore[arg-type]


def with_costs(folder: Path) -> RunFolder:
    """Return a run that tells costs of some rows, and routes with one of them."""
    last = RunFolder.read(folder).stream.stages[-1].index
    accounts = [
        (seed, row, last, quantity, value)
        for row, more in TOLD.items()
        for seed in (0, 1)
        for quantity, value in {**SIZES, **more}.items()
    ]
    columns = ["seed", "arm", "stage", "quantity", "value"]
    pd.DataFrame(accounts, columns=columns).to_csv(folder / "accounts.csv", index=False)
    times = [
        vars(timed(seed, row, last, "milliseconds", value * passes["passes"]))
        for row, passes in TOLD.items()
        for seed, value in MILLISECONDS.items()
    ]
    pd.DataFrame(times).to_csv(folder / "times.csv", index=False)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["variants"]["ties_w1"]["coefficients"] = {"name": "routed", "weights": "hard"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    names = RunFolder.read(folder).experiences
    routes = [
        (seed, "ties_w1", t, names[j], k, 0.9 if j == k else 0.1 / max(1, t))
        for seed in (0, 1)
        for t in range(len(names))
        for j in range(len(names))
        for k in range(t + 1)
    ]
    columns = ["seed", "arm", "stage", "group", "adapter", "value"]
    pd.DataFrame(routes, columns=columns).to_csv(folder / "coefficients.csv", index=False)
    return RunFolder.read(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return with_costs(fabricate(tmp_path_factory.mktemp("costs") / "run"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of an earlier version, which tells none."""
    return RunFolder.read(fabricate(tmp_path_factory.mktemp("old") / "run"))


# The numbers --------------------------------------------------------------------------------------


def test_costs_are_read_as_they_were_recorded(run: RunFolder) -> None:
    found = costs_of(run)
    assert list(found) == list(TOLD)
    assert found["ties_w1"] == Cost(
        passes=4 / 3,
        milliseconds=pytest.approx(2.5 * 4 / 3),  # type: ignore[arg-type]
        to_serve=300_000,
        adapters=400_000,
        statistics=50_000,
        buffer=0,
        data=0,
    )
    assert [c.kept for c in found.values()] == [4e5, 2.45e6, 4.5e5, 9e8 + 4.1e5]
    assert [c.of_data for c in found.values()] == [0, 2.05e6, 5e4, 9e8 + 1e4]


def test_what_is_kept_has_a_name(run: RunFolder) -> None:
    names = [KINDS[cost.kind] for cost in costs_of(run).values()]
    assert names == ["nothing", "statistics, buffer", "statistics", "all data"]
    assert KINDS[Cost(1, 1, 1, 1, 0, 5, 0).kind] == "buffer"


def test_the_table_has_a_row_for_each_that_tells(run: RunFolder) -> None:
    table = costs_table(run, ACCURACY)
    assert table is not None
    assert {*table.rows} == {*TOLD}
    assert table.rows[-1] == "joint"
    assert table.references == 1
    titles = [c.title for c in table.columns]
    assert titles == [
        *("Average accuracy (%)", "Forgetting (pp, lower is better)", "Routed right", "Passes"),
        "ms per image",
        *("To serve, kB", "Kept, kB", "Of it data, kB", "Data kept", "n"),
    ]
    ties = table.rows.index("ties_w1")
    row = [table.cell(ties, j)[0] for j in range(2, 10)]
    assert row == ["90.0", "1.33", "3.33", "300", "450", "50.0", "statistics", "2"]
    average = np.mean([run.scores.matrix(s, "ties_w1").values[-1].mean() for s in (0, 1)])
    assert table.mean[ties, 0] == pytest.approx(average)
    assert table.cell(table.rows.index("ta_w1"), 2)[0] == "–"  # routes nothing
    assert table.is_best(0, 0)
    assert table.mean[0, 0] == table.mean[:3, 0].max()
    lines = table.csv().splitlines()
    assert lines[0].endswith("passes,milliseconds,to_serve,kept,of_data,kind,seeds")
    assert lines[2].endswith('2050000.0,"statistics, buffer",2')
    assert "| statistics, buffer |" in table.markdown()


def test_without_its_times_a_run_tells_the_rest(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run")
    with_costs(folder)
    (folder / "times.csv").unlink()
    table = costs_table(RunFolder.read(folder), ACCURACY)
    assert table is not None
    assert {table.cell(i, 4)[0] for i in range(4)} == {"–"}


# The page -----------------------------------------------------------------------------------------


def section(page: str, name: str) -> str:
    found = re.search(rf'<(section|details) id="{name}".*?</\1>', page, re.DOTALL)
    return found[0] if found else ""


def only_costs(run: RunFolder) -> dict[str, Figure]:
    """Draw the figure of costs alone: the others take long and are tested elsewhere."""
    figure = FIGURES["costs"].of(run, ACCURACY)
    return {} if figure is None else {"costs": figure}


def test_the_page_has_a_section_on_costs(run: RunFolder) -> None:
    page = render_html(run, only_costs(run))
    costs = section(page, "costs")
    assert "What it costs" in costs
    assert costs.count("<figure>") == 1
    assert "Score against what is kept" in costs
    assert "Score against what is kept" not in section(page, "figures")
    for text in ("statistics, buffer", "1.33", "90.0 % of test samples by ties_w1", "all data"):
        assert text in costs
    assert not section(page, "adapting")


@pytest.mark.parametrize("kind", ["old", "few_shot", "reuse"])
def test_runs_that_tell_none_have_no_such_section(
    kind: str, old: RunFolder, tmp_path: Path
) -> None:
    made = {
        "old": lambda: old,
        "few_shot": lambda: RunFolder.read(fabricate_few_shot(tmp_path / "run")),
        "reuse": lambda: RunFolder.read(fabricate_reuse(tmp_path / "run")),
    }[kind]()
    page = render_html(made, only_costs(made))
    assert not section(page, "costs")
    assert bool(section(page, "adapting")) == (kind == "few_shot")


def test_compare_takes_runs_with_and_without_costs(
    run: RunFolder, old: RunFolder, tmp_path: Path
) -> None:
    alike = comparison_table(compare_runs([run]))
    assert alike.csv() == comparison_table(compare_runs([old])).csv()
    other = RunFolder.read(fabricate(tmp_path / "run", name="other", fingerprint="beef"))
    both = comparison_table(compare_runs([run, other]))
    assert set(both.rows) == {*run.arms, *run.references}


# The figure ---------------------------------------------------------------------------------------


def test_the_figure_has_joint_as_a_line(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with mpl.rc_context(dict(STYLE)):
        fig = score_against_kept(run, ACCURACY)
    assert fig is not None
    (ax,) = fig.axes
    assert ax.get_xscale() == "log"
    averages = {
        row: 100 * np.mean([run.scores.matrix(s, row).values[-1].mean() for s in (0, 1)])
        for row in TOLD
    }
    lines = [
        line for line in ax.lines if line.get_color() == GREY and list(line.get_xdata()) == [0, 1]
    ]
    assert [line.get_ydata()[0] for line in lines] == [pytest.approx(averages["joint"])]
    dots = {
        (round(float(line.get_xdata()[0])), round(float(line.get_ydata()[0]), 6))
        for line in ax.lines
        if len(line.get_xdata()) == 1 and line.get_markersize() == 6
    }
    kept = {"ta_w1": 400, "ties_w1": 450, "ta_adaptive_b3": 2450, "joint": 900_410}
    assert dots == {(kept[row], round(averages[row], 6)) for row in TOLD}
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == [*(f"{KINDS[k]} kept" for k in (0, 1, 3, 4)), "joint"]
    assert set(TOLD) <= {text.get_text() for text in ax.texts}
    texts_apart(fig, monkeypatch)


def test_a_run_that_tells_none_has_no_such_figure(old: RunFolder) -> None:
    assert score_against_kept(old, ACCURACY) is None
    assert FIGURES["costs"].of(old, ACCURACY) is None


# TensorBoard --------------------------------------------------------------------------------------


def test_tensorboard_has_costs_and_routing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.arms, "matrix_figure", lambda *given: None)  # drawn elsewhere
    tensorboard.write_tensorboard(run)
    root = run.path / "tensorboard"

    def read(*parts: str) -> EventAccumulator:
        events = EventAccumulator(str(root.joinpath(*parts)))
        events.Reload()
        return events

    events, steps = read("ties_w1"), len(run.experiences)
    found = {tag: events.Scalars(f"accounts/{tag}") for tag in ("passes", "milliseconds")}
    assert [(e.step, e.value) for e in found["passes"]] == [(steps, pytest.approx(4 / 3))]
    (mean,) = found["milliseconds"]
    assert mean.value == pytest.approx(3.75 * 4 / 3)
    right = {e.step: e.value for e in events.Scalars("routing/right")}
    assert right == pytest.approx(dict.fromkeys(range(1, steps + 1), 0.9))
    assert "routing/right" in read("../tensorboard_details/seeds/ties_w1/seed-1").Tags()["scalars"]
    assert "routing/right" not in read("ta_w1").Tags()["scalars"]
    assert {"costs", "routing"} <= set(read("overview").Tags()["images"])
