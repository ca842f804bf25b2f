"""adapter_config.json: what of peft's LoRA can be read here, and what is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.support.errors import UserError

# Fields that make the update s B A, or say where it belongs; all of them are judged or kept.
_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("init_lora_weights", "bias", "modules_to_save", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    }
)
# Fields that change nothing about an update that is trained: the tensors say which modules have
# one, and the settings of an initialisation or of a variant count only where that is chosen.
_HARMLESS = frozenset(
    {
        *("inference_mode", "peft_version", "lora_dropout", "runtime_config", "megatron_core"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    }
)
# Initialisations that leave the base model as it is, so that the trained update is s B A.
_KEEPS_BASE = ("gaussian", "orthogonal", "eva")
_WHY = {
    "use_dora": "it also scales every row of the weights (DoRA)",
    "use_qalora": "it pools its inputs (QALoRA)",
    "use_bdlora": "its factors are block-diagonal",
    "lora_bias": "it trained biases",
    "bias": "it trained biases",
    "layer_replication": "it repeats layers of the base model",
    "trainable_token_indices": "it trained token embeddings",
    "target_parameters": "it adapts parameters that are no layer's weight",
    "megatron_config": "it adapts Megatron's parallel layers",
    "alora_invocation_tokens": "it acts on some of the tokens only (aLoRA)",
    "arrow_config": "it routes among adapters (Arrow)",
    "kasa_config": "it changed the base model's weights (KaSA)",
    "monteclora_config": "it samples its factors",
    "velora_config": "it compresses what its factors are trained on (VeLoRA)",
    "ensure_weight_tying": "it ties weights of the base model",
}
_ALL_LINEAR = "all-linear"
_Number = TypeVar("_Number", int, float)
_CONVERT = (
    "the initialisation changed the base model's weights; save it with peft's "
    "path_initial_model_for_weight_conversion, which turns it into plain LoRA"
)


@dataclass(frozen=True)
class Selection:
    """Which layers of the base model peft gives an adapter to, by its own rules.

    Factors of any other layer would be in the file and count nowhere.

    Attributes:
        modules: ends of the names, or a pattern of the whole name; None if peft chooses by the
            type of the model.
        excluded: the same of what is left out.
        saved: modules that are trained as a whole, and therefore never adapted.
        layers: numbers of the layers; None for all.
        patterns: what stands before such a number.
    """

    modules: str | tuple[str, ...] | None = None
    excluded: str | tuple[str, ...] | None = None
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    patterns: tuple[str, ...] = ()

    def has(self, module: str) -> bool:
        """Return whether a layer is adapted."""
        if self.excluded and _is_named(module, self.excluded):
            return False
        if any(f".{name}." in f".{module}." for name in self.saved):
            return False
        if self.modules is None or self.modules == _ALL_LINEAR:
            return True
        if not _is_named(module, self.modules):
            return False
        return not self.layers or isinstance(self.modules, str) or self._layer(module)

    def _layer(self, module: str) -> bool:
        if module in (self.modules or ()):  # a full name counts whatever its layer
            return True
        starts = [rf"(?:^|.*?\.){pattern}" for pattern in self.patterns] or [r".*?\.[^.]*"]
        for start in starts:
            match = re.match(rf"{start}\.(?P<layer>\d+)\.", module)
            if match:
                return int(match["layer"]) in (self.layers or ())
        return False


def _is_named(module: str, names: str | tuple[str, ...]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


@dataclass(frozen=True)
class LoRASettings:
    """What adapter_config.json says that the tensors do not.

    Attributes:
        rank: of the factors.
        rank_pattern: pattern of module names -> another rank.
        alpha: numerator of the scaling.
        alpha_pattern: pattern of module names -> another numerator.
        rslora: scale by ``1 / sqrt(r)`` (Kalajdzievski 2023).
        selection: which layers are adapted.
        modules_to_save: names of modules that were trained beside the factors.
        base: the model the adapter was trained on.
    """

    rank: int = 8
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha: float = 8.0
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    selection: Selection = field(default_factory=Selection)
    modules_to_save: tuple[str, ...] = ()
    base: BaseModel = field(default_factory=BaseModel)

    def rank_of(self, module: str) -> int:
        """Return the rank that the factors of a module have."""
        return _matching(self.rank_pattern, module, self.rank)

    def scaling(self, module: str, rank: int) -> float:
        """Return s of ``s B A``: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA."""
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _matching(patterns: Mapping[str, _Number], module: str, otherwise: _Number) -> _Number:
    for pattern, value in patterns.items():
        if re.match(_whole(pattern), module):
            return value
    return otherwise


def _whole(pattern: str) -> str:
    # The rule of peft: a pattern matches the whole name or what follows a dot in it.
    return rf"(.*\.)?({pattern})$"


def parse_lora_config(config: Mapping[str, Any], where: object) -> LoRASettings:
    """Read the contents of an adapter_config.json whose updates are plain ``s B A``.

    Every field must be known to be harmless, be false or empty, or have the default of peft's
    ``LoraConfig``. Nothing else is read as LoRA, whatever peft will invent.

    Args:
        config: the parsed JSON object.
        where: the adapter's folder, for the errors.

    Raises:
        UserError: for another kind of adapter, a variant that is not plain LoRA or rsLoRA, or a
            value of the wrong type; names the field.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"Expected a LoRA adapter in {where} but its peft_type is {kind!r}; only LoRA can be "
            "merged"
        )
    _refuse_variants(config, where)
    read = _Fields(config, where)
    saved = read.names("modules_to_save")
    return LoRASettings(
        rank=read.count("r", 8),
        rank_pattern=read.counts("rank_pattern"),
        alpha=read.number("lora_alpha", 8.0),
        alpha_pattern=read.patterns("alpha_pattern"),
        rslora=read.flag("use_rslora"),
        selection=Selection(
            modules=read.choice("target_modules"),
            excluded=read.choice("exclude_modules"),
            saved=saved,
            layers=read.layers("layers_to_transform"),
            patterns=read.starts("layers_pattern"),
        ),
        modules_to_save=saved,
        base=BaseModel(
            task_type=read.text("task_type"),
            name_or_path=read.text("base_model_name_or_path"),
            revision=read.text("revision"),
            auto_mapping=read.texts("auto_mapping"),
            fan_in_fan_out=read.flag("fan_in_fan_out"),
        ),
    )


