"""The summary in docs/performance.md, written from perf/results: `python -m perf.summary`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_BEGIN = "<!-- Written by python -m perf.summary from perf/results; a test compares the two. -->\n"
_END = "<!-- End of the summary. -->\n"


@dataclass(frozen=True)
class Claim:
    """One line of the summary: what was asked, what was aimed at, and what was found."""

    question: str
    aim: str
    measured: str
    met: bool | None
    """Whether the aim was reached; None where there is no aim."""

    def line(self) -> str:
        """Return the line of the Markdown table."""
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        return f"| {self.question} | {self.aim} | {self.measured} | {verdict} |\n"


def claims() -> list[Claim]:
    """Return every aim with its result."""
    vit, embedded = _result("training_vit_ti_16"), _result("training_embedded")
    strategy = [
        (name, run[f"strategy_to_hand_{precision}"], precision)
        for name, run in (("ViT-Ti", vit), ("embedded", embedded))
        for precision in ("fp32", "bf16")
    ]
    bf16 = {"ViT-Ti": vit["bf16_to_fp32"], "embedded": embedded["bf16_to_fp32"]}
    evaluation = _result("evaluation")
    merged = {p: evaluation[f"merged_to_bare_{p}"] for p in ("fp32", "bf16")}
    truncation = _result("truncation")
    difference = truncation["largest_relative_difference"]
    residuals = _result("residuals")
    apart = residuals["largest_relative_difference"]
    comparison = _result("comparison")
    (share,) = (
        row["share_of_one_adapter"]
        for row in comparison["rows"]
        if row["case"] == "one more arm, after the last experience"
    )
    joining = _result("joining")
    joined = _ratios(joining["rows"])
    growth = _result("growth")["exponents"]
    learning = _result("learning")["ties_factors_to_delta"]
    composition = _result("composition")
    routing, solvers = _result("routing"), _result("solvers")
    gathering = routing["gathering_to_training"]
    return [
        _at_least(
            "one coefficient step, afresh / with a plan",
            5,
            _result("coefficient_step")["times_less"],
        ),
        Claim(
            "one step of learning, TIES in factors / TIES in delta (linear)",
            "",
            _each(learning),
            None,
        ),
        Claim(
            "training images/s, strategy / hand-written loop",
            "at least .95",
            ", ".join(f"{ratio:.2f} {name} {precision}" for name, ratio, precision in strategy),
            min(ratio for _, ratio, _ in strategy) >= 0.95,
        ),
        Claim(
            "training images/s, bf16 / fp32",
            "at least 1.3",
            ", ".join(f"{ratio:.2f} {name}" for name, ratio in bf16.items()),
            min(bf16.values()) >= 1.3,
        ),
        Claim(
            "evaluation images/s, merged / bare timm",
            "at least .95",
            ", ".join(f"{ratio:.2f} {precision}" for precision, ratio in merged.items()),
            min(merged.values()) >= 0.95,
        ),
        _at_least("loading an epoch, decoded / cached", 5, _result("loading")["times_faster"]),
        Claim(
            "truncating a sum, peft's svd / QR of factors",
            "at least 10, difference under 1e-4",
            f"{truncation['times_faster']:.1f}, relative difference {difference:.1e}",
            truncation["times_faster"] >= 10 and difference < 1e-4,
        ),
        Claim(
            "residuals of 8 rank-128 ViT-B adapters, SVD of dense products / QR of factors",
            "at least 20, difference under 1e-4",
            f"{residuals['times_faster']:.1f}, relative difference {apart:.1e}",
            residuals["times_faster"] >= 20 and apart < 1e-4,
        ),
        Claim(
            "TIES over 32 ViT-B adapters, peak memory",
            "under 500 MB",
            f"{_result('memory')['worst_MB']:.0f} MB",
            _result("memory")["worst_MB"] < 500,
        ),
        Claim(
            "merging 16 adapters of ViT-L from folders, peak memory beyond two adapters",
            "a small constant times the largest weight",
            f"{joining['most_in_largest_weights']:.1f} times",
            None,
        ),
        Claim(
            "the same, CPU time, peft's load, merge and save / from folders to a folder",
            "",
            ", ".join(f"{ratio:.1f} {case}" for case, ratio in joined.items()),
            None,
        ),
        Claim(
            "one more fixed arm after the last experience / training one adapter",
            "",
            f"{share:.2f}",
            None,
        ),
        Claim(
            "growth to 64 adapters and 64 arms, exponent",
            "a straight line or better: at most 1.1",
            ", ".join(f"{exponent:.2f} {name}" for name, exponent in growth.items()),
            max(growth.values()) <= 1.1,
        ),
        *(
            _each_at_most(f"routed serving, {case} / one merged model", aim, found)
            for (case, found), aim in zip(
                routing["to_merged"].items(), (1.1, 1.4, None, None), strict=True
            )
        ),
        _each_at_most("gathering statistics / training the adapter", 0.25, gathering),
        Claim(
            "one more arm, forward_transfer=false / all scores",
            "",
            f"{comparison['without_forward_transfer_to_all']:.2f}",
            None,
        ),
        Claim(
            "the same, LoRA from a third of the depth / in all blocks",
            "",
            f"{comparison['from_a_block_to_all_blocks']:.2f}",
            None,
        ),
        Claim(
            "reading and normalising test images / scoring them",
            "",
            f"{comparison['reading_to_scoring']:.3f}",
            None,
        ),
        _each_at_least(
            "a composition step, dense deltas kept / bottleneck (ViT-B width)",
            1.5,
            composition["kept_to_bottleneck"],
        ),
        _each_at_least(
            "a composition step, dense deltas rebuilt / bottleneck (ViT-B width)",
            2.5,
            composition["rebuilt_to_bottleneck"],
        ),
        *(
            Claim(
                f"the same beyond the frozen layers, dense deltas {how} / bottleneck",
                "",
                _each(composition[f"{how}_to_bottleneck_beyond_frozen"]),
                None,
            )
            for how in ("kept", "rebuilt")
        ),
        Claim(
            "a composition step, extra memory, bottleneck / dense deltas (ViT-B width)",
            "at most a third",
            f"{composition['share_of_dense_memory']:.2f}",
            composition["share_of_dense_memory"] <= 1 / 3,
        ),
        _each_at_least(
            "a whole composition step, merged / bottleneck (ViT-Ti)",
            1,
            composition["merged_to_bottleneck"],
        ),
        Claim(
            "a whole composition step, merged / bottleneck (ViT-B)",
            "",
            _each(composition["merged_to_bottleneck_wide"]),
            None,
        ),
        Claim(
            "learning one coefficient per adapter, CPU time, 100 steps of Adam / Gauss-Newton",
            "at least 2 at no higher loss on the buffer",
            f"{_each(solvers['times_less'])}; lower by "
            + ", ".join(f"{lower:.3f}" for lower in solvers["loss_lower"].values()),
            min(solvers["times_less"].values()) >= 2 and min(solvers["loss_lower"].values()) >= 0,
        ),
        Claim(
            "the same, until Gauss-Newton is as low as Adam at its end",
            "",
            ", ".join(
                f"{found['mean']:.1f} {case} ({found['reached']} of {found['seeds']} seeds)"
                for case, found in solvers["times_less_to_the_same_loss"].items()
                if found["reached"]
            ),
            None,
        ),
        _at_least(
            "warming up a head 50 epochs, through the backbone / on cached features",
            10,
            composition["warm_up_times_faster"],
        ),
    ]


def with_summary(page: str) -> str:
    """Return the page with its summary written anew."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    head = "| question | aim | measured | |\n|---|---|---|---|\n"
    return before + _BEGIN + head + "".join(c.line() for c in claims()) + _END + after


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how many times the CPU time of ours peft takes, for what both did."""
    seconds = {(row["case"], row["layers"], row["by"]): row["cpu_s"] for row in rows}
    return {
        case: seconds[case, layers, "peft"] / seconds[case, layers, "cl-lora"]
        for case, layers, by in seconds
        if by == "peft"
    }


def _at_least(question: str, aim: float, found: float) -> Claim:
    return Claim(question, f"at least {aim:g}", f"{found:.1f}", found >= aim)


def _each_at_least(question: str, aim: float, found: dict[str, float]) -> Claim:
    return Claim(question, f"at least {aim:g}", _each(found), min(found.values()) >= aim)


def _each_at_most(question: str, aim: float | None, found: dict[str, float]) -> Claim:
    if aim is None:
        return Claim(question, "", _each(found), None)
    return Claim(question, f"at most {aim:g}", _each(found), max(found.values()) <= aim)


def _each(found: dict[str, float]) -> str:
    return ", ".join(f"{ratio:.2f} {of}" for of, ratio in found.items())


def _result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


if __name__ == "__main__":
    PAGE.write_text(with_summary(PAGE.read_text()))
    print("".join(claim.line() for claim in claims()), end="")
