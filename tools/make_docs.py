"""Write docs/methods.md from the registries: `python tools/make_docs.py` after a change there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cl_lora.merging import METHODS, RULES, methods_table, rules_table
from cl_lora.merging.registry import OptionSpec
from cl_lora.merging.residuals import RESIDUALS, residuals_table

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"

_INTRO = """\
# Merge methods, coefficient rules and residuals

<!-- Written by tools/make_docs.py from the registries; a test compares the two. Do not edit. -->

An arm is a merge method, a space and a rule for the coefficients, and may keep a residual of every
task beside them. `cl-lora list methods`, `coefficients` and `residuals` print the same from the
command line.

Notation: adapter i updates a weight by `dW_i = s_i B_i A_i`, `alpha_i` is its coefficient, and
`top(T, density)` keeps the entries of T that are largest in magnitude. In space `delta` the
formulas hold as they stand. In space `factors` the same is done to the A and to the B apart, as
peft does, with weights `sqrt(alpha_i s_i)` on both: their product has cross terms `B_i A_j`.
Method, space, scaling and every option are the arm's *variant*, which `config.yaml` of the run
records with every default.

## Merge methods

*Variant by default* is what the options are if none is given; each is explained below the table.
*Coefficients can be learned* says how a rule that learns by gradient gets its gradient. Where the
merged update is linear in the coefficients, each step is a weighted sum of tensors made once (the
linear fast path); where it is only differentiable, each step merges again; with `rank` set neither
holds, because the gradient through an SVD is not to be trusted. *Data* are samples that the merge
itself needs beyond the adapters; *task* is whether the task of an image must be known when it is
classified.

"""

_OPTIONS = """
## Options of the methods

Every method also takes `rank` (default none, but for `svd`): {rank}.

"""

_RULES = """
## Coefficient rules

*Learned* rules need a buffer (`spc` samples per class and domain, from train images only). Those
learned by gradient have parameters that a *solver* finds: `adam` needs a method whose coefficients
can be learned by gradient, `gauss_newton` works with every method. A search merges once for each
candidate and works with every method too. By granularity `adapter` a coefficient holds for a whole
adapter, by `layer` for a layer of the model (found by its index in names such as `blocks.3.`,
`h.3.` or `encoder.layer.3.`), by `module` for one weight.

"""


_RESIDUALS = """
## Residuals

What one task keeps of its own beside the base that all tasks share: the difference `u_t` of its own
update `v_t` to the base, compressed. The base is the merged update of an arm, or nothing (the
pre-trained weights) in an arm without a method. *Task* is whether the task must be known when a
sample is classified.

"""


def page() -> str:
    """Return the text of docs/methods.md."""
    methods = _table(
        (
            "method",
            "update",
            "variant by default",
            "coefficients can be learned",
            "spaces",
            "data",
            "task",
            "paper",
        ),
        [
            (
                f"`{row['name']}`",
                f"`{row['formula']}`",
                f"`{row['options']}`",
                row["learned"],
                row["spaces"],
                row["data"],
                row["task"],
                row["paper"],
            )
            for row in methods_table()
        ],
    )
    rules = _table(
        ("rule", "coefficients", "learned", "paper"),
        [
            (f"`{row['name']}`", f"`{row['formula']}`", row["learned"], row["paper"])
            for row in rules_table()
        ],
    )
    residuals = _table(
        ("residual", "update that serves task t", "options", "task", "paper"),
        [
            (
                f"`{row['name']}`",
                f"`{row['formula']}`",
                f"`{row['options']}`",
                row["task"],
                row["paper"],
            )
            for row in residuals_table()
        ],
    )
    of_methods = [
        _section(name, METHODS[name].summary, METHODS[name].options) for name in sorted(METHODS)
    ]
    of_rules = [_section(name, "", RULES[name].options) for name in sorted(RULES)]
    of_residuals = [
        _section(name, kind.summary, kind.options) for name, kind in sorted(RESIDUALS.items())
    ]
    rank = next(iter(METHODS.values())).options["rank"].help
    return (
        _INTRO
        + methods
        + _OPTIONS.format(rank=rank)
        + "".join(of_methods)
        + _RULES
        + rules
        + "\n### Options of the rules\n\n"
        + "".join(of_rules)
        + _RESIDUALS
        + residuals
        + "\n### Options of the residuals\n\n"
        + "".join(of_residuals)
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _section(name: str, summary: str, options: Mapping[str, OptionSpec]) -> str:
    own = {key: spec for key, spec in options.items() if key != "rank"}
    if not own and not summary:
        return ""
    lines = [f"- **`{name}`**" + (f": {summary}." if summary else "")]
    for key, spec in own.items():
        default = "none" if spec.default is None else spec.default
        lines.append(f"  - `{key}={default}`: {spec.help} ({spec.expected}).")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
