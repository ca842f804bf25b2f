"""All settings of a run, typed and validated before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_lora.adapters.injection import LoRAConfig
from cl_lora.configuration.build import build
from cl_lora.experiment.arms import Arm, check_references, make_arms
from cl_lora.models.backbones import ModelConfig
from cl_lora.strategies.config import TrainingConfig
from cl_lora.support.errors import UserError, unknown_name
from cl_lora.support.files import digest

FORMAT = 2
"""Version of the run folder; a folder of another version is refused."""

_CPU_BF16 = ("avx512_bf16", "amx_tile")

_TOP = (
    "benchmark",
    "model",
    "strategy",
    "arms",
    "references",
    "seeds",
    "run_dir",
    "runs_root",
    "report",
    "device",
    "precision",
    "threads",
    "eval_batch_size",
    "spc",
    "buffer_batch_size",
)


@dataclass(frozen=True)
class Settings:
    """One run: a bank for each seed, and the arms that are evaluated on it.

    Attributes:
        raw: the resolved configuration, as it is recorded.
        model: the backbone.
        lora: the adapters' shape.
        training: how they are trained.
        references: names of the reference rows.
        seeds: one bank is trained for each.
        device: where everything is computed.
        bf16: whether forward passes are autocast to bfloat16.
        eval_batch_size: images a forward pass in evaluation.
        spc: buffer samples per class and domain, where an arm does not say.
        buffer_batch_size: buffer images a step when coefficients are learned.
    """

    raw: Mapping[str, Any]
    model: ModelConfig
    lora: LoRAConfig
    training: TrainingConfig
    references: tuple[str, ...]
    seeds: tuple[int, ...]
    device: torch.device
    bf16: bool
    eval_batch_size: int
    spc: int
    buffer_batch_size: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the adapters: two runs that differ in it never share a folder."""
        identity = {key: self.raw[key] for key in ("benchmark", "model", "strategy")}
        identity["precision"] = "bf16" if self.bf16 else "fp32"
        identity["device"] = self.device.type
        if self.training.head == "prototypes":
            identity["spc"] = self.spc  # of the prototypes of the reference rows
        # Where decoded images are kept does not change them.
        identity["benchmark"] = {k: v for k, v in self.raw["benchmark"].items() if k != "cache_dir"}
        return identity

    def make_arms(self, raw: Mapping[str, Mapping[str, Any]]) -> tuple[Arm, ...]:
        """Build and validate arms; what they leave open is the run's.

        Raises:
            UserError: as :func:`cl_lora.experiment.arms.make_arm`.
        """
        return make_arms(raw, spc=self.spc, buffer_batch_size=self.buffer_batch_size)

    @property
    def folder(self) -> Path:
        """The run folder: ``run_dir``, or a name that the configuration decides."""
        if self.raw["run_dir"] is not None:
            return Path(str(self.raw["run_dir"]))
        short = digest(self.identity, size=4)
        name = f"{self.raw['benchmark']['name']}-{self.raw['model']['name']}-{short}"
        return Path(str(self.raw["runs_root"] or "runs")) / name


def read_settings(raw: Mapping[str, Any]) -> Settings:
    """Type and validate a resolved configuration.

    Raises:
        UserError: with the first thing that is wrong.
    """
    for key in raw:
        if key not in _TOP:
            raise unknown_name("option", key, _TOP)
    for key in ("run_dir", "runs_root"):
        # A folder may be called 2024, which YAML reads as a number.
        if raw[key] is not None and (not isinstance(raw[key], str | int) or raw[key] == ""):
            raise UserError(f"Expected {key} to be a folder but got {raw[key]!r}")
    strategy = dict(raw["strategy"])
    strategy.pop("name", None)
    lora_keys = LoRAConfig.__dataclass_fields__
    training_keys = TrainingConfig.__dataclass_fields__
    for key in strategy:
        if key not in lora_keys and key not in training_keys:
            raise unknown_name("strategy option", key, [*lora_keys, *training_keys])
    device = pick_device(raw["device"])
    return Settings(
        raw=raw,
        model=build(ModelConfig, raw["model"], "model"),
        lora=build(LoRAConfig, {k: v for k, v in strategy.items() if k in lora_keys}, "strategy"),
        training=build(
            TrainingConfig, {k: v for k, v in strategy.items() if k in training_keys}, "strategy"
        ),
        references=check_references(raw["references"] or ()),
        seeds=_seeds(raw["seeds"]),
        device=device,
        bf16=pick_bf16(raw["precision"], device),
        eval_batch_size=_positive(raw, "eval_batch_size"),
        spc=_positive(raw, "spc"),
        buffer_batch_size=_positive(raw, "buffer_batch_size"),
    )


def pick_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: for another name, or for ``cuda`` where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda was asked for but torch sees no CUDA device; use device=auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to autocast: ``auto`` does where the device multiplies bfloat16 fast.

    Raises:
        UserError: for another name than ``auto``, ``fp32`` or ``bf16``.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise unknown_name("precision", precision, ("auto", "fp32", "bf16"))
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether ``device`` has instructions for bfloat16 products."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in _CPU_BF16)
    return any(bool(check()) for check in checks if check is not None)


def set_threads(threads: int | None) -> None:
    """Limit torch to ``threads`` CPU threads; None leaves what the environment says."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UserError(f"Expected threads to be at least 1 but got {threads!r}")
    torch.set_num_threads(min(threads, os.cpu_count() or threads))


def _positive(raw: Mapping[str, Any], key: str) -> int:
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"Expected {key} to be a whole number of at least 1 but got {value!r}")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    seeds = list(value) if listed else [value]
    if not seeds or any(isinstance(s, bool) or not isinstance(s, int) or s < 0 for s in seeds):
        raise UserError(f"Expected seeds to be a list like [0,1,2] but got {value!r}")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"A seed is named twice in seeds={seeds}; remove it")
    return tuple(seeds)
