"""All settings of a run, typed and validated before anything is computed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cl_lora.adapters.injection import LoRAConfig, check_targets
from cl_lora.benchmarks.draw import ALL
from cl_lora.configuration.build import build
from cl_lora.experiment.arms import Arm, ArmDefaults, make_arms
from cl_lora.experiment.references import Reference, get_references
from cl_lora.experiment.stages import Protocol, Subsets, get_protocol
from cl_lora.models.backbones import ModelConfig, source_of
from cl_lora.strategies.config import AdaptationConfig, TrainingConfig
from cl_lora.support.errors import UserError, shown, unknown_name
from cl_lora.support.files import digest
from cl_lora.support.ranges import LARGEST_SEED, at_most, check_plain, largest

_CPU_BF16 = ("avx512_bf16", "amx_tile")

_DEVICES: Mapping[str, Callable[[], int]] = {
    "cpu": lambda: 1,
    "cuda": lambda: int(torch.cuda.device_count()),
    "mps": lambda: int(torch.backends.mps.is_available()),
}
"""What can be asked for, and how many of it torch sees."""

_PARTS = ("benchmark", "model", "strategy", "adaptation", "subsets", "arms")
"""Keys of the configuration that are mappings of their own."""

_LONGEST_NAME = 100  # bytes of a benchmark's name, which is a part of a folder's

_PLACES = ("root", "path", "checkpoint", "cache_dir", "split_lists")
"""Settings that say where something lies; what lies there has a fingerprint."""


@dataclass(frozen=True)
class RunOptions:
    """The options at the top of the configuration.

    Attributes:
        seeds: one bank of adapters is trained for each.
        references: names of the baselines.
        protocol: when adapters are merged, and which.
        forward_transfer: whether a stream is scored before any training, and every experience
            before its turn, which this measure alone needs.
        shots: K, support samples per class, of a few-shot protocol; ``all`` for the whole pool.
        draws: support sets drawn for each K and seed.
        yardstick: the arm or baseline that a report measures the others by; None for the
            baseline that is the fairest.
        spc: buffer samples per class and experience, where an arm does not say.
        buffer_batch_size: buffer samples per step when coefficients are learned.
        eval_batch_size: inputs per forward pass in evaluation.
        device: ``auto`` or a device of torch.
        precision: ``fp32``, ``bf16`` or ``auto``.
        threads: CPU threads; None leaves what the environment says.
        run_dir: the run folder; None lets the settings name it.
        runs_root: where it lies then.
        seeds_apart: whether these seeds have a run folder of their own, so that other processes
            can do other seeds at the same time; ``compare`` averages them.
        embed: the experience whose features are placed in the plane (t-SNE) for every arm and row
            of a protocol that merges all at once: its name, or its number from 0; None for none.
        report: whether report, figures and TensorBoard files are written at the end.
        plugins: modules that register further choices.
        tracker: names of the trackers that the run is sent to, one or several; None for none.
    """

    seeds: Sequence[int] | int = at_most(LARGEST_SEED, (0,))
    references: Sequence[str] | None = ()
    protocol: str = "prefixes"
    forward_transfer: bool = True
    shots: Sequence[int | str] | int | str = at_most(1_000_000, (1, 2, 5, 10, 20, ALL))
    draws: int = at_most(10_000, 1)
    yardstick: str | None = None
    spc: int = at_most(largest(Arm)["spc"], 5)
    buffer_batch_size: int = at_most(largest(Arm)["buffer_batch_size"], 32)
    eval_batch_size: int = at_most(1_000_000, 128)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = at_most(4096, None)
    run_dir: str | int | None = None
    runs_root: str | int | None = "runs"
    seeds_apart: bool = False
    embed: str | int | None = at_most(1_000_000, None)
    report: bool = True
    plugins: Sequence[str] = ()
    tracker: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for key in ("spc", "buffer_batch_size", "eval_batch_size", "threads", "draws"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(
                    f"Expected {key} to be a whole number of at least 1 but got {value!r}; raise it"
                )
        for key in ("run_dir", "runs_root"):
            if getattr(self, key) == "":
                raise UserError(f"Expected {key} to be a folder but got ''; give it a name")
        if self.seeds_apart and self.run_dir is not None:
            raise UserError(
                f"run_dir={self.run_dir} names the run folder but seeds_apart=true asks for one "
                "that is named by its seeds; leave one of them out"
            )
        seeds = self.seed_list
        if not seeds or min(seeds) < 0:
            raise UserError(
                f"Expected seeds to be a list like [0,1,2] but got {shown(self.seeds)}; name "
                "one or more whole numbers of at least 0"
            )
        if len(set(seeds)) != len(seeds):
            raise UserError(f"A seed is named twice in seeds={shown(list(seeds))}; remove one")

        shots = self.shot_list
        if not shots or not all(k == ALL or (isinstance(k, int) and k >= 0) for k in shots):
            raise UserError(
                f"Expected shots to be a list of whole numbers of at least 0, or all, like "
                f"[1,5,all], but got {shown(self.shots)}; correct it"
            )
        if len(set(shots)) != len(shots):
            raise UserError(f"A number is named twice in shots={shown(list(shots))}; remove one")

    @property
    def shot_list(self) -> tuple[Any, ...]:
        """K of every support set, also where a single one was given."""
        return (self.shots,) if isinstance(self.shots, int | str) else tuple(self.shots)

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, also where a single number was given."""
        return (self.seeds,) if isinstance(self.seeds, int) else tuple(self.seeds)


