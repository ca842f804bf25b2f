"""The report in a real browser; conftest.py collects this file where Chromium is installed."""

import json
import re
import subprocess
from html import unescape

import pytest
from chromium import CHROMIUM
from fabricate import ARMS, REFERENCES, fabricate_run, many_arms

from cl_lora.reporting.html import write_html
from cl_lora.run_folder.reader import RunFolder

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)

# Clicks as a reader would, and leaves what was read in the page.
PROBE = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("#results table");
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
  const baselines = () => [...table.tBodies[1].rows].map((row) => row.cells[0].textContent);
  const click = (i) => table.tHead.rows[0].cells[i].querySelector("button").click();
  const head = (start) =>
    [...table.tHead.rows[0].cells].findIndex((c) => c.textContent.startsWith(start));
  const average = head("Average accuracy (%)"), last = head("Average incremental");
  const sort = () => table.tHead.rows[0].cells[average].getAttribute("aria-sort");
  const seen = { average: average, before: column(0), opened: column(average), first: sort() };
  click(average); seen.up = column(average); seen.names = column(0);
  click(average); seen.down = column(average); seen.sort = sort();
  seen.baselines = baselines();
  click(last); seen.last = column(last);
  click(0); seen.alphabet = column(0);
  seen.marked = table.tHead.querySelectorAll("[aria-sort]").length;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.images = [...document.querySelectorAll(".plot svg, .plot img")].map(
    (image) => image.closest("details") ? 1 : image.getBoundingClientRect().width);
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const panels = () => [...document.querySelectorAll("[role=tabpanel]")].map((p) => p.hidden);
  seen.panels = [panels()];
  tabs[0].focus();
  tabs[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  seen.panels.push(panels());
  seen.focus = document.activeElement.textContent;
  const plot = document.querySelector(".plot"), tip = document.getElementById("tip");
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
  seen.tip = tip.textContent;
  const box = plot.querySelectorAll("[data-tip]")[2].getBoundingClientRect();
  const at = { clientX: box.left + 2, clientY: box.top + 2, bubbles: true };
  plot.dispatchEvent(new PointerEvent("pointermove", at));
  seen.hovered = tip.textContent;
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  seen.hidden = tip.textContent;
  location.hash = "#numbers";
  unfold();
  seen.unfolded = document.getElementById("numbers").open;
  document.body.innerHTML = "";
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "run"
    long = {f"a_merge_method_with_a_long_name_b{b}": ARMS["ties_w1"] for b in (1, 3)}
    arms = {**many_arms(("ties", "linear")), **long}
    run = RunFolder.read(fabricate_run(path, arms=arms))
    return write_html(run)


def browse(page, tmp_path):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def seen(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    page = folder / "probe.html"
    page.write_text(report.read_text().replace("</body>", PROBE + "</body>"))
    dom, console = browse(page, folder)
    assert console == []
    return json.loads(unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))


def number(text):
    return float(re.match(r"[+−]?[\d.]+", text)[0].replace("−", "-"))


def test_the_report_opens_without_a_console_message(report, tmp_path):
    dom, console = browse(report, tmp_path)
    assert console == []
    assert "Every number" in dom


def test_a_click_sorts_by_number_and_again_the_other_way(seen):
    down = [number(x) for x in seen["down"]]
    assert down == sorted(down, reverse=True)
    # As the page is opened it is sorted already, the best first.
    assert seen["opened"] == seen["down"]
    assert seen["first"] == seen["sort"] == "descending"
    assert [number(x) for x in seen["up"]] == sorted(down)
    # Rows move as a whole, none is lost, and baselines keep to their block.
    assert sorted(seen["names"]) == sorted(seen["before"])
    assert seen["names"] != seen["before"]
    assert seen["baselines"][0] == "Baselines"
    assert {*seen["baselines"][1:]} == {*REFERENCES}


def test_a_tab_is_chosen_by_an_arrow_key(seen):
    assert seen["panels"] == [[False, True], [True, False]]
    assert seen["focus"] == "Macro F1"


def test_marks_say_their_name_and_numbers_by_key_and_by_pointer(seen):
    assert re.search(r"^\w+: [\d.]+ ± [\d.]+ %, the best arm$", seen["tip"])
    assert re.search(
        r"^\w+: [\d.]+ ± [\d.]+ %; −[\d.]+ \[.*\] points from the best", seen["hovered"]
    )
    assert seen["hidden"] == ""


def test_a_link_opens_what_is_folded(seen):
    assert seen["unfolded"] is True


def test_undefined_values_stay_last(seen):
    defined = [number(x) for x in seen["last"] if x != "–"]
    assert seen["last"][: len(defined)] == [x for x in seen["last"] if x != "–"]
    assert defined == sorted(defined, reverse=True)


def test_names_sort_by_alphabet_and_one_heading_is_marked(seen):
    assert seen["alphabet"] == sorted(seen["before"])
    assert seen["marked"] == 1


def test_figures_are_shown_and_nothing_sticks_out(seen):
    assert len(seen["images"]) == 7
    assert all(width > 0 for width in seen["images"])
    assert seen["overflow"] <= 0


def test_nothing_sticks_out_on_a_phone(report, tmp_path):
    # Headless windows have a least width of about 500 pixels: a frame is as narrow as a phone.
    page = tmp_path / "phone.html"
    inner = json.dumps(report.read_text()).replace("</", "<\\/")
    page.write_text(
        f"""<body><iframe id="phone" width="390" height="800"></iframe><script>
        const frame = document.getElementById("phone");
        frame.srcdoc = {inner};
        frame.addEventListener("load", () => {{
          const root = frame.contentDocument.documentElement;
          document.body.dataset.widths = root.scrollWidth + " " + root.clientWidth;
          const names = [...root.querySelectorAll("#results tbody:first-of-type th")];
          document.body.dataset.cut = names.filter((x) => x.scrollWidth > x.clientWidth).length;
          document.body.dataset.highest = Math.max(...names.map((x) => x.clientHeight));
        }});</script></body>"""
    )
    dom, console = browse(page, tmp_path)
    assert console == []
    scroll, client = map(int, re.search(r'data-widths="(\d+) (\d+)"', dom).groups())
    assert client == pytest.approx(390, abs=20)
    assert scroll <= client
    assert 'data-cut="0"' in dom  # names that differ at their end only can be told apart
    assert (
        int(re.search(r'data-highest="(\d+)"', dom)[1]) < 80
    )  # two lines or three, not a letter a line
