"""Tiny models with adapters that peft wrote, and what each adapter adds, by peft and in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cl_lora  # noqa: F401  (before transformers looks for torchvision)

Deltas = dict[str, Tensor]


def tiny_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=8)
    return GPT2LMHeadModel(config).eval()


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def write(base: Path, out: Path, seed: int, **options: Any) -> Path:
    """Write an adapter of random factors on a model, and return its folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = options.get("task_type")
    auto = AutoModelForSequenceClassification if kind == "SEQ_CLS" else AutoModelForCausalLM
    settings: dict[str, Any] = {
        "lora_alpha": 6,
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
        **options,
    }
    torch.manual_seed(seed)
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(out)
    return out


def deltas(base: Any, folder: Path) -> Deltas:
    """Return what peft adds to each layer, (d_out, d_in), float64."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, folder).double()
    return layer_deltas(model, "default")


def layer_deltas(model: Any, adapter: str) -> Deltas:
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if adapter in getattr(layer, "lora_A", {}):
            delta = layer.get_delta_weight(adapter).detach()
            # Conv1D keeps (d_in, d_out), and peft's delta is in the layer's own order.
            found[name] = (delta.T if layer.fan_in_fan_out else delta).clone()
    return found


def relative(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the relative difference of two updates in the Frobenius norm."""
    assert set(found) == set(expected)
    missing = whole = 0.0
    for module, delta in expected.items():
        missing += float((found[module].double() - delta.double()).square().sum())
        whole += float(delta.double().square().sum())
    return float((missing / whole) ** 0.5)
