"""The model card of a merge, and its record: what was merged, how, and with what loss."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cl_lora import __version__
from cl_lora.joining.inputs import Inputs
from cl_lora.joining.joined import Joined

_LIBRARIES = ("torch", "peft", "safetensors")

_AUTO: Mapping[str, str] = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
"""peft's class that opens an adapter with its base model, by task type."""


def record(joined: Joined, inputs: Inputs) -> dict[str, Any]:
    """Return what ``training.json`` keeps of a merge.

    Args:
        joined: the merge.
        inputs: what was merged.
    """
    same = len(set(joined.weights)) == 1
    return {
        "merge": dict(joined.variant),
        "recipe": _plain(joined.recipe.source),
        "models": [str(path) for path in inputs.paths],
        "weights": list(joined.weights[0])
        if same
        else {m.name: list(w) for m, w in zip(joined.modules, joined.weights, strict=True)},
        "scale": joined.recipe.scale,
        "rank": joined.rank,
        "relative_error": joined.error,
        "dtype": None if joined.dtype is None else str(joined.dtype).removeprefix("torch."),
        "head": list(joined.head),
        "notes": list(joined.notes),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it computed with."""
    found = {"cl-lora": __version__}
    for name in _LIBRARIES:
        found[name] = importlib.metadata.version(name)
    return found


def merge_card(joined: Joined, inputs: Inputs) -> str:
    """Return the text of ``README.md``.

    Args:
        joined: the merge.
        inputs: what was merged.
    """
    parts = (
        _front(inputs),
        f"# {joined.folder.name}",
        _what(joined, inputs),
        "## Merge",
        *_how(joined),
        "## Loading",
        *_loading(joined, inputs),
        "## Made with",
        ", ".join(f"{name} {version}" for name, version in versions().items())
        + ". All numbers are in `training.json`.",
    )
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _front(inputs: Inputs) -> str:
    fields: dict[str, Any] = {"library_name": "peft" if inputs.low_rank else "transformers"}
    if inputs.base.name_or_path:
        fields["base_model"] = inputs.base.name_or_path
    fields["tags"] = [*(["lora"] if inputs.low_rank else []), "merge", "cl-lora"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _what(joined: Joined, inputs: Inputs) -> str:
    kind = "LoRA adapters" if inputs.low_rank else "fully fine-tuned models"
    names = ", ".join(f"`{name}`" for name in joined.names)
    base = f" of `{inputs.base.name_or_path}`" if inputs.base.name_or_path else ""
    return f"{len(joined.names)} {kind}{base}, merged into one: {names}."


def _how(joined: Joined) -> Iterator[str]:
    variant = ", ".join(f"{key} {_word(value)}" for key, value in joined.variant.items())
    yield f"{variant[:1].upper()}{variant[1:]}."
    if len(set(joined.weights)) == 1:
        rows = zip(joined.names, joined.weights[0], strict=True)
        yield "Weights: " + ", ".join(f"`{name}` {weight:g}" for name, weight in rows) + "."
    else:
        yield "Weights differ by module; `training.json` has all of them."
    if joined.recipe.scale != 1:
        yield f"The merged update is multiplied by {joined.recipe.scale:g}."
    source = joined.recipe.source
    if isinstance(source, str):
        yield f"```console\n{source}\n```"
    elif source:
        yield f"```yaml\n{yaml.safe_dump(_plain(source), sort_keys=False)}```"
    yield f"{extent(joined)}, {joined.parameters:,} numbers. Loss: {loss(joined)}."
    if joined.head:
        yield (
            f"Beside the modules, merged with the same weights: "
            f"{', '.join(f'`{name}`' for name in joined.head)}."
        )
    yield from joined.notes


def extent(joined: Joined) -> str:
    """Return in words how many modules there are, and of which ranks."""
    if joined.ranks is None:
        return f"{len(joined.modules)} parameters"
    low, high = joined.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return f"{len(joined.modules)} modules, {ranks}"


def loss(joined: Joined) -> str:
    """Return in words what the written update lacks of the merged one."""
    if joined.error == 0:
        return "none, this is the exact result of the method"
    return (
        f"relative error {joined.error:.3g} in the Frobenius norm (worst {joined.worst.error:.3g}, "
        f"{joined.worst.name})"
    )


def _loading(joined: Joined, inputs: Inputs) -> Iterator[str]:
    folder = json.dumps(str(joined.folder.name))
    if not inputs.low_rank:
        if not joined.delta:
            yield "A whole model: load it as the base model, from this folder."
        else:
            yield "Differences to the base model:"
            yield (
                "```python\nfrom cl_lora import Adapter\n\n"
                f"deltas = Adapter.load({folder}).deltas  # name -> what is added\n```"
            )
        return
    auto = _AUTO.get(inputs.base.task_type or "")
    if auto and inputs.base.name_or_path:
        yield (
            f"```python\nfrom peft import {auto}\n\nmodel = {auto}.from_pretrained({folder})\n```"
        )
        return
    yield (
        "```python\nfrom peft import PeftModel\n\n"
        f"model = PeftModel.from_pretrained(base, {folder})  # base: the model as it was\n```"
    )


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        return " / ".join(map(str, value))
    return "none" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Return a recipe as plain values, as they are read again."""
    return json.loads(json.dumps(value, default=str))