@dataclass(frozen=True)
class Settings:
    """One run: a bank for each seed, and the arms that are evaluated on it.

    Attributes:
        raw: the resolved configuration, as it is recorded.
        options: the options at its top.
        model: the backbone.
        lora: the adapters' shape.
        training: how they are trained.
        adaptation: how arms are adapted to support sets.
        subsets: which subsets of the bank the protocol of that name merges.
        protocol: when adapters are merged, and which.
        references: the baselines.
        seeds: one bank is trained for each.
        device: where everything is computed.
        bf16: whether forward passes are autocast to bfloat16.
    """

    raw: Mapping[str, Any]
    options: RunOptions
    model: ModelConfig
    lora: LoRAConfig
    training: TrainingConfig
    adaptation: AdaptationConfig
    subsets: Subsets
    protocol: Protocol
    references: tuple[Reference, ...]
    seeds: tuple[int, ...]
    device: torch.device
    bf16: bool

    @property
    def precision(self) -> str:
        """The precision that is computed in."""
        return "bf16" if self.bf16 else "fp32"

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of this command.

        Raises:
            UserError: as :func:`cl_lora.experiment.arms.make_arm`.
        """
        return make_arms(self.raw["arms"], self.defaults)

    @property
    def defaults(self) -> ArmDefaults:
        """What holds for an arm that does not say."""
        return ArmDefaults(
            self.options.spc,
            self.options.buffer_batch_size,
            self.training.head,
            self.adaptation,
        )

    @property
    def with_forward_transfer(self) -> Settings:
        """The same with ``forward_transfer``, for a folder that has it by another command."""
        return replace(
            self,
            raw={**self.raw, "forward_transfer": True},
            options=replace(self.options, forward_transfer=True),
        )

    def identity(self, data: str, backbone: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides the numbers: runs that differ in it never share a folder.

        Never where something lies, how it is spelled, or which arms are compared.

        Args:
            data: fingerprint of the benchmark.
            backbone: fingerprint of the weights, input size and normalisation.
        """
        return {"data": data, "backbone": dict(backbone), **self._training_identity}

    @property
    def of_training(self) -> dict[str, Any]:
        """What decides an adapter beside data, backbone and seed, as plain containers."""
        return {
            # In whatever order layers are named, they are adapted in that of the backbone.
            "strategy": {
                **_plain(self.lora),
                **_plain(self.training),
                "targets": sorted(self.lora.targets),
            },
            "precision": self.precision,
            "device": self.device.type,
        }

    @property
    def _training_identity(self) -> dict[str, Any]:
        identity = {**self.of_training, "protocol": self.protocol.name}
        if self.training.policy.needs_support:
            identity["spc"] = self.options.spc  # of the heads of the baselines
        return identity

    @property
    def recipe(self) -> dict[str, Any]:
        """Return what is known of the identity before data and weights are read."""
        parts = {
            part: {k: v for k, v in self.raw[part].items() if k not in _PLACES}
            for part in ("benchmark", "model")
        }
        places = {
            f"{part}.{k}": str(v)
            for part in ("benchmark", "model")
            for k, v in self.raw[part].items()
            if k in _PLACES and k != "cache_dir"
        }
        return {**parts, "places": places, **self._training_identity}

    @property
    def given_folder(self) -> Path | None:
        """The run folder that the user named, if any."""
        given = self.options.run_dir
        return None if given is None else Path(str(given))

    @property
    def benchmark_name(self) -> str:
        """What the data is called, for the reader; its kind where the name was taken out."""
        benchmark = self.raw["benchmark"]
        return str(benchmark.get("name", benchmark["kind"]))

    def folder(self, identity: Mapping[str, Any]) -> Path:
        """Return the run folder: ``run_dir``, or a name that the identity decides.

        An option at its default does not enter the name, so that options that a later version
        adds change no folder; what data and model are called stands in it for the reader alone.
        """
        if self.given_folder is not None:
            return self.given_folder
        told = {**identity, "strategy": _without_defaults(identity["strategy"])}
        root, end = Path(str(self.options.runs_root or "runs")), digest(told, size=4)
        if self.options.seeds_apart:
            end += "".join(f"-seed-{seed}" for seed in sorted(self.seeds))
        there = sorted(root.glob(f"*-{end}")) if root.is_dir() else []
        model = str(self.raw["model"]["name"]).rpartition("/")[2]  # without the owner on the hub
        name = f"{self.benchmark_name}-{model}-{end}"
        return there[0] if there else root / name


