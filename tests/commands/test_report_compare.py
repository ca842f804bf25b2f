import html
import io
import re
from urllib.parse import unquote

import pandas as pd
import pytest
from fabricate import ARMS, fabricate_run
from PIL import Image

from cl_lora.commands.compare import run as compare
from cl_lora.commands.report import run as report
from cl_lora.commands.report import write_reports
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.compare import conditions_of
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError


@pytest.fixture
def other_path(tmp_path):
    return fabricate_run(tmp_path / "runs" / "other", fingerprint="cafe", name="other")


def test_report_writes_everything_and_says_where(run_path, capsys):
    assert report([str(run_path)]) == 0
    out = capsys.readouterr().out
    assert f"tensorboard --logdir {run_path / 'tensorboard'}" in out
    assert (run_path / "report.html").is_file()
    assert (run_path / "figures" / "final.png").is_file()
    assert (run_path / "tensorboard" / "ties_w1").is_dir()


def test_reports_change_nothing_that_was_computed(run_path):
    before = {p: p.read_bytes() for p in run_path.rglob("*") if p.is_file()}
    written = write_reports(run_path)
    assert written[0] == run_path / "report.html"
    assert all(p.read_bytes() == data for p, data in before.items())
    assert all(p.exists() for p in written)


def test_compare_prints_a_table(run_path, other_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert compare([str(run_path), str(other_path), "--to", "joint"]) == 0
    out = capsys.readouterr().out
    assert "A = pacs_trial" in out
    assert "Differences to joint" in out
    assert max(map(len, out.splitlines())) <= 80


def test_compare_writes_csv_and_a_figure(run_path, tmp_path, capsys):
    figure = tmp_path / "compare.png"
    given = [str(run_path), "--format", "csv", "--metric", "f1", "--figure", str(figure)]
    assert compare(given) == 0
    captured = capsys.readouterr()
    # The figure's place goes to standard error: the CSV can be piped.
    frame = pd.read_csv(io.StringIO(captured.out))
    assert set(frame["metric"]) == {"f1"}
    assert set(ARMS) <= set(frame["arm"])
    assert str(figure) in captured.err
    assert min(Image.open(figure).size) > 300


def test_compare_refuses_to_pool_what_differs(run_path, other_path):
    with pytest.raises(UserError, match="cannot be averaged: their data or its splits differ"):
        compare([str(run_path), str(other_path), "--pool"])
    assert compare([str(run_path), str(run_path), "--pool"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "latx"], "Unknown format 'latx': did you mean 'latex'"),
        (["--figure", "x.pdf"], "end in .png or .svg but got 'x.pdf'"),
        (["--metric", "auc"], "has no 'auc', it has accuracy, f1"),
    ],
)
def test_bad_arguments_are_named(run_path, arguments, message):
    with pytest.raises(UserError, match=message):
        compare([str(run_path), *arguments])


def test_no_run(tmp_path):
    for command in (report, compare):
        with pytest.raises(UserError, match="is no run folder"):
            command([str(tmp_path)])


def test_compare_writes_a_page(run_path, other_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run_path / "report.html").write_text("here")
    assert compare([str(run_path), str(other_path), "--html", "both.html"]) == 0
    page = (tmp_path / "both.html").read_text()
    for path in (run_path, other_path):
        run = RunFolder.read(path)
        for answer in answers_of(run):  # one folder is one condition here
            assert html.escape(answer.sentence, quote=True) in page.replace("&#39;", "&#x27;")
    (address,) = re.findall(r'<a href="([^"#]+)"', page)  # the one report that is there
    assert (tmp_path / unquote(address)).read_text() == "here"
    assert "cl-lora compare" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    for arm in ARMS:
        assert f'<th scope="row" class="text">{arm}</th>' in page
    assert len(page) < 3_000_000


def test_a_page_of_two_folders_of_one_condition_speaks_of_all_seeds(tmp_path):
    folders = [
        fabricate_run(tmp_path / name, seeds=seeds, name="one")
        for name, seeds in (("a", (0, 1)), ("b", (2,)))
    ]
    assert compare([*map(str, folders), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    (together,) = conditions_of([RunFolder.read(folder) for folder in folders])
    assert together.pooled.seeds == (0, 1, 2)
    assert "with 3 seeds" in page or "3 seeds," in page
    assert page.count('class="condition"') == 1
