"""``cl-lora merge``: LoRA folders or whole models from anywhere, merged a tensor at a time."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cl_lora.commands.terminal import Parser, console, quieten
from cl_lora.support.errors import UserError, shown

if TYPE_CHECKING:
    from argparse import Namespace

    from cl_lora.joining import Recipe

_RECIPES = (".yaml", ".yml")
_OF_THE_RECIPE = ("method", "weights", "density", "space", "options")


def run(given: Sequence[str]) -> int:
    """Merge and print what came out, or compare without merging."""
    arguments = _parser().parse_args(_attached(given))
    quieten()
    from cl_lora.support.memory import give_back_at_once

    give_back_at_once()
    from cl_lora.configuration.plugins import load_plugins

    load_plugins(arguments.plugins)
    recipe = _recipe(arguments)
    recipe = replace(recipe, source=recipe.source or shlex.join(["cl-lora", "merge", *given]))
    from cl_lora.joining import compare, join, open_inputs
    from cl_lora.joining.join import check_out

    if arguments.info and arguments.out is not None:
        raise UserError(
            "--info merges nothing, so that there is nothing to write to --out; leave one out"
        )
    if not arguments.info:
        if arguments.out is None:
            raise UserError("Expected --out with a new folder for the result; or --info to compare")
        if arguments.json:
            raise UserError("--json prints a comparison; give it with --info")
        check_out(arguments.out, [member.path for member in recipe.members])
    inputs = open_inputs(recipe, allow_different_base=arguments.allow_different_base)
    if arguments.base is not None and inputs.checkpoint is None:
        raise UserError(
            f"--base is for models that were fine-tuned as a whole, but {inputs.paths[0]} is an "
            "adapter; leave --base out"
        )
    shown = console()
    if arguments.info:
        found = compare(inputs)
        if arguments.json:
            print(json.dumps(found.record(), indent=2))
            return 0
        from cl_lora.joining.shown import comparison as lines_of_comparison

        for line in lines_of_comparison(found):
            shown.print(line)
        return 0
    try:
        joined = join(
            recipe,
            inputs,
            arguments.out,
            dense=arguments.dense,
            delta=arguments.delta,
            head=arguments.head,
        )
    except KeyboardInterrupt as stopped:
        stopped.args = ("nothing was written",)  # for what the command line says
        raise
    from cl_lora.joining.shown import summary

    for line in summary(joined):
        shown.print(line)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "merge",
        "Merge LoRA adapters in PEFT's format without loading the model they belong to, or models "
        "that were fine-tuned as a whole (--base). One tensor is in memory at a time.",
        [
            "merge a b --method ties --weights 1,1 --rank 16 --out both",
            "merge recipe.yaml --out merged",
            "merge a b c --info",
        ],
    )
    parser.add_argument(
        "sources",
        metavar="ADAPTER",
        type=Path,
        nargs="*",
        help="folders of adapters, or one recipe.yaml as mergekit's users write them",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="a new folder for the result")
    parser.add_argument(
        "--method", metavar="NAME", help="see cl-lora list methods (default: task_arithmetic)"
    )
    parser.add_argument(
        "--weights",
        metavar="W,W,..",
        help="a coefficient for each adapter, of any sign (default: 1/n each)",
    )
    parser.add_argument(
        "--density",
        metavar="D",
        help="the fraction of entries that is kept: one number, or D,D,.. for each adapter",
    )
    parser.add_argument(
        "--space",
        metavar="NAME",
        help="delta (default): merge the updates B A; factors: merge A and B apart, as peft does",
    )
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        dest="options",
        action="append",
        default=[],
        help="another option of the method; may be given several times",
    )
    parser.add_argument(
        "--rank",
        metavar="R",
        help="cut every module to this rank, or to the largest of the adapters (--rank largest); "
        "the relative error is printed",
    )
    parser.add_argument(
        "--dense", action="store_true", help="write a dense result as factors of full rank"
    )
    parser.add_argument(
        "--dtype", metavar="NAME", help="precision of the result (default: that of the adapters)"
    )
    parser.add_argument(
        "--no-head",
        dest="head",
        action="store_false",
        help="leave out what was trained beside the adapters (modules_to_save)",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        type=Path,
        help="the model that whole models were fine-tuned from: a safetensors file or a folder",
    )
    parser.add_argument(
        "--delta",
        action="store_true",
        help="write only the difference to the base (for whole models)",
    )
    parser.add_argument(
        "--allow-different-base",
        action="store_true",
        help="merge adapters that name different base models",
    )
    parser.add_argument(
        "--info", action="store_true", help="compare the adapters and merge nothing"
    )
    parser.add_argument("--json", action="store_true", help="with --info: as JSON")
    parser.add_plugins()
    return parser


def _attached(given: Sequence[str]) -> list[str]:
    """Return the arguments with ``--weights -1,2`` as one word: argparse takes -1,2 for a flag."""
    found: list[str] = []
    for word in given:
        if found and found[-1] == "--weights":
            found[-1] = f"--weights={word}"
        else:
            found.append(word)
    return found


def _recipe(arguments: Namespace) -> Recipe:
    from cl_lora.joining import from_options, read_recipe
    from cl_lora.joining.recipe import parse_dtype

    sources: list[Path] = arguments.sources
    dtype = parse_dtype(arguments.dtype, "--dtype")
    rank = _rank(arguments.rank)
    recipes = [path for path in sources if path.suffix in _RECIPES]
    if not recipes:
        return from_options(
            sources,
            "task_arithmetic" if arguments.method is None else arguments.method,
            space="delta" if arguments.space is None else arguments.space,
            weights=None if arguments.weights is None else _numbers(arguments.weights, "--weights"),
            options=_options(arguments),
            rank=rank,
            dtype=dtype,
            base=arguments.base,
        )
    if len(sources) > 1:
        raise UserError(
            f"Expected one recipe alone, or adapters, but got {len(sources)} paths with "
            f"{recipes[0]} among them; give either"
        )
    for name in _OF_THE_RECIPE:
        if getattr(arguments, name):
            flag = "set" if name == "options" else name
            raise UserError(f"--{flag} is for adapters given by name; write it into the recipe")
    recipe = read_recipe(recipes[0])
    return replace(
        recipe,
        rank=recipe.rank if rank is None else rank,
        dtype=dtype or recipe.dtype,
        base=arguments.base or recipe.base,
    )


def _rank(text: str | None) -> int | str | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return text  # the method's check says what is accepted


def _options(arguments: Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if arguments.density is not None:
        numbers = _numbers(arguments.density, "--density")
        options["density"] = numbers[0] if len(numbers) == 1 else numbers
    for text in arguments.options:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"Expected --set to be OPTION=VALUE but got {text!r}; name the option")
        if name == "rank":
            raise UserError("The rank is no option of --set; write --rank R")
        if name in options:
            raise UserError(f"Option {name!r} is given twice; give it once")
        options[name] = _value(name, value)
    return options


def _value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if value is None:
        raise UserError(
            f"Expected a value of --set {name} but got {text!r}; write --set OPTION=VALUE"
        )
    return value


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"Expected {flag} to be numbers with commas between them but got "
            f"{shown(text)}; write such as 0.5,0.5"
        ) from None
