"""From Hydra overrides to runs: compose and check first, then execute."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_lora.configuration.choices import CONFIG_MODULE, GROUPS, config_names, config_values
from cl_lora.support.errors import UserError, unknown_name

_MULTIRUN = ("-m", "--multirun")


def launch(arguments: Sequence[str]) -> int:
    """Run the configuration that the overrides give; with --multirun every combination.

    All combinations are composed and checked before the first is run.

    Raises:
        UserError: for an unknown option, choice or value.
    """
    overrides = [a for a in arguments if a not in _MULTIRUN]
    for argument in overrides:
        if argument.startswith("-"):
            raise unknown_name("flag", argument, (*_MULTIRUN, "--help"))
    jobs = expand(overrides, multirun=len(overrides) < len(arguments))
    configs = [compose_config(job) for job in jobs]
    from cl_lora.commands.run import present

    if len(jobs) > 1:
        _check_all(configs)
    for number, (job, config) in enumerate(zip(jobs, configs, strict=True), start=1):
        if len(jobs) > 1:
            print(f"[{number}/{len(jobs)}] {' '.join(job)}", file=sys.stderr)
        present(config)
    return 0


def _check_all(configs: Sequence[Mapping[str, Any]]) -> None:
    """Check every job before the first is trained, and that no two differ in one folder."""
    from cl_lora.experiment.pipeline import check

    identities: dict[Path, Mapping[str, Any]] = {}
    variants: dict[tuple[Path, str], Mapping[str, Any]] = {}
    for settings in map(check, configs):
        for arm in settings.make_arms(settings.raw["arms"]):
            if variants.setdefault((settings.folder, arm.name), arm.variant) != arm.variant:
                raise UserError(
                    f"The combinations of --multirun would define arm {arm.name!r} in several ways "
                    f"in {settings.folder}; give each a run_dir, or the arms names of their own"
                )
        if identities.setdefault(settings.folder, settings.identity) != settings.identity:
            raise UserError(
                f"The combinations of --multirun need a folder each but all go to run_dir="
                f"{settings.folder}; leave run_dir out, or give runs_root=DIR"
            )


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
    parsed = _parse(overrides)
    for override in parsed:
        _check_choice(override)
    _check_arms_once(parsed)
    try:
        config = _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        groups = [str(o.input_line) for o in parsed if o.key_or_group in GROUPS]
        raise _explain(error, groups) from error
    return {key: value for key, value in config.items() if key != "experiment"}


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


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
        if choice not in config_names(group):
            raise unknown_name(group, "null" if choice is None else choice, config_names(group))


def _check_arms_once(overrides: Sequence[Override]) -> None:
    """Refuse a second definition of an arm, which Hydra would merge into the first in silence."""
    choice: Any = "default"
    for override in overrides:
        if override.key_or_group == "arms":
            choice = override.value()
        elif override.key_or_group == "experiment" and override.value():
            choice = None
    defined: dict[str, Any] = {}
    for group in choice if isinstance(choice, list) else [choice] if choice else []:
        for name, arm in _arms_of(str(group)).items():
            if defined.setdefault(name, arm) != arm:
                raise UserError(
                    f"Arm {name!r} is defined twice: as {defined[name]} and, in arms={group}, as "
                    f"{arm}; give one of them another name"
                )
    for override in overrides:
        key = str(override.key_or_group)
        if not (key.startswith("arms.") and override.is_add()) or key.count(".") > 1:
            continue
        name = key.removeprefix("arms.")
        if name in defined:
            raise UserError(
                f"Arm {name!r} is defined twice: as {defined[name]} and in "
                f"{override.input_line!r}; give the new one another name"
            )
        defined[name] = override.value()


def _arms_of(group: str) -> dict[str, Any]:
    return {str(name): arm for name, arm in config_values("arms", group).items()}


def _explain(error: Exception, groups: Sequence[str]) -> UserError:
    text = " ".join(str(error).split())
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)'", text)
    if key:
        name = key[1].lstrip("+~").split("@")[0]
        known = known_keys(groups)
        if name not in known:
            return unknown_name("option", name, known)
    if "duplicate key" in text:
        return UserError(f"An arm or option is defined twice: {text.split('duplicate key')[-1]}")
    if "Could not append" in text:
        return UserError(
            f"{text.split('. ')[0]}; it is defined already: leave the '+' out, or choose another "
            "name"
        )
    return UserError(f"The configuration does not compose: {text[:300]}")


def known_keys(groups: Sequence[str] = ()) -> list[str]:
    """Return every option, dotted, and every group.

    Args:
        groups: overrides that choose groups, as ``benchmark=pacs``: other choices, other options.
    """
    return sorted({*GROUPS, *_dotted(_compose(groups))})


def _dotted(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        keys.append(name)
        if isinstance(value, Mapping) and key != "arms":
            keys += _dotted(value, f"{name}.")
    return keys
