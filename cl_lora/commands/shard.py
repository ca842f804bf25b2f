"""``cl-lora run --shard i/n``: one of several processes that score a run side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cl_lora.run_folder.parts import Plan, Shard
from cl_lora.support.errors import UserError
from cl_lora.support.printing import say

if TYPE_CHECKING:
    from omegaconf import DictConfig

FLAG = "--shard"


def is_asked(given: Sequence[str]) -> bool:
    """Return whether a command line asks for a part of a run."""
    return any(word == FLAG or word.startswith(f"{FLAG}=") for word in given)


def run(given: Sequence[str]) -> int:
    """Score the part that the flag names of the run that everything else asks for."""
    shard, others = taken(given)

    from cl_lora.configuration.launch import launch

    if {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(others):
        _refuse_sweep([])

    def job(composed: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from cl_lora.configuration.compose import plain

        if HydraConfig.get().mode == RunMode.MULTIRUN:
            _refuse_sweep([])
        execute(plain(composed), shard)

    return launch(others, job, _refuse_sweep)


def taken(given: Sequence[str]) -> tuple[Shard, list[str]]:
    """Return the shard that a command line names, and the rest of it.

    Raises:
        UserError: if it names none, or two.
    """
    named: list[str] = []
    others: list[str] = []
    words = iter(given)
    for word in words:
        if word == FLAG:
            named.append(next(words, ""))
        elif word.startswith(f"{FLAG}="):
            named.append(word.removeprefix(f"{FLAG}="))
        else:
            others.append(word)
    shards = [Shard.parse(text) for text in named]
    if len(shards) > 1:
        raise UserError(
            f"{FLAG} is given as {shards[0]} and as {shards[1]} but a process scores one part; "
            "give it once"
        )
    return shards[0], others


def execute(config: Mapping[str, Any], shard: Shard) -> Path:
    """Score a part of a configuration, say what other parts there are, and return the folder."""
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(config["plugins"])
    from cl_lora.experiment.shards import execute_shard
    from cl_lora.run_folder.reader import RunFolder

    folder = execute_shard(config, shard)
    if Plan.read(folder) is None:
        say(f"Nothing is missing of {folder}: no part was dealt out")
        return folder
    say(f"Part {shard}: {shard.folder(folder)}")
    missing = RunFolder.read(folder, allow_unfinished=True).missing_parts
    say(missing or f"All parts of {folder} are whole; the command without {FLAG} joins them")
    return folder


def _refuse_sweep(jobs: object, side_by_side: bool = False) -> NoReturn:
    raise UserError(
        f"{FLAG} divides one run among processes but --multirun makes several runs; leave one of "
        "them out"
    )
