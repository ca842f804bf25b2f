"""The summary of docs/performance.md says what was measured, and a missed aim shows."""

import json
import re

import pytest

from perf import summary


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Point the summary at a copy of the results, and return how to change one of them."""
    for file in summary.RESULTS.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.setattr(summary, "RESULTS", tmp_path)

    def change(name, **values):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def test_the_page_says_what_was_measured():
    page = summary.PAGE.read_text()
    assert summary.with_summary(page) == page, "run python -m perf.summary"


def test_another_result_makes_another_page(measured):
    page = summary.PAGE.read_text()
    measured("loading", times_faster=6.25)
    changed = summary.with_summary(page)
    assert re.search(r"decoded / cached \| at least 5 \| 6.2 \| met", changed)
    assert changed.split("End of the summary")[1] == page.split("End of the summary")[1]


@pytest.mark.parametrize(
    ("name", "values", "question"),
    [
        ("loading", {"times_faster": 4.9}, "loading an epoch"),
        ("coefficient_step", {"times_less": 4.9}, "one coefficient step"),
        ("memory", {"worst_MB": 501}, "TIES over 32"),
        ("truncation", {"largest_relative_difference": 2e-4}, "truncating a sum"),
        ("truncation", {"times_faster": 9}, "truncating a sum"),
        ("training_embedded", {"strategy_to_hand_bf16": 0.94}, "hand-written loop"),
        ("training_vit_ti_16", {"bf16_to_fp32": 1.29}, "bf16 / fp32"),
        ("evaluation", {"merged_to_bare_fp32": 0.94}, "merged / bare timm"),
        ("composition", {"kept_to_bottleneck": {"a": 2, "b": 1.49}}, "step, dense deltas kept"),
        ("composition", {"rebuilt_to_bottleneck": {"a": 2.49}}, "step, dense deltas rebuilt"),
        ("composition", {"share_of_dense_memory": 0.34}, "extra memory"),
        ("composition", {"merged_to_bottleneck": {"a": 0.99}}, "bottleneck (ViT-Ti)"),
        ("composition", {"warm_up_times_faster": 9.9}, "warming up a head"),
        (
            "routing",
            {"to_merged": {"hard, one pass": {"a": 1.11}, "b": {"a": 1}, "c": {}, "d": {}}},
            "routed serving, hard, one pass",
        ),
        ("routing", {"gathering_to_training": {"a": 0.1, "b": 0.26}}, "gathering statistics"),
        ("growth", {"exponents": {"TIES": 1.38, "arms": 1.0}}, "growth to 64"),
    ],
)
def test_a_missed_aim_is_said(measured, name, values, question):
    measured(name, **values)
    (claim,) = [c for c in summary.claims() if question in c.question]
    assert claim.met is False
    assert "**missed**" in claim.line()
