"""A tiny T5 with random weights, and questions that it can learn, as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

WORDS = tuple(
    sorted(
        {"red", "green", "blue", "round", "square", "soft", "hard", "big", "small", "what", "is"}
        | {"it", "made", "of", "which", "one", "like", "the", "passage", "says", "word"}
    )
)
LETTERS = "ABCDEF"


def save_tokenizer(folder: Path, letters: str = LETTERS) -> None:
    """Write a tokeniser with a token for each word and letter."""
    known = ["<pad>", "</s>", "<unk>", *letters, *WORDS]
    known += ["question", "options", "answer", ":", "."]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_t5(folder: Path, *, tied: bool = False, seed: int = 0, **config: Any) -> Path:
    """Write a T5 of two layers with 32 features, random weights and a vocabulary of 64."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": tied,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dropout_rate": 0.0,
    }
    model = T5ForConditionalGeneration(T5Config(**{**settings, **config}))
    if not tied:  # the library ties them anyway, unless the weights are there and differ
        model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 32) * 0.2)
        model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write json lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(generator: np.random.Generator, count: int) -> list[str]:
    return [str(word) for word in generator.permutation(WORDS)[:count]]


def sciq_row(generator: np.random.Generator) -> dict[str, Any]:
    """Return a row as SciQ publishes it; the passage says the answer."""
    right, *wrong = _texts(generator, 4)
    columns = {f"distractor{i + 1}": word for i, word in enumerate(wrong)}
    return {
        "question": "which word",
        "correct_answer": right,
        **columns,
        "support": f"the passage says {right}",
    }


def keyed_row(
    generator: np.random.Generator, labels: str = "ABCD", answer: str | None = None
) -> dict[str, Any]:
    """Return a row as ARC and CommonsenseQA publish it; the question says the answer."""
    texts = _texts(generator, len(labels))
    key = str(generator.choice(list(labels))) if answer is None else answer
    right = texts[labels.index(key)] if key else "it"
    return {
        "id": "1",
        "question": f"which one is {right}",
        "choices": {"text": texts, "label": list(labels)},
        "answerKey": key,
    }


def quail_row(generator: np.random.Generator) -> dict[str, Any]:
    """Return a row as QuAIL publishes it."""
    texts = _texts(generator, 4)
    right = int(generator.integers(4))
    return {
        "id": "1",
        "context": f"the passage says {texts[right]} " + "like " * 3,
        "question": "what is it",
        "answers": texts,
        "correct_answer_id": right,
    }


def save_questions(root: Path, train: int = 40, test: int = 24, seed: int = 0) -> Path:
    """Write the four sets of the few-shot stream in their published form."""
    generator = np.random.default_rng(seed)

    def many(make: Any, count: int, *args: Any) -> list[dict[str, Any]]:
        return [make(generator, *args) for _ in range(count)]

    for name, make, args in (
        ("sciq", sciq_row, ()),
        ("arc_challenge", keyed_row, ()),
    ):
        for split, count in (("train", train), ("validation", test), ("test", test)):
            write_rows(root / name / f"{split}.jsonl", many(make, count, *args))
    for split, count in (("train", train), ("validation", test)):
        rows = many(keyed_row, count, "ABCDE")
        write_rows(root / "commonsense_qa" / f"{split}.jsonl", rows)
    for split, count in (("train", train), ("validation", test), ("challenge", test)):
        write_rows(root / "quail" / f"{split}.jsonl", many(quail_row, count))
    return root
