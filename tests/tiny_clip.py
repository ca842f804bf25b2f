"""A tiny randomly initialised CLIP with a tokenizer of letters, written as transformers does."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

SIDE = 32
WIDTH = 12
LONGEST = 40


def write_clip(folder: Path, seed: int = 0, preprocessor: bool = True) -> Path:
    """Write model, tokenizer and preprocessor, and return the folder."""
    from transformers import CLIPConfig, CLIPModel

    letters = [*string.ascii_lowercase, *string.digits, *'.,-/"']
    ends = [f"{letter}</w>" for letter in letters]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *ends, "ca", "cat</w>"]
    small: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **small,
            "hidden_size": 16,
            "intermediate_size": 32,
            "vocab_size": len(tokens),
            "max_position_embeddings": LONGEST,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={
            **small,
            "hidden_size": 24,
            "intermediate_size": 48,
            "image_size": SIDE,
            "patch_size": 16,
        },
        projection_dim=WIDTH,
    )
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    if preprocessor:
        settings = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.5, 0.6, 0.7],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
