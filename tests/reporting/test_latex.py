"""Tables as LaTeX: read by a small parser, and set by a real engine where one is installed."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from fabricate import ARMS, REFERENCES, fabricate_run

from cl_lora.evaluation.metrics import ACCURACY
from cl_lora.reporting.compare import RENDERERS, compare_runs
from cl_lora.reporting.tables import Column, ResultTable, main_tables
from cl_lora.run_folder.reader import RunFolder

AWKWARD = r"a_b & c% #1 ${x}$ ~ ^ \ <|>"
COMMANDS = {
    *("begin", "end", "centering", "scriptsize", "setlength", "tabcolsep", "caption", "label"),
    *("makebox", "textwidth", "toprule", "midrule", "bottomrule", "shortstack", "textit"),
    *("textbf", "tiny", "textbackslash", "textasciitilde", "textasciicircum", "pm", "times"),
    *("downarrow", "ldots", "Theta"),
}
"""What LaTeX itself and booktabs know, as far as a table needs it."""


def table_of(rows, references):
    columns = (
        Column("average", "Average accuracy (%)", "Avg"),
        Column("forgetting", "Forgetting (pp, lower is better)", "Forget", False, signed=True),
        Column("n", "n", "n", None, percent=False, form="count"),
    )
    mean = np.linspace(0.2, 0.9, 3 * len(rows)).reshape(len(rows), 3)
    mean[:, 2] = 3
    return ResultTable(
        rows=rows,
        references=references,
        columns=columns,
        mean=mean,
        spread=np.full_like(mean, 0.014),
        title="Accuracy in % after the last domain",
        notes=(AWKWARD,),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.read(fabricate_run(tmp_path_factory.mktemp("latex") / "run"))


@pytest.fixture(params=["awkward", "run", "compare", "no baselines"])
def text(request, run):
    if request.param == "awkward":
        return table_of(("low", AWKWARD, "oracle"), 1).latex()
    if request.param == "no baselines":
        return table_of(("one",), 0).latex()
    if request.param == "run":
        return main_tables(run, ACCURACY)[0].latex()
    return RENDERERS["latex"](compare_runs([run], reference="joint"))


def rows_of(text):
    """The rows of the one tabular, each a list of its cells."""
    (body,) = re.findall(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)
    lines = [line for line in body.splitlines() if line != r"\midrule"]
    assert all(line.endswith(r" \\") for line in lines)
    return [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]


def test_a_parser_finds_nothing_that_would_not_compile(text):
    assert text.isascii()
    first, *rest = text.splitlines()
    assert first == r"% needs \usepackage{booktabs}"
    text = "\n".join(rest)
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    # An underscore is for formulas alone, % and # would end the line or be a parameter.
    assert not re.search(r"[%#_^~]", bare)
    assert {*re.findall(r"\\([a-zA-Z]+)", bare)} <= COMMANDS
    (columns,) = re.findall(r"begin\{tabular\}\{(l?r*)\}", text)
    assert {len(row) for row in rows_of(text)} == {len(columns)}


def test_an_engine_sets_it_where_there_is_one(text, tmp_path):
    engine = shutil.which("tectonic") or shutil.which("pdflatex")
    document = (
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{text}\n\\end{{document}}\n"
    )
    (tmp_path / "table.tex").write_text(document)
    assert document.count(r"\begin{document}") == document.count(r"\end{document}") == 1
    if engine:
        options = ["-interaction=nonstopmode", "-halt-on-error"] if "pdf" in engine else []
        done = subprocess.run(
            [engine, *options, "table.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:]
        assert (tmp_path / "table.pdf").stat().st_size > 5_000


def test_it_says_what_it_needs_to_be_read_alone():
    text = table_of(("low", "high_up", "oracle"), 1).latex()
    assert r"\label{tab:accuracy-in-after-the-last-domain}" in text
    assert r"\caption{Accuracy in \% after the last domain. " in text
    head, low, high, oracle = rows_of(text)
    assert head[1].strip() == r"\shortstack[r]{Average accuracy\\(\%)}"
    assert head[2].strip() == r"\shortstack[r]{Forgetting\\(pp, lower is better)}"
    assert head[3].strip() == "n"
    # The best in bold, baselines in italics and below a rule.
    assert high[1].strip() == r"\textbf{46.2} {\tiny $\pm$ 1.4}"
    assert low[0].strip() == "low"
    assert oracle[0].strip() == r"\textit{oracle}"
    assert re.search(r"\\midrule\n\\textit\{oracle\}", text)


def test_every_row_is_there(run):
    text = main_tables(run, ACCURACY)[0].latex()
    names = [
        re.sub(r"\\textit\{(.*)\}", r"\1", r[0].strip()).replace("\\_", "_") for r in rows_of(text)
    ]
    assert {*names[1:]} == {*ARMS, *REFERENCES}
