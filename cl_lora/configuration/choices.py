"""The only place that knows where the YAML files of the configuration lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIG_MODULE = "cl_lora.configs"
"""The package of the YAML files, as Hydra names it."""

GROUPS = ("benchmark", "model", "strategy", "arms", "experiment")
"""The groups a user chooses from."""

FOLDER = Path(__file__).parents[1] / "configs"


def config_names(group: str) -> list[str]:
    """Return the choices of a group, sorted, without loading Hydra."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def config_text(group: str, name: str) -> str:
    """Return the YAML text of one choice, comments included."""
    return (FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8")


def config_values(group: str, name: str) -> dict[str, Any]:
    """Return one choice as a plain mapping, nothing resolved."""
    values: dict[str, Any] = yaml.safe_load(config_text(group, name)) or {}
    return values
