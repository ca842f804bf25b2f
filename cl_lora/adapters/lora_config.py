"""adapter_config.json: what of peft's LoRA can be read here, and what is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cl_lora.adapters.base_model import BaseModel
from cl_lora.adapters.factors import LoRAFactors
from cl_lora.support.errors import UserError

# Fields that make the update s B A, or say where it belongs; all of them are judged or kept.
_READ = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("init_lora_weights", "bias", "modules_to_save", "fan_in_fan_out"),
        *("task_type", "base_model_name_or_path", "revision", "auto_mapping"),
    }
)
# Fields that change nothing about an update that is trained: the tensors say which modules have
# one, and the settings of an initialisation or of a variant count only where that is chosen.
_HARMLESS = frozenset(
    {
        *("inference_mode", "peft_version", "lora_dropout", "runtime_config", "megatron_core"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
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
_CONVERT = (
    "the initialisation changed the base model's weights; save it with peft's "
    "path_initial_model_for_weight_conversion, which turns it into plain LoRA"
)


@dataclass(frozen=True)
class LoRASettings:
    """What adapter_config.json says that the tensors do not.

    Attributes:
        alpha: numerator of the scaling.
        alpha_pattern: pattern of module names -> another numerator.
        rslora: scale by ``1 / sqrt(r)`` (Kalajdzievski 2023).
        modules_to_save: names of modules that were trained beside the factors.
        base: the model the adapter was trained on.
    """

    alpha: float = 8.0
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    base: BaseModel = field(default_factory=BaseModel)

    def scaling(self, module: str, rank: int) -> float:
        """Return s of ``s B A``: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA."""
        alpha = self.alpha
        for pattern, value in self.alpha_pattern.items():
            # The rule of peft: a pattern matches the whole name or what follows a dot in it.
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.rslora else rank)


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
    return LoRASettings(
        alpha=read.number("lora_alpha", 8.0),
        alpha_pattern=read.patterns("alpha_pattern"),
        rslora=read.flag("use_rslora"),
        modules_to_save=read.names("modules_to_save"),
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
        return float(self._checked(name, value, "a finite number", _is_number(value)))

    def names(self, name: str) -> tuple[str, ...]:
        value = self.config.get(name)
        valid = value is None or (isinstance(value, list) and all(map(_is_text, value)))
        return tuple(self._checked(name, value, "a list of names or null", valid) or ())

    def texts(self, name: str) -> dict[str, str] | None:
        value = self.config.get(name)
        valid = value is None or (isinstance(value, dict) and all(map(_is_text, value.values())))
        found: dict[str, str] | None = self._checked(name, value, "an object of strings", valid)
        return found

    def patterns(self, name: str) -> dict[str, float]:
        value = self.config.get(name) or {}
        valid = isinstance(value, dict) and all(
            _is_pattern(key) and _is_number(number) for key, number in value.items()
        )
        self._checked(name, value, "an object of patterns and numbers", valid)
        return {key: float(number) for key, number in value.items()}

    def _checked(self, name: str, value: Any, expected: str, valid: bool) -> Any:
        if not valid:
            raise UserError(
                f"Expected {name} in the adapter_config.json of {self.where} to be {expected} but "
                f"got {json.dumps(value)[:60]}; write the adapter again"
            )
        return value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True
