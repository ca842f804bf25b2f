"""Merges and residuals on language models: PEFT folders in, the same answers out of AutoPeftModel.

The reference reads peft's files itself, multiplies and merges in float64, and adds the result to
the weights of the bare model.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from merge_reference import reference, relative_error
from torch import Tensor, nn

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.merging import Update, merge
from cl_lora.merging.residuals import TaskUpdate, make_residual
from cl_lora.support.errors import UserError

VOCABULARY, WIDTH, HIDDEN, CLASSES = 40, 16, 24, 3
WEIGHTS = [0.7, -0.4]
IDS = torch.randint(3, VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(0))


def t5(tied: bool) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=4,
        num_heads=4,
        d_ff=HIDDEN,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5ForConditionalGeneration(config)


def llama(tied: bool) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,  # k and v are narrower than q
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=CLASSES,
    )
    return transformers.BertForSequenceClassification(config)


def written(model: Any) -> Tensor:
    """The tokens that a model generates, the likeliest at each step."""
    options = {"max_new_tokens": 8, "do_sample": False}
    tokens: Tensor = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    return tokens


def classes(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits.argmax(1)
    return found


@dataclass(frozen=True)
class Family:
    make: Callable[[], nn.Module]
    auto: Any
    task: str
    targets: tuple[str, ...]
    modules: dict[str, int]  # names of adapted modules as they end, and how many there are
    answer: Callable[[Any], Tensor]


T5_MODULES = {"SelfAttention.q": 4, "EncDecAttention.q": 2, "SelfAttention.v": 4} | {
    "EncDecAttention.v": 2,
    "DenseReluDense.wi_0": 4,
    "DenseReluDense.wo": 4,
}
LLAMA_MODULES = {"self_attn.q_proj": 2, "self_attn.v_proj": 2, "mlp.down_proj": 2}
T5 = partial(
    Family,
    auto=peft.AutoPeftModelForSeq2SeqLM,
    task="SEQ_2_SEQ_LM",
    targets=("q", "v", "wi_0", "wo"),
    modules=T5_MODULES,
    answer=written,
)
LLAMA = partial(
    Family,
    auto=peft.AutoPeftModelForCausalLM,
    task="CAUSAL_LM",
    targets=("q_proj", "v_proj", "down_proj"),
    modules=LLAMA_MODULES,
    answer=written,
)
FAMILIES = {
    "t5": T5(partial(t5, False)),
    "t5, tied": T5(partial(t5, True)),
    "llama": LLAMA(partial(llama, False)),
    "llama, tied": LLAMA(partial(llama, True)),
    "bert": Family(
        bert,
        peft.AutoPeftModelForSequenceClassification,
        "SEQ_CLS",
        ("query", "value", "intermediate.dense"),
        {"attention.self.query": 2, "attention.self.value": 2, "intermediate.dense": 2},
        classes,
    ),
}


@dataclass(frozen=True)
class Given:
    family: Family
    base: Any  # the folder of the bare model
    folders: list[Any]  # what peft wrote

    def bare(self) -> Any:
        return type(self.family.make()).from_pretrained(self.base).eval()


def fine_tune(base: Any, family: Family, folder: Any, seed: int, **config: Any) -> None:
    """Write an adapter, and what is trained beside it, with random values, by peft itself."""
    torch.manual_seed(seed)
    bare = type(family.make()).from_pretrained(base)
    lora = {"target_modules": list(family.targets), "init_lora_weights": False, **config}
    model = peft.get_peft_model(bare, peft.LoraConfig(task_type=family.task, **lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def given(request, tmp_path_factory) -> Given:
    root, family = tmp_path_factory.mktemp("language"), FAMILIES[request.param]
    torch.manual_seed(0)
    family.make().save_pretrained(root / "base")
    configs = ({"r": 3, "lora_alpha": 6}, {"r": 4, "lora_alpha": 6, "use_rslora": True})
    folders = [root / f"task{i}" for i in range(2)]
    for i, (folder, config) in enumerate(zip(folders, configs, strict=True)):
        fine_tune(root / "base", family, folder, i, **config)
    return Given(family, root / "base", folders)


def by_hand(folder) -> dict[str, np.ndarray]:
    """The dense updates of what peft wrote, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    scaling = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
    found = {}
    for key, A in tensors.items():
        if key.endswith(".lora_A.weight"):
            B = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[name] = scaling * B.double().numpy() @ A.double().numpy()
    return found