def make_lora_config(
    factors: Mapping[str, LoRAFactors], base: BaseModel, *, saves_head: bool
) -> dict[str, Any]:
    """Return the adapter_config.json that makes peft compute exactly these updates.

    Built by peft's own ``LoraConfig``, so that every field is there that the installed peft asks
    for. peft derives the scaling as ``lora_alpha / r``; ranks and alphas that differ from the
    first module's go into ``rank_pattern`` and ``alpha_pattern``.

    Args:
        factors: module name -> factors, at least one.
        base: the model the adapter belongs to.
        saves_head: whether the weights of ``base.head_module`` are among the adapter's tensors.

    Raises:
        UserError: if peft refuses the description of the base model.
    """
    from peft import LoraConfig  # seconds to import, and only writing needs it

    first = next(iter(factors.values()))
    alpha = first.scaling * first.rank
    # peft matches a pattern's key as the end of a module name: full names, anchored, are exact.
    ranks = {f"^{re.escape(m)}": f.rank for m, f in factors.items() if f.rank != first.rank}
    alphas: dict[str, Any] = {
        f"^{re.escape(m)}": f.scaling * f.rank
        for m, f in factors.items()
        if f.scaling * f.rank != alpha
    }
    whole: Any = alpha  # peft declares int, and divides by the rank
    try:
        config = LoraConfig(
            r=first.rank,
            lora_alpha=whole,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            target_modules=list(factors),
            inference_mode=True,
            task_type=base.task_type,
            base_model_name_or_path=base.name_or_path,
            revision=base.revision,
            auto_mapping=None if base.auto_mapping is None else dict(base.auto_mapping),
            fan_in_fan_out=base.fan_in_fan_out,
            modules_to_save=[base.head_module] if saves_head and base.head_module else None,
        )
    except ValueError as error:
        raise UserError(f"peft refuses {base} ({error}); correct the adapter's base") from error
    values: dict[str, Any] = config.to_dict()
    # In the adapter's own order: a set has another one in every process.
    values["target_modules"] = list(factors)
    return values


def _refuse_variants(config: Mapping[str, Any], where: object) -> None:
    init = config.get("init_lora_weights", True)
    if not (init is None or isinstance(init, bool) or str(init).lower() in _KEEPS_BASE):
        raise _refusal("init_lora_weights", init, _CONVERT, where)
    bias = config.get("bias", "none")
    if bias not in ("none", None):
        raise _refusal("bias", bias, _WHY["bias"], where)
    odd = [name for name in config if name not in _READ | _HARMLESS and config[name]]
    for name in odd:
        if name in _WHY:
            raise _refusal(name, config[name], _WHY[name], where)
    if odd:
        # A field that came after this code was written: its default is what plain LoRA is.
        defaults = _peft_defaults()
        for name in odd:
            if name not in defaults:
                raise _refusal(name, config[name], "the installed peft knows no such field", where)
            if config[name] != defaults[name]:
                raise _refusal(name, config[name], "it is not known to be plain LoRA", where)


