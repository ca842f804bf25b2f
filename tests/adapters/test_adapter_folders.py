"""PEFT folders: ours read by us and by peft, peft's read by us, and broken ones."""

import copy
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.support.errors import UserError

SHAPES = {"blocks.2.fc": (5, 4), "blocks.10.fc": (4, 5), "out": (3, 4)}


class Model(nn.Module):
    """Layers called blocks.2.fc, blocks.10.fc and out."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict(
            {
                "2": nn.ModuleDict({"fc": nn.Linear(4, 5)}),
                "10": nn.ModuleDict({"fc": nn.Linear(5, 4)}),
            }
        )
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.blocks["10"]["fc"](torch.tanh(self.blocks["2"]["fc"](x))))


def _adapter(ranks=(2, 2, 2), scalings=(2.0, 2.0, 2.0), **fields):
    generator = torch.Generator().manual_seed(0)
    factors = {
        module: LoRAFactors(
            torch.randn(r, d_in, generator=generator), torch.randn(d_out, r, generator=generator), s
        )
        for (module, (d_out, d_in)), r, s in zip(SHAPES.items(), ranks, scalings, strict=True)
    }
    return Adapter("one", factors, **fields)


MIXED = [
    ((2, 2, 2), (2.0, 2.0, 2.0)),
    ((1, 3, 2), (2.0, 2.0, 2.0)),
    ((2, 2, 2), (0.5, 1.0, -3.0)),
    ((3, 1, 4), (0.1, 16 / 3, 1.0)),
]


@pytest.mark.parametrize(("ranks", "scalings"), MIXED)
def test_what_is_saved_is_loaded(tmp_path, ranks, scalings):
    head = {"weight": torch.randn(2, 3).T, "bias": torch.zeros(3)}
    adapter = _adapter(ranks, scalings, head=head, training={"seed": 3, "losses": [1.0, 0.5]})
    adapter.save(tmp_path / "one")
    loaded = Adapter.load(tmp_path / "one")
    assert loaded.modules() == adapter.modules()
    for module, f in adapter.factors.items():
        assert torch.equal(loaded.factors[module].A, f.A)
        assert torch.equal(loaded.factors[module].B, f.B)
        assert loaded.factors[module].scaling == pytest.approx(f.scaling, rel=1e-12)
    assert loaded.training == adapter.training
    assert {k: v.tolist() for k, v in loaded.head.items()} == {
        k: v.tolist() for k, v in head.items()
    }


@pytest.mark.parametrize(("ranks", "scalings"), MIXED)
def test_peft_computes_our_updates_from_our_folder(tmp_path, ranks, scalings):
    from peft import PeftModel

    adapter = _adapter(ranks, scalings)
    adapter.save(tmp_path / "one")
    base = Model()
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "one")
    for module, f in adapter.factors.items():
        layer = model.base_model.model.get_submodule(module)
        torch.testing.assert_close(layer.get_delta_weight("default"), f.delta())
        base.get_submodule(module).weight.data += f.delta()
    x = torch.randn(6, 4)
    torch.testing.assert_close(model(x), base(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"out": 3, "2.fc": 1}},
        {"alpha_pattern": {"out": 3, r"blocks\.\d+\.fc": 32}},
        {"rank_pattern": {"fc": 3}, "alpha_pattern": {"10.fc": 5}, "use_rslora": True},
        {"alpha_pattern": {"^out": 7}, "rank_pattern": {"^out": 1}},
    ],
)
def test_we_compute_the_updates_of_a_folder_that_peft_wrote(tmp_path, options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["fc", "out"], init_lora_weights=False, **options
    )
    model = get_peft_model(Model(), config)
    model.save_pretrained(tmp_path / "theirs")
    loaded = Adapter.load(tmp_path / "theirs")
    assert loaded.modules() == tuple(SHAPES)
    for module, f in loaded.factors.items():
        layer = model.base_model.model.get_submodule(module)
        torch.testing.assert_close(f.delta(), layer.get_delta_weight("default"))
        assert f.delta().abs().sum() > 0


def test_factors_that_share_memory_are_saved(tmp_path):
    fused = torch.randn(9, 2)
    A = torch.randn(2, 4)
    parts = {name: LoRAFactors(A, part) for name, part in zip("qkv", fused.chunk(3), strict=True)}
    Adapter("shared", parts).save(tmp_path / "shared")
    loaded = Adapter.load(tmp_path / "shared")
    for name, f in parts.items():
        torch.testing.assert_close(loaded.factors[name].delta(), f.delta())


def test_saving_replaces_what_was_there_and_leaves_no_temporary(tmp_path):
    _adapter().save(tmp_path / "one")
    _adapter((1, 1, 1)).save(tmp_path / "one")
    assert Adapter.load(tmp_path / "one").factors["out"].rank == 1
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_an_adapter_without_modules_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="'empty' to have modules"):
        Adapter("empty", {}).save(tmp_path / "empty")
    assert not list(tmp_path.iterdir())


def _break_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _set_weights(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


BREAKAGES = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "found none in"),
    "bad json": (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "JSON object .* list"),
    "bad training": (lambda f: (f / "training.json").write_text("{"), "not valid JSON"),
    "prompt tuning": (lambda f: _break_config(f, peft_type="PROMPT_TUNING"), "'PROMPT_TUNING'"),
    "dora": (lambda f: _break_config(f, use_dora=True), "use_dora=true"),
    "lora bias": (lambda f: _break_config(f, lora_bias=True), "lora_bias=true"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "missing; only safe"),
    "garbage": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99), "no readable"),
    "odd tensor": (
        lambda f: _set_weights(f, {"base_model.model.head.weight": torch.ones(2)}),
        "Unexpected tensor 'base_model.model.head.weight'",
    ),
    "only A": (
        lambda f: _set_weights(f, {"base_model.model.out.lora_A.weight": torch.ones(2, 2)}),
        "'out' .* only one of",
    ),
    "nothing": (lambda f: _set_weights(f, {}), "holds no LoRA factors"),
    "convolution": (
        lambda f: _set_weights(
            f,
            {
                "base_model.model.out.lora_A.weight": torch.ones(2, 3, 3, 3),
                "base_model.model.out.lora_B.weight": torch.ones(4, 2, 1, 1),
            },
        ),
        "with one rank r=2",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_folder_is_explained(tmp_path, name):
    spoil, message = BREAKAGES[name]
    folder = tmp_path / "one"
    _adapter(training={"seed": 1}).save(folder)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        Adapter.load(folder)


def _with(**changes):
    return lambda folder: _break_config(folder, **changes)


def _tensor(side, change):
    def spoil(folder):
        path = folder / "adapter_model.safetensors"
        state = safetensors.torch.load(path.read_bytes())
        name = f"base_model.model.out.lora_{side}.weight"
        state[name] = change(state[name]).contiguous()
        safetensors.torch.save_file(state, path)

    return spoil


def _twice(folder):
    path = folder / "adapter_model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    state["base_model.model.out.lora_A.default.weight"] = torch.ones(2, 4)
    safetensors.torch.save_file(state, path)


FIELDS = {
    "alpha beyond single precision": (_with(lora_alpha=1e39), "lora_alpha .* single precision"),
    "alpha of 400 digits": (_with(lora_alpha=10**400), "lora_alpha .* single precision"),
    "alpha too small": (_with(lora_alpha=1e-42), "lora_alpha .* single precision"),
    "alpha as text": (_with(lora_alpha="16"), "lora_alpha .* a number"),
    "pattern that is a list": (_with(alpha_pattern=[]), "alpha_pattern .* an object"),
    "pattern that is no pattern": (_with(alpha_pattern={"(": 3}), "alpha_pattern"),
    "pattern with a flag": (_with(alpha_pattern={"(?i)out": 3}), "alpha_pattern"),
    "pattern that takes for ever": (_with(alpha_pattern={"(a*)*b": 3}), "patterns that are quick"),
    "pattern with a large number": (_with(alpha_pattern={"out": 1e39}), "alpha_pattern"),
    "another rank": (_with(r=3), "rank r=3, as adapter_config.json says"),
    "a rank by pattern": (_with(rank_pattern={"out": 4}), "rank r=4"),
    "a rank of zero": (_with(r=0), "r in the adapter_config.json .* at least 1"),
    "a layer left out": (_with(target_modules=["fc"]), "'out' .* leaves it out"),
    "a layer excluded": (_with(exclude_modules=["out"]), "'out' .* leaves it out"),
    "layers left out": (
        _with(target_modules=["fc", "out"], layers_to_transform=[7]),
        "leaves it out",
    ),
    "a layer that is saved": (_with(modules_to_save=["out"]), "'out' .* leaves it out"),
    "half a character": (_with(base_model_name_or_path="\ud800"), "base_model_name_or_path"),
    "transposed": (_tensor("A", lambda v: v.T), "'out' .* has A"),
    "rank zero": (_tensor("A", lambda v: v[:0]), "'out' .* has A"),
    "no columns": (_tensor("A", lambda v: v[:, :0]), "'out' .* has none"),
    "integers": (_tensor("B", lambda v: v.to(torch.int8)), "holds int8"),
    "complex": (_tensor("B", lambda v: torch.complex(v, v)), "holds complex64"),
    "a factor twice": (_twice, "two tensors for one"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_folder_that_contradicts_itself_is_explained(tmp_path, name):
    spoil, message = FIELDS[name]
    _adapter().save(tmp_path / "one")
    spoil(tmp_path / "one")
    with pytest.raises(UserError, match=message) as refused:
        Adapter.load(tmp_path / "one")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["fc", "out"]},
        {"target_modules": r"blocks\.\d+\.fc|out"},
        {"target_modules": ["fc"], "layers_to_transform": 2, "layers_pattern": "blocks"},
        {"target_modules": ["fc"], "layers_to_transform": [2, 10], "layers_pattern": ["blocks"]},
        {"target_modules": ["fc", "out"], "exclude_modules": ["10.fc"]},
        {"target_modules": ["fc", "out"], "exclude_modules": r".*\.2\.fc"},
    ],
)
def test_what_peft_selects_is_what_we_expect(tmp_path, options):
    """An adapter of peft's is read whatever chose its layers."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **options)
    model = get_peft_model(Model(), settings)
    model.save_pretrained(tmp_path / "theirs")
    adapted = [n for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")]
    opened = Adapter.open(tmp_path / "theirs")
    assert sorted(opened.modules()) == sorted(adapted)