def truncated(delta: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(delta)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def dense_model(given: Given, deltas, head=None) -> Any:
    """The bare model with its weights changed."""
    model = given.bare()
    with torch.no_grad():
        for name, delta in deltas.items():
            model.get_submodule(name).weight += torch.as_tensor(delta).float()
        for name, value in (head or {}).items():
            model.classifier.get_parameter(name).copy_(value)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        out: Tensor = model(input_ids=IDS, **more).logits
        return out


def check_served(given: Given, folder, deltas, head=None) -> None:
    """Check that what AutoPeftModel opens computes and answers as the weights made by hand."""
    served = given.family.auto.from_pretrained(folder).eval()
    expected = dense_model(given, deltas, head)
    torch.testing.assert_close(logits(served), logits(expected), rtol=1e-3, atol=1e-4)
    assert (logits(served) - logits(given.bare())).abs().max() > 1e-2, "nothing was changed"
    with torch.no_grad():
        assert torch.equal(given.family.answer(served), given.family.answer(expected))


def mean_head(adapters) -> dict[str, Tensor]:
    return {key: sum(a.head[key] for a in adapters) / len(adapters) for key in adapters[0].head}


def test_what_peft_wrote_is_read(given):
    for folder in given.folders:
        adapter, deltas = Adapter.load(folder), by_hand(folder)
        assert set(adapter.modules()) == set(deltas)
        ends = {
            end: sum(m.endswith(end) for m in adapter.modules()) for end in given.family.modules
        }
        assert ends == given.family.modules
        assert sum(ends.values()) == len(adapter.modules())
        for module, delta in deltas.items():
            assert relative_error(adapter.factors[module].delta(), delta) < 1e-6
        assert (adapter.base.task_type, adapter.base.name_or_path) == (
            given.family.task,
            str(given.base),
        )
        assert bool(adapter.head) == (given.family.task == "SEQ_CLS")
        check_served(given, folder, deltas, adapter.head)


@pytest.mark.parametrize(
    ("method", "rank"), [("task_arithmetic", None), ("ties", 2), ("ties", None)]
)
def test_a_merge_is_served_as_its_dense_weights(given, tmp_path, method, rank):
    adapters = [Adapter.load(folder) for folder in given.folders]
    update = merge(adapters, method, WEIGHTS, rank=rank)
    head = mean_head(adapters)
    update.save(tmp_path / "merged", head=head)
    if method == "task_arithmetic":
        each = [by_hand(folder) for folder in given.folders]
        deltas = {m: sum(w * d[m] for w, d in zip(WEIGHTS, each, strict=True)) for m in each[0]}
    else:
        deltas = reference(adapters, method, WEIGHTS)
    if rank is not None:
        deltas = {m: truncated(delta, rank) for m, delta in deltas.items()}
        assert {f.rank for f in Adapter.load(tmp_path / "merged").factors.values()} == {rank}
    check_served(given, tmp_path / "merged", deltas, head)


@pytest.mark.parametrize("method", [None, "task_arithmetic", "ties"])
@pytest.mark.parametrize(
    "config", [{"name": "low_rank", "q": 2}, {"name": "sparse", "m": 10, "scope": "tensor"}]
)
def test_a_task_with_its_residual_is_served_as_its_dense_weights(given, tmp_path, method, config):
    adapters = [Adapter.load(folder) for folder in given.folders]
    shared = None if method is None else merge(adapters, method, WEIGHTS)
    residue = make_residual(config).take(adapters[1].entries, shared and shared.entries)
    task = TaskUpdate(shared and shared.entries, residue)
    low = [isinstance(entry, LoRAFactors) for entry in task.entries.values()]
    assert all(low) == any(low) == (config["name"] == "low_rank" and method != "ties")
    saved = Update(task.entries, base=adapters[1].base)
    saved.save(tmp_path / "task", head=adapters[1].head)

    deltas = {}
    for module, own in by_hand(given.folders[1]).items():
        base = np.zeros_like(own) if shared is None else shared.delta(module).double().numpy()
        if config["name"] == "low_rank":
            kept = truncated(own - base, 2)
        else:
            k = int(own.size * 0.1)
            smallest = np.sort(np.abs(own - base), axis=None)[-k]
            kept = np.where(np.abs(own - base) >= smallest, own - base, 0)
            assert residue.entries[module].numbers == k
        deltas[module] = base + kept
    check_served(given, tmp_path / "task", deltas, adapters[1].head)


def test_all_of_a_task_beside_a_merge_is_the_task_itself(given, tmp_path):
    adapters = [Adapter.load(folder) for folder in given.folders]
    shared = merge(adapters, "ties", WEIGHTS).entries
    choice = make_residual({"name": "sparse", "m": 100})
    task = TaskUpdate(shared, choice.take(adapters[0].entries, shared))
    Update(task.entries, base=adapters[0].base).save(tmp_path / "task", head=adapters[0].head)
    check_served(given, tmp_path / "task", by_hand(given.folders[0]), adapters[0].head)


def test_a_tied_head_is_changed_alone(tmp_path):
    """LoRA on an output layer that shares its weight with the embeddings leaves these alone."""
    family = LLAMA(partial(llama, True), targets=("q_proj", "lm_head"))
    torch.manual_seed(0)
    family.make().save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base"),
        peft.LoraConfig(
            r=2, target_modules=list(family.targets), task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        model.save_pretrained(tmp_path / "copied")
    with pytest.raises(UserError, match=r"embed_tokens|lm_head.base_layer.*save_embedding_layers"):
        Adapter.load(tmp_path / "copied")

    model.save_pretrained(tmp_path / "task", save_embedding_layers=False)
    merge([Adapter.load(tmp_path / "task")], weights=[0.5]).save(tmp_path / "merged")
    served = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    deltas = by_hand(tmp_path / "task")
    apart = llama(False).eval()
    state = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    apart.load_state_dict(state)
    with torch.no_grad():
        for name, delta in deltas.items():
            apart.get_submodule(name).weight += torch.as_tensor(0.5 * delta).float()
    torch.testing.assert_close(logits(served), logits(apart), rtol=1e-3, atol=1e-4)