def read_settings(raw: Mapping[str, Any]) -> Settings:
    """Type and validate a resolved configuration.

    Raises:
        UserError: with the first thing that is wrong.
    """
    check_plain(raw)
    known = [field.name for field in dataclasses.fields(RunOptions)]
    for key in raw:
        if key not in known and key not in _PARTS:
            raise unknown_name("option", key, [*known, *_PARTS])
    options = build(RunOptions, {k: v for k, v in raw.items() if k in known}, "")
    called = raw["strategy"].get("name", "")
    if not isinstance(called, str):
        raise UserError(
            f"Expected strategy.name to be a text but got {shown(called)}; it only says what the "
            "settings are called, leave it out"
        )
    strategy = {k: v for k, v in raw["strategy"].items() if k != "name"}
    lora, training = (
        {f.name for f in dataclasses.fields(cls)} for cls in (LoRAConfig, TrainingConfig)
    )
    for key in strategy:
        if key not in lora | training:
            raise unknown_name("strategy option", key, [*lora, *training])
    _check_name(raw["benchmark"].get("name"))
    device = pick_device(options.device)
    model = build(ModelConfig, raw["model"], "model")
    adapters = build(LoRAConfig, {k: v for k, v in strategy.items() if k in lora}, "strategy")
    check_targets(adapters.targets, source_of(model).targets)
    return Settings(
        raw=raw,
        options=options,
        model=model,
        lora=adapters,
        training=build(
            TrainingConfig, {k: v for k, v in strategy.items() if k in training}, "strategy"
        ),
        adaptation=build(AdaptationConfig, raw.get("adaptation") or {}, "adaptation"),
        subsets=build(Subsets, raw.get("subsets") or {}, "subsets"),
        protocol=get_protocol(options.protocol),
        references=get_references(options.references or ()),
        seeds=options.seed_list,
        device=device,
        bf16=pick_bf16(options.precision, device),
    )


def _check_name(name: object) -> None:
    """Refuse a benchmark's name that could be no part of the name of a run folder."""
    if not isinstance(name, str):
        return  # the builder of the benchmark says so
    plain = name.isprintable() and name.strip() == name and not set("/\\") & set(name)
    if not plain or name.startswith(".") or not 0 < len(name.encode()) <= _LONGEST_NAME:
        raise UserError(
            "Expected benchmark.name to be a name without slashes that the run folder can be "
            f"called by, of at most {_LONGEST_NAME} bytes and not with a point or space in front, "
            f"but got {shown(name)}; choose another one, or say with runs_root or run_dir where "
            "the run goes"
        )


def pick_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` is the first CUDA device where there is one, else the CPU.

    Raises:
        UserError: for another name, or a device that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in _DEVICES or (colon and (kind != "cuda" or not index.isdecimal())):
        raise unknown_name("device", name, ("auto", "cuda:N", *_DEVICES))
    count = _DEVICES[kind]()
    if count <= int(index or 0):
        seen = f"{count} of them" if count else "none"
        raise UserError(
            f"device={name} was asked for but torch sees {seen}; use device=auto or another one"
        )
    return torch.device(name)


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
    if device.type != "cpu":
        return False  # nothing tells
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in _CPU_BF16)
    return any(bool(check()) for check in checks if check is not None)


def set_threads(threads: int | None) -> None:
    """Limit torch to ``threads`` CPU threads; None leaves what the environment says."""
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UserError(f"Expected threads to be at least 1 but got {shown(threads)}; raise it")
    torch.set_num_threads(min(threads, os.cpu_count() or threads))


def _plain(settings: Any) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def strategy_defaults() -> dict[str, Any]:
    """Return every option of a strategy at its default: what an older folder leaves unsaid."""
    return {**_plain(LoRAConfig()), **_plain(TrainingConfig())}


def _without_defaults(strategy: Mapping[str, Any]) -> dict[str, Any]:
    defaults = strategy_defaults()
    return {k: v for k, v in strategy.items() if k not in defaults or defaults[k] != v}
