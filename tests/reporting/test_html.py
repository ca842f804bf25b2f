import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from fabricate import ARMS, DOMAINS, REFERENCES, fabricate_hits, fabricate_run
from other_runs import as_errors, as_stages
from scipy import stats

from cl_lora.evaluation.scores import ScoreTable
from cl_lora.reporting.answers import answers_of
from cl_lora.reporting.html import render_html, write_html
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

VOID = {"meta", "link", "br", "img"}


class Checker(HTMLParser):
    """Collects tags, table rows and addresses, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.tables, self.cells = [], [], set(), [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [v for k, v in attrs.items() if k in ("src", "href")]
        if "id" in attrs:
            assert attrs["id"] not in self.ids
            self.ids.add(attrs["id"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.read(fabricate_run(tmp_path_factory.mktemp("html") / "run"))


@pytest.fixture(scope="module")
def page(run):
    return render_html(run)


@pytest.fixture(scope="module")
def parsed(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_one_file_without_network(parsed, page):
    # What lies beside the page is linked to, and never loaded.
    beside = {"scores.csv", "figures/"}
    assert all(a.startswith(("data:", "#")) or a in beside for a in parsed.addresses)
    assert {a[1:] for a in parsed.addresses if a.startswith("#")} <= parsed.ids
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)
    # Namespaces inside figures are base64; no other address may be there.
    assert "http" not in page


def test_every_arm_is_in_the_results_and_in_words(parsed, page):
    rows = [row[0] for row in parsed.tables[0]]
    assert rows[0] == "Arm"
    assert {*rows[1:4]} == {*ARMS}
    assert rows[4] == "Baselines"
    assert {*rows[5:]} == {*REFERENCES}
    assert parsed.tables[0][0][1:6] == [*DOMAINS, "Average accuracy (%)"]
    for arm in (*ARMS, *REFERENCES):
        assert f"<dt>{arm}</dt><dd>" in page
    assert "The method ties. Coefficients: {" in page
    assert "<dd>Reference row: what joint is.</dd>" in page
    assert "{method: ties, density: 0.2, coefficients: 1.0}" in page


def test_every_score_and_coefficient_is_there(run, parsed):
    (numbers,) = (t for t in parsed.tables if t[0][:4] == ["Arm", "Seed", "Metric", "Stage"])
    shown = {
        (row[0], int(row[1]), row[2], row[3], DOMAINS[j], cell)
        for row in numbers[1:]
        for j, cell in enumerate(row[4:])
    }
    expected = {
        (
            s.arm,
            s.seed,
            s.metric,
            "–" if s.stage < 0 else DOMAINS[s.stage],
            DOMAINS[s.evaluated],
            f"{s.value:.4f}",
        )
        for s in run.scores
    }
    assert shown == expected
    (alphas,) = (t for t in parsed.tables if t[0][:4] == ["Arm", "Seed", "Stage", "Group"])
    assert sum(c != "–" for row in alphas[1:] for c in row[4:]) == len(run.coefficients)


def test_differences_are_to_the_first_reference_row(run, parsed, page):
    assert run.references[0] == "base"
    captions = re.findall(r"<caption>Differences to (.*?)</caption>", page)
    assert captions == ["ties_w1", "base"]  # the best arm first
    assert "Differences to base: " in page
    assert "Student&#39;s t over seeds, for these domains" in page
    assert "Holm-corrected for 7 comparisons" in page
    tables = [t for t in parsed.tables if t[0][:2] == ["Arm", "Difference, points"]]
    table = [row for row in tables[1] if row != ["Baselines"]]
    assert table[0][2:] == ["Low", "High", "n (seeds)", "p", "p, Holm"]
    assert {row[0] for row in table[1:]} == {*ARMS, *REFERENCES} - {"base"}
    assert {row[4] for row in table[1:]} == {"2"}
    averages = {a: [run.scores.matrix(s, a).values[-1].mean() for s in (0, 1)] for a in ARMS}
    averages["base"] = [run.scores.matrix(s, "base").values[-1].mean() for s in (0, 1)]
    test = stats.ttest_rel(averages["ties_w1"], averages["base"])
    low, high = test.confidence_interval(0.95)
    (row,) = (row for row in table if row[0] == "ties_w1")
    assert [float(x.replace("−", "-")) for x in row[2:4]] == pytest.approx(
        [100 * low, 100 * high], abs=0.051
    )
    assert row[5] == f"{test.pvalue:.3f}"


def test_one_seed_has_an_interval_over_test_images(tmp_path):
    path = fabricate_run(tmp_path / "run", seeds=(4,))
    fabricate_hits(path, (4,), ("ties_w1", "base"))
    page = render_html(RunFolder.read(path), {})
    checker = Checker()
    checker.feed(page)
    assert "paired bootstrap of 1200 samples" in page
    assert "it says nothing about another seed" in page
    *_, table = (t for t in checker.tables if t[0][:2] == ["Arm", "Difference, points"])
    assert table[0][2:] == ["Low", "High", "n (test samples)"]
    rows = {row[0]: row for row in table[1:]}
    assert rows["ties_w1"][4] == "1200"
    low, mean, high = (float(rows["ties_w1"][i].replace("−", "-")) for i in (2, 1, 3))
    assert low < mean < high
    assert rows["ta_w1"][2:4] == ["–", "–"]  # its hits were not kept


def test_the_recorded_order_of_references_decides_not_their_names(tmp_path):
    rows = ("one_of_tomorrow", "sequential", "base")
    page = render_html(RunFolder.read(fabricate_run(tmp_path / "run", references=rows)), {})
    assert "<caption>Differences to one_of_tomorrow</caption>" in page


def test_one_comparison_and_one_arm_are_not_plurals(tmp_path):
    path = fabricate_run(tmp_path / "run", arms={"only": ARMS["ties_w1"]}, references=("base",))
    page = render_html(RunFolder.read(path), {})
    assert "Holm-corrected for 1 comparison." in page
    assert "<dd>The only arm, only, reaches " in page


def test_one_seed_without_hits_has_no_interval(tmp_path):
    page = render_html(RunFolder.read(fabricate_run(tmp_path / "run", seeds=(4,))), {})
    assert "of the average of one seed, without an interval" in page


def test_a_scalar_is_shown_in_its_unit(tmp_path):
    path = as_errors(fabricate_run(tmp_path / "run"))
    run = RunFolder.read(path)
    page = render_html(run, {})
    checker = Checker()
    checker.feed(page)
    title = "RMSE in px after the last domain, mean ± standard deviation over 2 seeds"
    assert f"<caption>{title}</caption>" in page
    assert "Difference, px" in checker.tables[1][0]
    assert "Average RMSE (px, lower is better)" in checker.tables[0][0]
    means = {a: np.mean([run.scores.matrix(s, a, "rmse").values[-1] for s in (0, 1)]) for a in ARMS}
    best = min(means, key=means.get)
    said = re.search(r"<dd>(.*?)</dd>", page)[1].replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith(f"Use {best} ({means[best]:.3f} px).")
    assert "%" not in said
    # The least error is the first row, and a first click leads there again.
    assert checker.tables[0][1][0] == best
    assert 'data-first="ascending" aria-sort="ascending"' in page


def test_the_training_score_is_that_of_the_recorded_metric(tmp_path, parsed):
    heading = ["Adapter", "Bank", "Seed", "Epochs", "First loss", "Last loss"]
    (table,) = (t for t in parsed.tables if t[0][0] == "Adapter")
    assert table[0] == [*heading, "Last Accuracy in %"]
    assert table[1][-1] == f"{100 * (1 - 0.5 * 0.6**4):.1f}"
    path = as_errors(fabricate_run(tmp_path / "run", seeds=(0,)))
    for adapter in path.glob("adapters/*/*/training.json"):
        # As before metrics were recorded, but for one of them.
        adapter.write_text(json.dumps({"loss": [{"epoch": 1, "loss": 2.0, "accuracy": 0.5}]}))
    new = path / "adapters" / "seed-0" / "00-photo" / "training.json"
    new.write_text(json.dumps({"metric": "rmse", "loss": [{"epoch": 1, "loss": 2, "rmse": 7.25}]}))
    checker = Checker()
    checker.feed(render_html(RunFolder.read(path), {}))
    (table,) = (t for t in checker.tables if t[0][0] == "Adapter")
    assert table[0] == [*heading, "Last RMSE in px"]
    shown = {(row[0], row[1]): row[-1] for row in table[1:]}
    assert shown.pop(("00 photo", "fresh")) == "7.250"
    assert set(shown.values()) == {"–"}


def test_without_order_there_is_no_forgetting(tmp_path):
    path = as_stages(fabricate_run(tmp_path / "run"), {"all": None})
    page = render_html(RunFolder.read(path), {})
    checker = Checker()
    checker.feed(page)
    title = "Accuracy in % at stage all, mean ± standard deviation over 2 seeds"
    assert f"<caption>{title}</caption>" in page
    assert checker.tables[0][0] == ["Arm", *DOMAINS, "Average accuracy (%)", "n"]


def test_the_answers_lead_and_name_the_best_arm(run, page):
    said = [unescape(a) for a in re.findall(r"<div><dt>.*?</dt><dd>(.*?)</dd></div>", page)]
    assert said == [answer.sentence for answer in answers_of(run)]
    means = {a: sum(run.scores.matrix(s, a).values[-1].mean() for s in run.seeds) / 2 for a in ARMS}
    assert said[0].startswith(f"Use {max(means, key=means.get)} (")
    assert page.index(said[0].split(".")[0]) < page.index("<table")


def test_the_command_that_made_the_run_can_be_copied(tmp_path):
    path = fabricate_run(tmp_path / "run")
    assert 'id="command"' not in render_html(RunFolder.read(path), {})  # none was recorded
    environment = json.loads((path / "environment.json").read_text())
    first = {"command": ["/usr/bin/cl-lora", "run", "seeds=[0]"]}
    environment |= {"command": ["cl-lora", "run", "seeds=[0, 1]"], "earlier": [first]}
    (path / "environment.json").write_text(json.dumps(environment))
    page = unescape(render_html(RunFolder.read(path), {}))
    assert "cl-lora run 'seeds=[0]'\ncl-lora run 'seeds=[0, 1]'</pre>" in page
    assert 'class="copy" data-of="command"' in page


def test_configuration_environment_and_definitions(page):
    assert "lr: 0.0001" in page
    assert "git_commit: abc123" in page
    assert "&amp;id001" not in page  # no YAML anchors
    assert "mean_{j&lt;T} (max_{l&lt;T} R[l,j] - R[T,j]) (Chaudhry et al. 2018)" in page


def test_names_are_escaped(tmp_path):
    path = fabricate_run(tmp_path / "run", domains=("<b>&", 'a"quote'), name="<script>x</script>")
    page = render_html(RunFolder.read(path))
    assert "<b>&" not in page
    assert "<script>x" not in page
    checker = Checker()
    checker.feed(page)
    assert checker.tables[0][0][1:3] == ["<b>&", 'a"quote']


def test_the_same_run_gives_the_same_bytes(run, page):
    path = write_html(run)
    assert path == run.path / "report.html"
    assert path.read_text() == page


def test_what_a_run_may_lack(tmp_path):
    path = fabricate_run(
        tmp_path / "run", arms={"only": ARMS["ties_w1"]}, references=(), seeds=(0,)
    )
    (path / "coefficients.csv").unlink()
    (path / "environment.json").unlink()
    for curve in path.glob("adapters/*/*/training.json"):
        curve.unlink()
    page = render_html(RunFolder.read(path))
    assert "No training curves were recorded" in page
    # Nothing but the arm itself, from which nothing differs.
    assert "<caption>Differences to" not in page or "<tbody>\n</tbody>" in page
    assert "All coefficients" not in page


def test_an_unfinished_run_has_no_report(run_path):
    kept = [s for s in ScoreTable.read(run_path / "scores.csv") if s.arm != "joint"]
    ScoreTable(kept).write(run_path / "scores.csv")
    with pytest.raises(UserError, match="unfinished"):
        render_html(RunFolder.read(run_path, allow_unfinished=True), {})
