"""``config.yaml``: what a run is, and every arm, row and seed of all its commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cl_lora.run_folder.layout import CONFIG_FILE, FORMAT
from cl_lora.support import files
from cl_lora.support.errors import UserError

_OWN = (
    "format",
    files.SEAL,
    "name",
    "identity",
    "identity_defaults",
    "arms",
    "variants",
    "descriptions",
    "references",
    "yardstick",
    "seeds",
    "stopped",
    "last_stages",
    "roles",
    "cpu_threads",
)


_IDENTITY = ("data", "backbone", "strategy", "protocol", "precision", "device")
"""What every identity tells."""


@dataclass(frozen=True)
class ConfigRecord:
    """The contents of ``config.yaml``.

    Attributes:
        name: of the run.
        identity: what decides its numbers.
        identity_defaults: strategy options at their defaults: what they mean for a run that was
            made before there was such an option.
        arms: name -> settings as they were given.
        variants: name -> the arm with every default written out.
        descriptions: name of an arm or a baseline -> what it is, in sentences.
        references: names of the baselines.
        yardstick: the one that a report measures the arms by; None where there is none.
        seeds: ascending.
        stopped: arms that diverged, with variant and reason; no report shows them.
        last_stages: name of an arm or a baseline -> the last stage at which it is scored,
            where that is not the last of the run.
        roles: name of a baseline, or of an arm that is a control -> what it stands for, such
            as ``single`` or ``trivial``, where the analysis of a run asks for it.
        cpu_threads: how many CPU threads computed it, as other numbers of them add up in another
            order; None where it is not recorded.
        settings: the rest of the configuration, as the last command had it.
    """

    name: str
    identity: Mapping[str, Any]
    identity_defaults: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    yardstick: str | None = None
    seeds: tuple[int, ...] = ()
    stopped: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    last_stages: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    cpu_threads: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return plain containers, in the order in which they are written."""
        return {
            "format": FORMAT,
            "name": self.name,
            "identity": self.identity,
            "identity_defaults": self.identity_defaults,
            **{k: v for k, v in self.settings.items() if k not in _OWN},
            "arms": self.arms,
            "variants": self.variants,
            "descriptions": self.descriptions,
            "references": list(self.references),
            "yardstick": self.yardstick,
            "seeds": list(self.seeds),
            **({"stopped": self.stopped} if self.stopped else {}),
            **({"last_stages": self.last_stages} if self.last_stages else {}),
            **({"roles": self.roles} if self.roles else {}),
            **({"cpu_threads": self.cpu_threads} if self.cpu_threads else {}),
        }


def write_config(folder: Path, config: ConfigRecord) -> None:
    """Write ``config.yaml``, whole or not at all."""
    # Copied through JSON: tuples become lists, and shared parts are written out, not aliased.
    plain = json.loads(json.dumps(config.record()))
    # Near the top, where it is not lost with what is cut off at the end.
    plain = {"format": plain["format"], files.SEAL: _seal(plain), **plain}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    files.write_text(folder / CONFIG_FILE, text)


def _seal(values: Mapping[str, Any]) -> str:
    """Return the digest of all values; the order counts, as that of the arms is that of tables."""
    told = {key: value for key, value in values.items() if key != files.SEAL}
    return files.digest(json.dumps(told, default=str).encode())


def read_config(folder: Path) -> ConfigRecord:
    """Read ``config.yaml``.

    Raises:
        UserError: if it is damaged, or of another version of the run folder.
    """
    path = folder / CONFIG_FILE
    try:
        values = yaml.safe_load(files.read_bytes(path).decode())
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged ({detail}); restore it, or run into a new folder"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no settings); run into a new folder")
    version = values.get("format")
    if version != FORMAT:
        raise UserError(
            f"{folder} was written by another version of cl-lora: expected format {FORMAT} in "
            f"{CONFIG_FILE} but got {version!r}; use that version, or run again into a new folder"
        )
    problem = next(_problems(values), None)
    if problem:
        raise UserError(f"{path} is damaged: {problem}; restore it, or run into a new folder")
    if files.SEAL in values and values[files.SEAL] != _seal(values):
        raise UserError(
            f"{path} is damaged: its contents are not those that were written; restore it, or run "
            "into a new folder"
        )
    return ConfigRecord(
        name=values["name"],
        identity=values["identity"],
        identity_defaults=values["identity_defaults"],
        arms=values["arms"],
        variants=values["variants"],
        descriptions=values["descriptions"],
        references=tuple(values["references"]),
        yardstick=values.get("yardstick"),
        seeds=tuple(values["seeds"]),
        stopped=values.get("stopped", {}),
        last_stages=values.get("last_stages", {}),
        roles=values.get("roles", {}),
        cpu_threads=values.get("cpu_threads"),
        settings={k: v for k, v in values.items() if k not in _OWN},
    )


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the contents, in words."""
    kinds = {"name": str, "identity": dict, "identity_defaults": dict, "arms": dict}
    kinds |= {"variants": dict, "descriptions": dict, "references": list, "seeds": list}
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            yield f"expected a {kind.__name__} as {key!r} but got {values.get(key)!r}"
            return
    if not isinstance(values.get("stopped", {}), dict):
        yield f"expected a dict as 'stopped' but got {values['stopped']!r}"
        return
    ends = values.get("last_stages", {})
    if not isinstance(ends, dict) or not all(type(end) is int for end in ends.values()):
        yield f"expected whole numbers as 'last_stages' but got {ends!r}"
    roles = values.get("roles", {})
    if not isinstance(roles, dict) or not all(isinstance(role, str) for role in roles.values()):
        yield f"expected names as 'roles' but got {roles!r}"
    threads = values.get("cpu_threads")
    if threads is not None and (type(threads) is not int or threads < 1):
        yield f"expected a whole number as 'cpu_threads' but got {threads!r}"
    missing = [key for key in _IDENTITY if key not in values["identity"]]
    if missing:
        yield f"its identity has no {missing[0]!r}"
    for key in ("strategy", "backbone"):
        if not isinstance(values["identity"].get(key), dict):
            yield f"expected a dict as 'identity.{key}'"
    for seed in values["seeds"]:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            yield f"expected whole numbers as 'seeds' but got {seed!r}"
    yield from _problems_of_rows(values)


def _problems_of_rows(values: Mapping[str, Any]) -> Iterator[str]:
    for name in (*values["arms"], *values["references"]):
        if not isinstance(name, str):
            yield f"expected a name but got {name!r}"
        elif not isinstance(values["descriptions"].get(name), str):
            yield f"{name!r} has no description"
    for name, arm in values["arms"].items():
        for what, part in (("settings", arm), ("variant", values["variants"].get(name))):
            if not isinstance(part, dict):
                yield f"expected a dict as the {what} of arm {name!r} but got {part!r}"
    for name, arm in values.get("stopped", {}).items():
        if not isinstance(arm, dict) or not isinstance(arm.get("variant"), dict):
            yield f"expected a variant of the stopped arm {name!r} but got {arm!r}"
