"""Settings of a run: the device that is asked for, and what makes no other run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import KINDS
from cl_lora.benchmarks.sources.shapes.image_set import ShapesSetOptions
from cl_lora.benchmarks.sources.tasks.core import TASK_SOURCES
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.arms import Arm
from cl_lora.experiment.pipeline import check
from cl_lora.experiment.settings import RunOptions, has_fast_bf16, pick_device, read_settings
from cl_lora.experiment.stages import Subsets
from cl_lora.models.backbones import ModelConfig
from cl_lora.strategies.config import AdaptationConfig, TrainingConfig
from cl_lora.support.errors import UserError
from cl_lora.support.ranges import largest


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two CUDA devices and Metal, as far as torch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of processors only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", "cuda"),
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:0", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("mps", "mps"),
    ],
)
def test_a_device_that_is_there(name: str, expected: str) -> None:
    assert pick_device(name) == torch.device(expected)


@pytest.mark.usefixtures("no_devices")
def test_without_an_accelerator_auto_is_the_processor() -> None:
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:0", "cuda:0:1", ""]
)
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UserError, match=r"Unknown device .*cuda"):
        pick_device(name)


@pytest.mark.usefixtures("devices")
def test_a_device_beyond_the_last() -> None:
    with pytest.raises(UserError, match="device=cuda:2 was asked for but torch sees 2 of them"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("no_devices")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"device={name} .* none; use device=auto"):
        pick_device(name)


def test_the_processors_bf16_says_nothing_of_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert has_fast_bf16(torch.device("cpu"))
    assert not has_fast_bf16(torch.device("mps"))


def test_which_plugins_are_loaded_makes_no_other_run() -> None:
    """They only offer choices: what is chosen of them stands in its own place."""
    one, other = (
        read_settings(compose_config([f"plugins={names}"])).identity("data", {})
        for names in ("[]", "[my.module]")
    )
    assert one == other


# What is refused, before anything is read -------------------------------------------------------


def numbers_of(cls: type) -> list[str]:
    """Return the fields of a dataclass that hold a number, or several, and do not say how large."""
    hints = get_type_hints(cls)
    said = largest(cls)
    fields = (f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]
    return [name for name in fields if name not in said and _is_number(hints[name])]


def _is_number(hint: Any) -> bool:
    if hint in (int, float):
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType, tuple) or origin is Sequence:
        # A folder may be called by a number.
        return hint != (str | int | None) and any(map(_is_number, inner))
    return False


@pytest.mark.parametrize(
    "cls",
    [
        *(RunOptions, TrainingConfig, AdaptationConfig, LoRAConfig, ModelConfig, Subsets),
        *(ShapesSetOptions, Arm),
        *(KINDS[kind] for kind in sorted(KINDS)),
        *(TASK_SOURCES[source] for source in sorted(TASK_SOURCES)),
    ],
    ids=lambda cls: str(cls.__name__),
)
def test_every_number_says_how_large_it_may_be(cls: type) -> None:
    assert not numbers_of(cls)


@pytest.fixture(scope="module")
def defaults() -> Mapping[str, Any]:
    return compose_config([])


def with_value(config: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """Return a configuration with another value of an option, dotted."""
    part, _, name = key.rpartition(".")
    return {**config, **({part: {**config[part], name: value}} if part else {key: value})}


@pytest.mark.parametrize("number", [10**20, 10**400])
@pytest.mark.parametrize(
    "key",
    [
        *("spc", "draws", "eval_batch_size", "buffer_batch_size", "threads", "seeds", "shots"),
        *("strategy.rank", "strategy.epochs", "strategy.batch_size", "strategy.head_hidden"),
        *("adaptation.steps", "adaptation.warmup_steps", "model.img_size", "strategy.lr"),
        *("benchmark.classes", "benchmark.samples_per_class", "benchmark.split_seed"),
        *("subsets.all_subsets", "embed"),
    ],
)
def test_a_huge_number_is_refused_at_once(
    key: str, number: int, defaults: Mapping[str, Any]
) -> None:
    with pytest.raises(UserError, match=key) as caught:
        check(with_value(defaults, key, number))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "task_arithmetic", "coefficients": 1e39},
        {"method": "task_arithmetic", "coefficients": [1, -1e39]},
        {"method": "ties", "density": 0.2, "rank": 10**7},
        {"method": "task_arithmetic", "coefficients": {"name": "adaptive", "steps": 10**7}},
        {"method": "task_arithmetic", "spc": 10**7},
        {"method": "task_arithmetic", "members": 10**7},
        {"method": "task_arithmetic", "coefficients": 10**400},
    ],
)
def test_a_huge_number_of_an_arm_is_refused_at_once(
    arm: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"Arm 'x': .*at (most|least -)|64 bits"):
        check({**defaults, "arms": {"x": arm}})


def test_drawn_pictures_are_counted(defaults: Mapping[str, Any]) -> None:
    config = with_value(defaults, "benchmark.classes", 1000)
    with pytest.raises(UserError, match=r"at most 1,000,000 drawn pictures but 1000 classes x"):
        check(with_value(config, "benchmark.samples_per_class", 1000))


@pytest.mark.parametrize(
    "name", ["../../esc", "/esc", "a/b", "a\\b", "..", ".", ".x", " ", " a", "a\nb", "a" * 101, ""]
)
def test_a_name_that_would_leave_the_folder_of_runs(name: str, defaults: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^Expected benchmark\.name to be a name .*; choose"):
        read_settings(with_value(defaults, "benchmark.name", name))


@pytest.mark.parametrize("name", ["a", "Bilder für x", "日本", "a" * 100, "a.b-c+d"])
def test_a_name_that_a_folder_can_have(name: str, defaults: Mapping[str, Any]) -> None:
    settings = read_settings(with_value(defaults, "benchmark.name", name))
    assert settings.folder({"strategy": {}}).parent == Path("runs")


def test_a_run_is_found_again_whatever_its_data_and_model_are_called(
    defaults: Mapping[str, Any], tmp_path: Path
) -> None:
    settings = read_settings(with_value(defaults, "runs_root", str(tmp_path)))
    new = settings.folder({"strategy": {}})
    assert new.parent == tmp_path
    renamed = tmp_path / f"other-data-other-model-{new.name.rpartition('-')[2]}"
    renamed.mkdir()
    assert settings.folder({"strategy": {}}) == renamed
    assert settings.folder({"strategy": {"lr": 0.5}}) != renamed


@pytest.mark.parametrize("key", ["report", "seeds_apart", "strategy.rslora", "subsets.pairs"])
@pytest.mark.parametrize("value", ["abc", 1, 0, "yes", None, [], "true"])
def test_true_and_false_are_nothing_else(
    key: str, value: object, defaults: Mapping[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"Expected {key} to be true or false .*; give one of"):
        check(with_value(defaults, key, value))


def test_a_name_of_a_strategy_is_a_text(defaults: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match=r"Expected strategy\.name to be a text but got \['a'\];"):
        read_settings(with_value(defaults, "strategy.name", ["a"]))


def test_a_name_with_a_nul_is_refused_wherever_it_stands(defaults: Mapping[str, Any]) -> None:
    with pytest.raises(UserError, match=r"benchmark\.cache_dir holds a NUL character"):
        read_settings(with_value(defaults, "benchmark.cache_dir", "a\0b"))


def test_a_folder_is_named_by_the_kind_of_data_that_has_no_name() -> None:
    raw = compose_config(["benchmark=pacs", "benchmark.root=x", "~benchmark.name"])
    folder = read_settings(raw).folder({"strategy": {}})
    assert folder.name.startswith(f"{raw['benchmark']['kind']}-")
