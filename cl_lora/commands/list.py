"""What `cl-lora list` shows: everything that can be chosen, from the registries themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cl_lora.configuration.choices import config_names, config_text, config_values

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
    def describe(config: Mapping[str, Any]) -> str:
        domains = config.get("styles") or config.get("domains")
        return f"{config['kind']}: {', '.join(domains) if domains else 'your own domains'}"

    return _configs("benchmark", describe)


def _arms() -> Rows:
    return _configs("arms", lambda arms: f"{len(arms)} arms: {', '.join(arms)}" if arms else "none")


def _methods() -> Rows:
    from cl_lora.merging import methods_table

    return methods_table()


def _coefficients() -> Rows:
    from cl_lora.merging import rules_table

    return rules_table()


LISTS: Mapping[str, Callable[[], Rows]] = {
    "benchmarks": _benchmarks,
    "models": lambda: _comment("model"),
    "methods": _methods,
    "coefficients": _coefficients,
    "arms": _arms,
    "experiments": lambda: _comment("experiment", line=1),
}


def show(what: str) -> None:
    """Print one of :data:`LISTS`, every row as a heading with its fields below.

    A block a row, not a table: formulas and options stay readable at 80 columns.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console()
    for row in LISTS[what]():
        fields = {key: value for key, value in row.items() if key != "name" and value}
        console.print(Text(row["name"], style="bold"))
        for key, value in fields.items():
            text = value if list(fields) == ["what"] else f"{key}: {value}"
            console.print(Padding(Text(text), (0, 0, 0, 4)))
