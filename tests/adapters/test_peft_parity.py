"""What peft and transformers write is read exactly, and what is written they open again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from cl_lora.adapters import Adapter, BaseModel, LoRAFactors, common_base
from cl_lora.adapters.injection import applied
from cl_lora.merging import merge
from cl_lora.support.errors import UserError


def bert(folder: Path) -> Any:
    """Return a tiny BERT classifier that was saved to ``folder``."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return BertForSequenceClassification.from_pretrained(folder).eval()


def gpt2(folder: Path) -> Any:
    """Return a tiny GPT-2, whose layers keep their weights as (d_in, d_out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    # Square layers: a check of shapes does not see a transpose that is missing.
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16, n_inner=8)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def tokens() -> torch.Tensor:
    return torch.arange(12).reshape(2, 6)


def train(base: Any, folder: Path, seed: int, **options: Any) -> Any:
    """Give ``base`` a LoRA with random factors (and heads), save it, and return the peft model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(**{"r": 2, "lora_alpha": 6, **options})
    ).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def test_bert_with_a_head_is_read_and_opened_again(tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    base = bert(tmp_path / "base")
    theirs = train(
        base,
        tmp_path / "theirs",
        1,
        task_type="SEQ_CLS",
        target_modules=["query", "value", "dense"],
        exclude_modules=["bert.pooler.dense"],
        modules_to_save=["classifier"],
    )
    adapter = Adapter.load(tmp_path / "theirs")
    assert adapter.base == BaseModel("SEQ_CLS", str(tmp_path / "base"), head_module="classifier")
    saved = theirs.base_model.model.classifier.modules_to_save["default"]
    assert set(adapter.head) == {"weight", "bias"}
    assert torch.equal(adapter.head["weight"], saved.weight)
    assert torch.equal(adapter.head["bias"], saved.bias)
    assert len(adapter.modules()) == 2 * 5

    adapter.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "head.safetensors").exists()
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        expected = theirs(tokens()).logits
        torch.testing.assert_close(again(tokens()).logits, expected)
        # Applied by us, with the head beside it.
        base.classifier.load_state_dict(adapter.head)
        with applied(base, merge([adapter], weights=[1.0])):
            torch.testing.assert_close(base(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    loaded = Adapter.load(tmp_path / "ours")
    assert loaded.base == adapter.base
    assert torch.equal(loaded.head["weight"], adapter.head["weight"])


def test_gpt2_keeps_its_weights_the_other_way_round(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    base = gpt2(tmp_path / "base")
    models = [
        train(
            base,
            tmp_path / f"e{i}",
            i,
            task_type="CAUSAL_LM",
            target_modules=["c_attn", "c_fc", "c_proj"],
            fan_in_fan_out=True,
        )
        for i in range(2)
    ]
    adapters = [Adapter.load(tmp_path / f"e{i}") for i in range(2)]
    for adapter, model in zip(adapters, models, strict=True):
        assert adapter.base.fan_in_fan_out
        for module, f in adapter.factors.items():
            layer = model.base_model.model.get_submodule(module)
            assert f.delta().shape == (layer.out_features, layer.in_features)
            torch.testing.assert_close(f.delta().T, layer.get_delta_weight("default"))

    # The exact sum, computed in peft's own layout.
    merge(adapters, "task_arithmetic", weights=[1.0, -0.5]).save(tmp_path / "merged")
    expected = copy.deepcopy(base)
    for module in adapters[0].modules():
        delta = [
            model.base_model.model.get_submodule(module).get_delta_weight("default")
            for model in models
        ]
        expected.get_submodule(module).weight.data += delta[0] - 0.5 * delta[1]
    opened = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = expected(tokens()).logits
        torch.testing.assert_close(opened(tokens()).logits, logits, rtol=1e-4, atol=1e-5)
        before = base(tokens()).logits
        with applied(base, merge(adapters, "task_arithmetic", weights=[1.0, -0.5])):
            torch.testing.assert_close(base(tokens()).logits, logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(base(tokens()).logits, before)


def test_a_model_without_a_task_is_opened_through_its_class(tmp_path: Path) -> None:
    from peft import AutoPeftModel

    base = gpt2(tmp_path / "base")
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "revision": "main"}
    theirs = train(base, tmp_path / "theirs", 0, **options)
    adapter = Adapter.load(tmp_path / "theirs")
    assert adapter.base.task_type is None
    assert adapter.base.auto_mapping is not None
    assert adapter.base.revision == "main"
    adapter.save(tmp_path / "ours")
    opened = AutoPeftModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(tokens()).logits, theirs(tokens()).logits)


def _written_base(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text())
    names = ("task_type", "base_model_name_or_path", "revision", "fan_in_fan_out")
    return {name: config[name] for name in names}


def test_an_update_keeps_what_its_sources_agree_on(tmp_path: Path) -> None:
    factors = {"m": LoRAFactors(torch.ones(1, 2), torch.ones(2, 1))}

    def adapter(**fields: Any) -> Adapter:
        return Adapter("x", factors, base=BaseModel(**fields))

    one = adapter(task_type="SEQ_CLS", name_or_path="bert", revision="a", fan_in_fan_out=True)
    other = adapter(task_type="TOKEN_CLS", name_or_path="bert", revision="a", fan_in_fan_out=True)
    merge([one, one]).save(tmp_path / "same")
    merge([one, other], rank=1).save(tmp_path / "mixed")
    merge([one, adapter()]).save(tmp_path / "unknown")
    same = {
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "bert",
        "revision": "a",
        "fan_in_fan_out": True,
    }
    nothing = {**dict.fromkeys(same), "fan_in_fan_out": False}
    assert _written_base(tmp_path / "same") == same
    assert _written_base(tmp_path / "mixed") == {**same, "task_type": None}
    assert _written_base(tmp_path / "unknown") == nothing
    assert common_base([one.base]) == one.base


def test_a_task_that_peft_does_not_know(tmp_path: Path) -> None:
    factors = {"m": LoRAFactors(torch.ones(1, 2), torch.ones(2, 1))}
    with pytest.raises(UserError, match=r"peft refuses .*'POETRY'"):
        Adapter("x", factors, base=BaseModel(task_type="POETRY")).save(tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_what_is_written_has_every_field_of_peft_and_the_same_bytes_each_time(
    tmp_path: Path,
) -> None:
    from peft import LoraConfig, PeftConfig

    factors = {m: LoRAFactors(torch.ones(1, 2), torch.ones(2, 1)) for m in ("b", "a", "c.d")}
    for name in ("one", "two"):
        Adapter("x", factors).save(tmp_path / name)
    texts = [(tmp_path / name / "adapter_config.json").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
    config = json.loads(texts[0])
    assert list(config) == sorted(LoraConfig().to_dict())
    assert config["target_modules"] == ["b", "a", "c.d"]
    read = PeftConfig.from_pretrained(str(tmp_path / "one"))
    assert isinstance(read, LoraConfig)
    assert read.target_modules == set(factors)


class Model(nn.Module):
    """A layer, an embedding and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.other = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.body(self.embed(x))))


PLAIN: dict[str, dict[str, Any]] = {
    "default": {},
    "excluded": {"target_modules": ["body", "head"], "exclude_modules": ["head"]},
    "random": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dropout": {"lora_dropout": 0.5},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_variants_are_what_peft_computes(tmp_path: Path, name: str) -> None:
    theirs = train(Model(), tmp_path / "a", 3, **{"target_modules": ["body"], **PLAIN[name]})
    adapter = Adapter.load(tmp_path / "a")
    assert adapter.modules() == ("body",)
    torch.testing.assert_close(
        adapter.factors["body"].delta(), theirs.base_model.model.body.get_delta_weight("default")
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa": the initialisation'),
    "pissa fast": ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights="pissa_niter_4"'),
    "olora": ({"init_lora_weights": "olora"}, 'init_lora_weights="olora"'),
    "dora": ({"use_dora": True}, "use_dora=true"),
    "a bias": ({"bias": "lora_only"}, 'bias="lora_only"'),
    "all biases": ({"bias": "all"}, 'bias="all": it trained biases'),
    "a bias of LoRA": ({"lora_bias": True}, "lora_bias=true"),
    "tokens": ({"trainable_token_indices": {"embed": [1]}}, "trainable_token_indices="),
    "an embedding": ({"target_modules": ["embed"]}, "Unexpected tensor .*lora_embedding_A"),
    "two modules": ({"modules_to_save": ["head", "other"]}, "it has head and other; save"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_writes_and_is_not_plain_lora_is_refused(tmp_path: Path, name: str) -> None:
    options, message = REFUSED[name]
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"target_modules": ["body"], "r": 2, **options})
    get_peft_model(Model(), config).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        Adapter.load(tmp_path / "a")


FIELDS: dict[str, tuple[Any, str]] = {
    "layer_replication": ([[0, 2], [1, 3]], "it repeats layers"),
    "target_parameters": (["body.weight"], "no layer's weight"),
    "megatron_config": ({"a": 1}, "Megatron"),
    "alora_invocation_tokens": ([1, 2], "aLoRA"),
    "arrow_config": ({"top_k": 3}, "Arrow"),
    "kasa_config": ({"beta": 1.0}, "KaSA"),
    "use_qalora": (True, "QALoRA"),
    "use_bdlora": ({"nblocks": 2}, "block-diagonal"),
    "use_telepathy": (True, "use_telepathy=true: the installed peft knows no such field"),
    "init_lora_weights": ("corda", "the initialisation changed"),
    "lora_alpha": ("16", 'Expected lora_alpha .* got "16"'),
    "alpha_pattern": ({"(": 3}, "Expected alpha_pattern"),
    "use_rslora": ("yes", "Expected use_rslora"),
    "modules_to_save": ("head", "Expected modules_to_save"),
    "task_type": (3, "Expected task_type"),
    "auto_mapping": ([1], "Expected auto_mapping"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_changes_the_update_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value, message = FIELDS[name]
    _save_with(tmp_path / "a", **{name: value})
    with pytest.raises(UserError, match=message) as error:
        Adapter.load(tmp_path / "a")
    assert name in str(error.value)


def _save_with(folder: Path, **fields: Any) -> None:
    factors = {"body": LoRAFactors(torch.ones(1, 2), torch.ones(2, 1))}
    Adapter("x", factors).save(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"layers_to_transform": [0, 1], "layers_pattern": "blocks"},
        {"use_telepathy": False, "telepathy_config": None, "telepathy_layers": []},
        {"target_modules": "all-linear", "peft_version": "99.0"},
        {"bias": None, "alpha_pattern": None, "use_rslora": None},
    ],
)
def test_a_field_that_changes_nothing_is_read_over(tmp_path: Path, fields: dict[str, Any]) -> None:
    _save_with(tmp_path / "a", **fields)
    assert Adapter.load(tmp_path / "a").factors["body"].delta().tolist() == [[1.0, 1.0]] * 2


def test_every_default_of_the_installed_peft_is_plain(tmp_path: Path) -> None:
    from peft import LoraConfig

    _save_with(tmp_path / "a", **{**LoraConfig().to_dict(), "target_modules": ["body"], "r": 1})
    assert Adapter.load(tmp_path / "a").modules() == ("body",)


def test_a_default_of_a_newer_peft_is_plain_and_another_value_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig

    defaults = {**LoraConfig().to_dict(), "telepathy_range": 7, "r": 1}
    monkeypatch.setattr(LoraConfig, "to_dict", lambda self: dict(defaults))
    _save_with(tmp_path / "a", telepathy_range=7)
    assert Adapter.load(tmp_path / "a").modules() == ("body",)
    _save_with(tmp_path / "b", telepathy_range=8)
    with pytest.raises(UserError, match="telepathy_range=8: it is not known to be plain LoRA"):
        Adapter.load(tmp_path / "b")


def test_a_head_of_several_layers_keeps_its_names(tmp_path: Path) -> None:
    theirs = train(Model(), tmp_path / "a", 1, target_modules=["body"], modules_to_save=["other"])
    adapter = Adapter.load(tmp_path / "a")
    state = theirs.base_model.model.other.modules_to_save["default"].state_dict()
    assert set(adapter.head) == set(state) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert all(torch.equal(adapter.head[key], state[key]) for key in state)


def test_a_head_of_an_older_peft_and_of_a_nested_module(tmp_path: Path) -> None:
    _save_with(tmp_path / "a", modules_to_save=["classifier"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = "base_model.model.deep.classifier.modules_to_save.weight"
    safetensors.torch.save_file({**tensors, key: torch.ones(2, 2)}, path)
    adapter = Adapter.load(tmp_path / "a")
    assert set(adapter.head) == {"weight"}
    assert adapter.base.head_module == "deep.classifier"


def test_two_heads_are_one_too_many(tmp_path: Path) -> None:
    train(Model(), tmp_path / "a", 1, target_modules=["body"], modules_to_save=["head"])
    head = {"weight": torch.ones(3, 4)}
    safetensors.torch.save_file(head, tmp_path / "a" / "head.safetensors")
    with pytest.raises(UserError, match=r"it has head and head\.safetensors"):
        Adapter.load(tmp_path / "a")


def test_a_folder_of_ours_is_read_without_importing_peft(tmp_path: Path) -> None:
    import subprocess
    import sys

    _save_with(tmp_path / "a")
    code = (
        "import sys; from cl_lora import Adapter; "
        f"Adapter.load({str(tmp_path / 'a')!r}); print('peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
