"""Sources of backbones: the registry, what a setting means to a source, and the docs' example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cl_lora.adapters.injection import LoRAConfig
from cl_lora.models.backbones import MODEL_SOURCES, ModelConfig, input_size, load_backbone
from cl_lora.models.base import ModelSource, register_source
from cl_lora.models.prepare import prepare_backbone
from cl_lora.support.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the registry as it is."""
    monkeypatch.setattr("cl_lora.models.base.MODEL_SOURCES", dict(MODEL_SOURCES))


def test_the_example_of_the_page_is_a_source() -> None:
    (text,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(text, str(PAGE), "exec"), {"__name__": "my_module"})
    config = ModelConfig("mine", source="flat", img_size=8)
    lora = LoRAConfig(rank=2, targets=("second",))
    backbone, modules = prepare_backbone(config, lora, torch.device("cpu"), bf16=False)
    assert (input_size(config), modules) == (8, ("2",))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert backbone(images).shape == (4, 16)
    assert backbone.fingerprint() == load_backbone(config).fingerprint()
    with pytest.raises(UserError, match=r"model\.mean means nothing to models of source 'flat'"):
        input_size(ModelConfig("mine", source="flat", mean=(0.5, 0.5, 0.5)))


def test_the_page_names_every_source_and_what_it_takes() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    table = rows[1 : 1 + len(MODEL_SOURCES)]  # below the heading
    settings = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in table}
    assert settings == {name: set(source.takes) for name, source in MODEL_SOURCES.items()}


def test_a_name_belongs_to_one_source() -> None:
    def load(config: ModelConfig) -> None:
        raise AssertionError

    taken = ModelSource("timm", "", load, input_size, {}, frozenset())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'timm' is registered already"):
        register_source(taken)


def test_an_unknown_source() -> None:
    with pytest.raises(UserError, match=r"Unknown model\.source 'tim': did you mean 'timm'"):
        load_backbone(ModelConfig("vit", source="tim"))
