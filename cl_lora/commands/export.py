"""``cl-lora export``: a merged update and its heads as a folder for peft and timm alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cl_lora.commands.terminal import Parser, quieten
from cl_lora.support.errors import UserError
from cl_lora.support.printing import say

if TYPE_CHECKING:
    from cl_lora.export import Exported


def run(given: Sequence[str]) -> int:
    """Write the export, and print what it is."""
    parser = Parser(
        "export",
        "Write what an arm served as a folder that peft and timm read without this package: the "
        "merged update as a PEFT adapter, all heads, and a model card with the code that loads it.",
        [
            "export runs/NAME --arm ta_half --out merged",
            'export runs/NAME --arm cat --stage "style + area" --out merged',
        ],
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument("--arm", metavar="NAME", required=True, help="an arm or a baseline")
    parser.add_argument(
        "--stage", metavar="S", help="index or name of a stage (default: the last that scored it)"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, help="a seed of the run (default: the first)"
    )
    parser.add_argument(
        "--rank",
        metavar="R",
        type=int,
        help="cut the update of every module to this rank; the relative error is printed",
    )
    parser.add_argument(
        "--dense",
        action="store_true",
        help="write an update that is not low-rank as factors of full rank",
    )
    parser.add_argument(
        "--head",
        metavar="trained|none",
        help="what replaces a head that is made from samples and is not stored: the head that was "
        "trained with the adapters, or none",
    )
    parser.add_argument(
        "--with-base", action="store_true", help="write the weights of the base model too"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--push",
        metavar="REPO",
        help="then send the folder to this model repository of the Hugging Face hub",
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository of --push private"
    )
    parser.add_plugins()
    arguments = parser.parse_args(given)
    if arguments.private and arguments.push is None:
        raise UserError("--private says how --push makes a repository; give --push REPO too")
    quieten()
    from cl_lora.configuration.plugins import load_plugins
    from cl_lora.run_folder.reader import RunFolder

    finished = RunFolder.read(arguments.run, allow_unfinished=True)
    load_plugins([*(finished.config.get("plugins") or ()), *arguments.plugins])
    from cl_lora.export import export
    from cl_lora.export.choice import choose
    from cl_lora.export.push import check_push, push

    if arguments.push is not None:
        check_push(arguments.push)
    exported = export(
        choose(finished, arguments.arm, arguments.stage, arguments.seed),
        arguments.out,
        rank=arguments.rank,
        dense=arguments.dense,
        head=arguments.head,
        with_base=arguments.with_base,
    )
    for line in _said(exported, arguments.seed is None):
        say(line)
    if arguments.push is not None:
        say(f"Hub:     {push(exported, arguments.push, private=arguments.private)}")
    return 0


def _said(exported: Exported, seed_by_default: bool) -> list[str]:
    choice, update = exported.choice, exported.update
    seeds = choice.run.seeds
    others = (
        f" (of {', '.join(map(str, seeds))}; --seed chooses another)"
        if seed_by_default and len(seeds) > 1
        else ""
    )
    low, high = update.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    how = "exact" if update.rank is None else f"relative error {update.error:.4g} (Frobenius norm)"
    names = ", ".join(head.name for head in exported.heads)
    lines = [
        f"Of:      {choice.row}, stage {choice.stage.index} ({choice.stage.name}), "
        f"seed {choice.seed}{others}",
        f"Adapter: {len(update.factors)} modules, {ranks}, {how}",
        f"Heads:   {names or 'none'}",
    ]
    if exported.other_head:
        lines.append(
            f"Note:    the head that was scored is not here ({exported.other_head}); its scores "
            "are left out of the card"
        )
    if update.dense and update.rank is None:
        lines.append(f"Note:    {update.dense} modules are dense: factors of full rank, as asked")
    if update.full:
        lines.append(
            f"Note:    in {update.full} modules the ranks add up to the full rank; --rank R makes "
            "them smaller"
        )
    return [*lines, f"Folder:  {exported.folder} (README.md says how to load it)"]
