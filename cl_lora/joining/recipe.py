"""What is merged and how: from the options of the command, or from a recipe in YAML."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cl_lora.joining.mergekit import OTHERS, SPELLINGS, Spelling
from cl_lora.joining.settings import Setting, parse_setting
from cl_lora.merging import METHODS, validate_method
from cl_lora.merging.registry import is_number
from cl_lora.support.errors import UserError, shown, unknown_name

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""The precisions that a result is written in."""

_KEYS = ("models", "merge_method", "base_model", "parameters", "dtype", "out_dtype")
_WHOLE_MODELS = {
    "slices": "it puts layers of models together, and an adapter belongs to the layers of one",
    "modules": "it merges parts of a model apart; give each part by filters of weights instead",
    "tokenizer_source": "tokenizers are not merged; take that of the base model",
    "tokenizer": "tokenizers are not merged; take that of the base model",
    "chat_template": "chat templates are not written; take that of the base model",
}
_MEMBER = ("model", "parameters")
_NUMBERS = ("weight", "density")
"""Parameters that a model may have of its own."""


@dataclass(frozen=True)
class Member:
    """One of the models or adapters that are merged.

    Attributes:
        path: its folder or file.
        weight: its coefficient; None for that of the recipe.
        density: the fraction of its entries that is kept; None for that of the recipe.
        base_name: the base model it is said to belong to (``base+adapter``).
    """

    path: Path
    weight: Setting | None = None
    density: Setting | None = None
    base_name: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A merge with all its numbers.

    Attributes:
        members: what is merged.
        method: name of a merge method.
        space: ``delta`` or ``factors``.
        options: of the method, without density where that is a setting.
        weight: coefficient of the members that have none of their own.
        density: the same of densities; None for the method's default.
        normalize: whether coefficients are divided by their sum.
        base_weight: the base model's own share in that sum.
        scale: what the merged update is multiplied by.
        rank: what every module is truncated to, or ``largest``; None leaves it exact.
        dtype: precision of the result; None for that of the members.
        base: the model that whole models were fine-tuned from.
        base_name: what the recipe calls the base model.
        notes: what a reader of the result should know, a sentence each.
        source: the recipe as it was given, or the command, for the record.
    """

    members: tuple[Member, ...]
    method: str = "task_arithmetic"
    space: str = "delta"
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: Setting | None = None
    density: Setting | None = None
    normalize: bool = False
    base_weight: Setting | None = None
    scale: float = 1.0
    rank: int | str | None = None
    dtype: torch.dtype | None = None
    base: Path | None = None
    base_name: str | None = None
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] | str = ""

    def weights_at(self, name: str, depth: float | None) -> Tensor:
        """Return the coefficients (n,) for a tensor, float64.

        Raises:
            UserError: if a member has none, or their sum is zero and they are divided by it.
        """
        found = [self._number(member, "weight", name, depth) for member in self.members]
        for member, value in zip(self.members, found, strict=True):
            if value is None:
                raise UserError(
                    f"Expected a weight of {member.path} for {name!r} but no filter matches; end "
                    "the list with a value without a filter"
                )
        weights = torch.tensor(found, dtype=torch.float64)
        if not self.normalize:
            return weights
        own = self.base_weight.at(name, depth) if self.base_weight else None
        total = float(weights.sum()) + (own or 0.0)
        if abs(total) < 1e-8:
            raise UserError(
                f"The weights for {name!r} add up to 0 and cannot be divided by their sum; give "
                "others, or normalize: false"
            )
        return weights / total

    def options_at(self, name: str, depth: float | None) -> dict[str, Any]:
        """Return the method's options for a tensor, densities among them.

        Raises:
            UserError: if some members have a density and others none.
        """
        found = [self._number(member, "density", name, depth) for member in self.members]
        if all(value is None for value in found):
            return dict(self.options)
        for member, value in zip(self.members, found, strict=True):
            if value is None:
                raise UserError(
                    f"Expected a density of {member.path} for {name!r} as the others have; give "
                    "it, or one density for all"
                )
        same = len(set(found)) == 1
        return {**self.options, "density": found[0] if same else found}

    def _number(self, member: Member, number: str, name: str, depth: float | None) -> float | None:
        for setting in (getattr(member, number), getattr(self, number)):
            if setting is not None and (value := setting.at(name, depth)) is not None:
                found: float = value
                return found
        return None


def from_options(
    paths: Sequence[Path],
    method: str,
    *,
    space: str = "delta",
    weights: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    rank: int | str | None = None,
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> Recipe:
    """Return the recipe of a method with the same numbers for all modules.

    Args:
        paths: what is merged.
        method: name of a registered method.
        space: ``delta`` or ``factors``.
        weights: a coefficient for each; None gives each 1/n.
        options: of the method.
        rank: what every module is truncated to, or ``largest``.
        dtype: precision of the result.
        base: the model that whole models were fine-tuned from.

    Raises:
        UserError: for nothing to merge, an unknown method, space or option, or another number of
            weights.
    """
    if not paths:
        raise UserError("Expected adapters to merge but got none; give their folders")
    options = dict(options or {})
    validate_method(method, space, {**options, "rank": rank})
    if weights is None:
        weights = [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise UserError(
            f"Expected {len(paths)} weights, one for each adapter, but got {len(weights)}: "
            f"{', '.join(f'{w:g}' for w in weights)}; give --weights W,W,.."
        )
    members = tuple(
        Member(path, Setting.of(float(weight))) for path, weight in zip(paths, weights, strict=True)
    )
    return Recipe(members, method, space, options, rank=rank, dtype=dtype, base=base)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe as mergekit's users write them.

    Methods that mergekit has too are computed as mergekit defines them; all others of this package
    have their own options among the parameters. Models are found from where the command runs, or
    else from beside the recipe.

    Raises:
        UserError: if it is no recipe, for unknown keys, and for what is computed otherwise here.
    """
    if path.exists() and not path.is_file():  # a pipe would be read without end
        raise UserError(f"Expected a recipe but {path} is no file; give the file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        _check_extent(content, path)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"Cannot read the recipe {path} ({why}); check its name") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"The recipe {path} is not valid YAML{place}: {what}; correct it") from None
    if not isinstance(content, dict):
        raise UserError(
            f"Expected a recipe with models and merge_method in {path} but got "
            f"{type(content).__name__}; write them into it"
        )
    return make_recipe(content, path.parent)


_MOST = 100_000  # values of a recipe, those counted again that an alias repeats


def _check_extent(content: object, path: Path) -> None:
    """Refuse a few lines whose aliases stand for more values than there is memory for."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        if count + len(waiting) > _MOST:
            raise UserError(
                f"Expected a recipe of at most {_MOST:,} values but {path} has more, or aliases "
                "that stand for themselves; write them out"
            )


def make_recipe(content: Mapping[str, Any], beside: Path = Path()) -> Recipe:
    """Return the recipe that parsed YAML describes; see :func:`read_recipe`.

    Args:
        content: the parsed YAML.
        beside: the folder where models are looked for that are not found from here.
    """
    for key in content:
        if key in _WHOLE_MODELS:
            raise UserError(
                f"Recipes with {key!r} are not merged here: {_WHOLE_MODELS[key]}; leave it out"
            )
        if key not in _KEYS:
            raise unknown_name("key of the recipe", key, _KEYS)
    name = _text(content.get("merge_method"), "merge_method") or ""
    if name in OTHERS:
        raise UserError(
            f"mergekit's method {name!r} is not computed here: {OTHERS[name]}; see cl-lora list "
            "methods"
        )
    if name not in (*SPELLINGS, *METHODS):
        raise unknown_name("merge_method of the recipe", name, {*SPELLINGS, *METHODS})
    spelling = SPELLINGS.get(name) or Spelling(name)
    base_name = _text(content.get("base_model"), "base_model")
    members, base_weight = _members(content.get("models"), base_name, beside)
    numbers, flags, options = _parameters(content.get("parameters"), spelling)
    for member in members:
        if member.weight is None and "weight" not in numbers:
            raise UserError(
                f"Expected a weight of {member.path} but the recipe has none; give it one under "
                "parameters, or one for all"
            )
    normalize = flags["normalize"]
    if normalize in spelling.refused:
        raise UserError(
            f"merge_method {name!r} with normalize: {str(normalize).lower()} is not computed "
            f"here: {spelling.refused[normalize]}"
        )
    chosen = spelling.chosen[normalize]
    space = str(options.pop("space", "delta"))
    rank = options.pop("rank", None)
    default_density = None if spelling.density is None else Setting.of(spelling.density)
    recipe = Recipe(
        members=members,
        method=spelling.method,
        space=space,
        options={**chosen, **options},
        weight=numbers.get("weight"),
        density=numbers.get("density", default_density),
        normalize=normalize and spelling.divides,
        base_weight=base_weight if spelling.counts_base else None,
        scale=flags["lambda"],
        rank=rank,
        dtype=parse_dtype(content.get("out_dtype", content.get("dtype")), "dtype of the recipe"),
        base=_found(base_name, beside) if base_name else None,
        base_name=base_name,
        notes=spelling.notes,
        source=content,
    )
    validate_method(recipe.method, space, {**recipe.options, "rank": rank})
    return recipe


def parse_dtype(name: object, what: str) -> torch.dtype | None:
    """Return the precision of a name, None for None.

    Raises:
        UserError: for an unknown one.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in DTYPES:
        raise unknown_name(what, name, DTYPES)
    return DTYPES[name]


def _members(
    given: Any, base_name: str | None, beside: Path
) -> tuple[tuple[Member, ...], Setting | None]:
    """Return what is merged, and the weight of the base model where it is listed too."""
    if not isinstance(given, list) or not given:
        raise UserError("Expected the recipe to list models, as {model, parameters} each; add them")
    members, base_weight = [], None
    for i, entry in enumerate(given):
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise UserError(
                f"Expected models of the recipe to be {{model, parameters}} but number {i} is "
                f"{shown(entry)}; correct it"
            )
        for key in entry:
            if key not in _MEMBER:
                raise unknown_name(f"key of model {entry['model']!r}", key, _MEMBER)
        name, own = entry["model"], _mapping(entry.get("parameters"), entry["model"])
        for key in own:
            if key not in _NUMBERS:
                raise unknown_name(f"parameter of model {name!r}", key, _NUMBERS)
        settings = {key: parse_setting(value, f"{key} of {name}") for key, value in own.items()}
        if name == base_name:  # its update is zero, and all it can have is a share
            base_weight = settings.get("weight")
            continue
        path, of = _split(name, beside)
        members.append(Member(path, settings.get("weight"), settings.get("density"), of))
    if not members:
        raise UserError(
            "Expected the recipe to list models beside the base model but it has none; add them"
        )
    return tuple(members), base_weight


def _split(name: str, beside: Path) -> tuple[Path, str | None]:
    """Return the path of a model, and the base model where it is written ``base+adapter``."""
    path = _found(name, beside)
    if path is not None:
        return path, None
    base, plus, adapter = name.rpartition("+")
    path = _found(adapter, beside) if plus else None
    if path is not None:
        return path, str(_found(base, beside) or base)
    raise UserError(
        f"Expected a folder of model {shown(name)} but there is none; download it first, and "
        "give its path"
    )


def _found(name: str, beside: Path) -> Path | None:
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        return next((p for p in (Path(name), beside / name) if p.exists()), None)
    return None


def _parameters(
    given: Any, spelling: Spelling
) -> tuple[dict[str, Setting], dict[str, Any], dict[str, Any]]:
    """Return the settings, mergekit's own parameters, and the options of the method."""
    parameters = _mapping(given, "the recipe")
    numbers: dict[str, Setting] = {}
    options: dict[str, Any] = {}
    flags: dict[str, Any] = {"normalize": spelling.normalize, "lambda": 1.0}
    known = METHODS[spelling.method].options
    for key, value in parameters.items():
        if key in _NUMBERS:
            numbers[key] = parse_setting(value, f"{key} of the recipe")
        elif key == "lambda":
            if not is_number(value):
                raise UserError(
                    f"Expected lambda of the recipe to be a number but got {shown(value)}; "
                    "correct it"
                )
            flags[key] = float(value)
        elif key in ("normalize", "int8_mask", "rescale"):
            if not isinstance(value, bool):
                raise UserError(
                    f"Expected {key} of the recipe to be true or false but got {shown(value)}; "
                    "correct it"
                )
            if key == "rescale" and value != spelling.rescales:
                raise UserError(
                    f"merge_method {spelling.method!r} with rescale: {str(value).lower()} is not "
                    f"computed here: it {'always' if spelling.rescales else 'never'} rescales; "
                    "leave it out"
                )
            if key == "normalize":
                flags[key] = value
            # int8_mask saves memory in mergekit and changes no number.
        elif key == "space" or key in known:
            options[key] = value
        else:
            names = (*_NUMBERS, "normalize", "lambda", "rescale", "int8_mask", "space", *known)
            raise unknown_name("parameter of the recipe", key, names)
    return numbers, flags, options


def _mapping(value: Any, of: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"Expected parameters of {of} to be names and values but got {shown(value)}; correct "
            "them"
        )
    return value


def _text(value: Any, key: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"Expected {key} of the recipe to be text but got {shown(value)}; correct it")