def _refusal(name: str, value: object, why: str, where: object) -> UserError:
    return UserError(
        f"The adapter in {where} has {name}={json.dumps(value)[:60]}: {why}; only adapters whose "
        "update is s*B*A can be merged (plain LoRA and rsLoRA)"
    )


def _peft_defaults() -> dict[str, Any]:
    from peft import LoraConfig

    defaults: dict[str, Any] = LoraConfig().to_dict()
    return defaults


@dataclass(frozen=True)
class _Fields:
    """Typed reading of the fields of one adapter_config.json."""

    config: Mapping[str, Any]
    where: object

    def text(self, name: str) -> str | None:
        value = self.config.get(name)
        valid = value is None or _is_text(value)
        found: str | None = self._checked(name, value, "a string or null", valid)
        return found

    def flag(self, name: str) -> bool:
        value = self.config.get(name)
        valid = value is None or isinstance(value, bool)
        return bool(self._checked(name, value, "true or false", valid))

    def number(self, name: str, default: float) -> float:
        value = self.config.get(name, default)
        return float(self._checked(name, value, _NUMBER, _is_number(value)))

    def count(self, name: str, default: int) -> int:
        value = self.config.get(name, default)
        return int(self._checked(name, value, "an integer of at least 1", _is_count(value)))

    def names(self, name: str) -> tuple[str, ...]:
        value = self.config.get(name)
        valid = value is None or _are_names(value)
        return tuple(self._checked(name, value, "a list of names or null", valid) or ())

    def choice(self, name: str) -> str | tuple[str, ...] | None:
        value = self.config.get(name)
        text = isinstance(value, str)
        valid = value is None or (_is_pattern(value, value) if text else _are_names(value))
        self._checked(name, value, "a list of names, a pattern that is quick, or null", valid)
        return value if value is None or isinstance(value, str) else tuple(value)

    def layers(self, name: str) -> tuple[int, ...] | None:
        value = self.config.get(name)
        listed: list[Any] = value if isinstance(value, list) else [value]
        valid = value is None or all(_is_count(number, 0) for number in listed)
        self._checked(name, value, "a number of a layer, a list of them, or null", valid)
        return None if value is None else tuple(listed)

    def starts(self, name: str) -> tuple[str, ...]:
        value = self.config.get(name)
        listed = value if isinstance(value, list) else [value] if value else []
        valid = (value is None or isinstance(value, str | list)) and all(
            isinstance(start, str) and _is_pattern(start, start) for start in listed
        )
        self._checked(name, value, "a pattern that is quick, a list of them, or null", valid)
        return tuple(listed)

    def texts(self, name: str) -> dict[str, str] | None:
        value = self.config.get(name)
        valid = value is None or (isinstance(value, dict) and all(map(_is_text, value.values())))
        found: dict[str, str] | None = self._checked(name, value, "an object of strings", valid)
        return found

    def patterns(self, name: str) -> dict[str, float]:
        value = self._object(name, _is_number, f"{_NUMBER}s")
        return {key: float(number) for key, number in value.items()}

    def counts(self, name: str) -> dict[str, int]:
        return self._object(name, _is_count, "integers of at least 1")

    def _object(self, name: str, accepts: Callable[[object], bool], values: str) -> dict[str, Any]:
        value = self.config.get(name)
        value = {} if value is None else value
        valid = isinstance(value, dict) and all(
            _is_pattern(key, _whole(key)) and accepts(number) for key, number in value.items()
        )
        self._checked(name, value, f"an object of patterns that are quick and {values}", valid)
        found: dict[str, Any] = value
        return found

    def _checked(self, name: str, value: Any, expected: str, valid: bool) -> Any:
        if not valid:
            raise UserError(
                f"Expected {name} in the adapter_config.json of {self.where} to be {expected} but "
                f"got {json.dumps(value)[:60]}; write the adapter again"
            )
        return value


_NUMBER = "a number within single precision"
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127


def _is_text(value: object) -> bool:
    # JSON can say half of a character, which no file can hold.
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(name) and name for name in value)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == 0 or _SMALLEST <= abs(value) <= _LARGEST


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


_REPEATS = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,)")
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")


def _is_pattern(pattern: str, used: str) -> bool:
    """Return whether a pattern, as it is used, is one, and needs no more than a moment.

    What repeats a repetition takes time that grows exponentially with the length of a name.
    """
    try:
        re.compile(used)
    except (re.error, RecursionError, OverflowError):
        return False
    plain = _LITERAL.sub("x", pattern)
    return not _REPEATED_GROUP.search(plain) and len(_REPEATS.findall(plain)) <= _MOST_REPEATS


_MOST_REPEATS = 3
