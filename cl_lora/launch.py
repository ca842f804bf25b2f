"""From Hydra overrides to runs: compose and check first, then execute."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_lora.cli import config_names
from cl_lora.errors import UserError, unknown_name

CONFIG_MODULE = "cl_lora.configs"
GROUPS = ("benchmark", "model", "strategy", "arms", "experiment")
_MULTIRUN = ("-m", "--multirun")


def launch(arguments: Sequence[str]) -> int:
    """Run the configuration that the overrides give; with --multirun every combination.

    All combinations are composed and checked for unknown names before the first is run.

    Raises:
        UserError: for an unknown option, choice or value.
    """
    overrides = [a for a in arguments if a not in _MULTIRUN]
    for argument in overrides:
        if argument.startswith("-"):
            raise unknown_name("flag", argument, (*_MULTIRUN, "--help"))
    jobs = expand(overrides, multirun=len(overrides) < len(arguments))
    configs = [compose_config(job) for job in jobs]
    from cl_lora.show import present

    for number, (job, config) in enumerate(zip(jobs, configs, strict=True), start=1):
        if len(jobs) > 1:
            print(f"[{number}/{len(jobs)}] {' '.join(job)}", file=sys.stderr)
        present(config)
    return 0


def expand(overrides: Sequence[str], *, multirun: bool) -> list[list[str]]:
    """Return the overrides of each job: one, or with ``multirun`` one a combination of sweeps."""
    parsed = _parse(overrides)
    if not multirun:
        for override in parsed:
            if override.is_sweep_override():
                raise UserError(
                    f"{override.input_line!r} names several values; add --multirun to run each, or "
                    "write a list as KEY=[A,B]"
                )
        return [list(overrides)]
    from itertools import product

    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in parsed
    ]
    return [list(job) for job in product(*choices)]


def compose_config(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration of one job as plain containers.

    Raises:
        UserError: for whatever Hydra refuses, in one sentence with the nearest known names.
    """
    for override in _parse(overrides):
        _check_choice(override)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            config = compose("config", overrides=list(overrides))
            plain = OmegaConf.to_container(config, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, overrides) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "experiment"}


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{first}; write overrides as KEY=VALUE") from error


def _check_choice(override: Override) -> None:
    """Refuse an unknown choice of a group; a path or a package override is left to Hydra."""
    group = str(override.key_or_group)
    if group not in GROUPS or override.is_delete() or override.is_sweep_override():
        return
    value = override.value()
    for choice in value if isinstance(value, list) else [value]:
        if choice is not None and choice not in config_names(group):
            raise unknown_name(group, choice, config_names(group))


def _explain(error: Exception, overrides: Sequence[str]) -> UserError:
    text = " ".join(str(error).split())
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)'", text)
    if key:
        name = key[1].lstrip("+~").split("@")[0]
        known = known_keys()
        if name not in known:
            return unknown_name("option", name, known)
    if "duplicate key" in text:
        return UserError(f"An arm or option is defined twice: {text.split('duplicate key')[-1]}")
    if "append" in text:
        return UserError(f"{text.split('. ')[0]}; it is defined already, choose another name")
    return UserError(f"The configuration does not compose: {text[:300]}")


def known_keys() -> list[str]:
    """Return every option of the default configuration, dotted, and every group."""
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = OmegaConf.to_container(compose("config"))
    assert isinstance(config, dict)
    return [*GROUPS, *_dotted(config)]


def _dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        keys.append(name)
        if isinstance(value, Mapping) and key != "arms":
            keys += _dotted(value, f"{name}.")
    return keys
