"""``cl-lora list``: everything that can be chosen, from the registries themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from cl_lora.commands.terminal import Parser, console
from cl_lora.configuration.choices import config_names, config_text, config_values
from cl_lora.support.errors import unknown_name

Rows = Sequence[Mapping[str, str]]


def _configs(group: str, describe: Callable[[Mapping[str, Any]], str]) -> Rows:
    rows = []
    for name in config_names(group):
        rows.append({"name": name, "what": describe(config_values(group, name))})
    return rows


def _comment(group: str, line: int = 0) -> Rows:
    rows = []
    for name in config_names(group):
        comments = [part for part in config_text(group, name).splitlines() if "#" in part]
        what = comments[line].split("#", 1)[1].strip() if len(comments) > line else ""
        rows.append({"name": name, "what": what})
    return rows


def _benchmarks() -> Rows:
    comments = {row["name"]: row["what"] for row in _comment("benchmark")}
    rows = []
    for name in config_names("benchmark"):
        config = config_values("benchmark", name)
        domains = config.get("styles") or config.get("domains")
        what = ", ".join(domains) if domains else comments[name]
        rows.append({"name": name, "what": f"{config['kind']}: {what}"})
    return rows


def _arms() -> Rows:
    return _configs("arms", lambda arms: f"{len(arms)} arms: {', '.join(arms)}" if arms else "none")


def _methods() -> Rows:
    from cl_lora.merging import methods_table

    return methods_table()


def _coefficients() -> Rows:
    from cl_lora.merging import rules_table

    return rules_table()


def _residuals() -> Rows:
    from cl_lora.merging.residuals import residuals_table

    return residuals_table()


def _metrics() -> Rows:
    from cl_lora.evaluation.metrics import METRICS

    def describe(unit: str, higher: bool) -> str:
        return f"{f'in {unit}, ' if unit else ''}{'higher' if higher else 'lower'} is better"

    return [
        {"name": name, "title": m.title, "scale": describe(m.unit, m.higher_is_better)}
        for name, m in METRICS.items()
    ]


def _registry(module: str, registry: str, field: str = "summary") -> Callable[[], Rows]:
    """Return the names of a registry's entries, with what ``field`` says of each."""

    def rows() -> Rows:
        entries: Mapping[str, Any] = getattr(import_module(module), registry)
        return [{"name": name, "what": getattr(e, field)} for name, e in entries.items()]

    return rows


LISTS: Mapping[str, Callable[[], Rows]] = {
    "benchmarks": _benchmarks,
    "models": lambda: _comment("model"),
    "model_sources": _registry("cl_lora.models.backbones", "MODEL_SOURCES"),
    "methods": _methods,
    "coefficients": _coefficients,
    "residuals": _residuals,
    "arms": _arms,
    "experiments": lambda: _comment("experiment", line=1),
    "heads": _registry("cl_lora.models.head_policies", "HEAD_POLICIES"),
    "adaptations": _registry("cl_lora.experiment.adaptations", "ADAPTATIONS"),
    "head_starts": _registry("cl_lora.experiment.head_starts", "HEAD_STARTS"),
    "references": _registry("cl_lora.experiment.references", "REFERENCES"),
    "protocols": _registry("cl_lora.experiment.stages", "PROTOCOLS"),
    "images": _registry("cl_lora.benchmarks.sources.image_sets", "IMAGE_SETS"),
    "texts": _registry("cl_lora.benchmarks.sources.text_sets", "TEXT_SETS"),
    "sources": _registry("cl_lora.benchmarks.sources.tasks", "TASK_SOURCES"),
    "kinds": _registry("cl_lora.tasks", "KINDS"),
    "metrics": _metrics,
    "figures": _registry("cl_lora.reporting.figures", "FIGURES", "title"),
    "trackers": _registry("cl_lora.tracking", "TRACKERS"),
}
"""What can be listed; every entry makes its rows when it is asked for."""


def run(given: Sequence[str]) -> int:
    """Print one of :data:`LISTS`."""
    parser = Parser(
        "list",
        "List what can be chosen, each with a sentence or its options.",
        ["list methods", "list arms", "list metrics --plugin my.module"],
    )
    parser.add_argument("what", metavar="WHAT", help=f"one of: {', '.join(LISTS)}")
    parser.add_plugins()
    arguments = parser.parse_args(given)
    if arguments.what not in LISTS:
        raise unknown_name("list", arguments.what, LISTS)
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(arguments.plugins)
    show(arguments.what)
    return 0


def show(what: str) -> None:
    """Print the rows of a list, every row as a heading with its fields below.

    A block a row, not a table: formulas and options stay readable at 80 columns.
    """
    from rich.padding import Padding
    from rich.text import Text

    shown = console()
    for row in LISTS[what]():
        fields = {key: value for key, value in row.items() if key != "name" and value}
        shown.print(Text(row["name"], style="bold"))
        for key, value in fields.items():
            text = value if list(fields) == ["what"] else f"{key}: {value}"
            shown.print(Padding(Text(text), (0, 0, 0, 4)))
