"""The model card of an export: what it is, what was measured, and code that loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_lora.export.model import FILE, HUB, WITH

Record = Mapping[str, Any]
"""The contents of ``export.json``."""

_LABELS = 8  # names of classes that a row of the table shows

_FINGERPRINT = '''\
def fingerprint(network):
    """Return a digest of all weights."""
    hasher = hashlib.blake2b(digest_size=16)
    for key, value in sorted(network.state_dict().items()):
        for part in (json.dumps(key).encode(), value.numpy().tobytes()):
            hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()
'''

_BASES = {
    HUB: """\
    network = timm.create_model(
        about["name"], pretrained=True, num_classes=0, img_size=about["img_size"]
    )
""",
    FILE: """\
    network = timm.create_model(about["name"], num_classes=0, img_size=about["img_size"])
    state = {key: value.float() for key, value in load_state_dict(str(checkpoint)).items()}
    state = checkpoint_filter_fn(state, network)  # resamples the position embedding
    network.load_state_dict({key: state[key] for key in network.state_dict()})
""",
    WITH: """\
    network = timm.create_model(about["name"], num_classes=0, img_size=about["img_size"])
    network.load_state_dict(load_file(folder / "base.safetensors"))
""",
}
_UNNAMED = """\
    network = VisionTransformer(**about["architecture"])
    network.load_state_dict(load_file(folder / "base.safetensors"))
"""

_HEADS = '''\
def apply(head, features):
    """Return the outputs of a head."""
    if "weight" in head:
        return F.linear(features, head["weight"], head["bias"])
    x = F.layer_norm(features, features.shape[1:], head["norm.weight"], head["norm.bias"])
    x = F.linear(x, head["hidden.weight"], head["hidden.bias"]).relu()
    return F.linear(x, head["out.weight"], head["out.bias"])
'''

_MEANINGS = {
    "class": """\
    if task["kind"] == "class":
        return [task["labels"][i] for i in outputs.argmax(1).tolist()]
""",
    "scalar": """\
    if task["kind"] == "scalar":
        return unscaled(task, outputs)[:, 0]
""",
    "angle": """\
    if task["kind"] == "angle":  # in radians
        return torch.atan2(outputs[:, 1], outputs[:, 0]) * (task["period"] / (2 * math.pi))
""",
    "points": """\
    if task["kind"] == "points":  # (x, y) as shares of the image's side
        return unscaled(task, outputs).unflatten(1, (-1, 2))
""",
}
_UNSCALED = '''\
def unscaled(task, outputs):
    """Return outputs in the unit of the targets."""
    scaling = task.get("scaling", {"mean": [0.0], "deviation": [1.0]})
    return outputs * torch.tensor(scaling["deviation"]) + torch.tensor(scaling["mean"])
'''


def model_card(record: Record) -> str:
    """Return the text of ``README.md``.

    Args:
        record: the contents of ``export.json``.
    """
    paragraphs = (
        _front(record),
        f"# {record['arm']} of {record['run']}",
        _what(record),
        *_tasks(record),
        *_update(record),
        *_base(record),
        *_code(record),
        *_source(record),
    )
    return "\n\n".join(part.rstrip("\n") for part in paragraphs if part) + "\n"


def loading_code(record: Record) -> str:
    """Return Python code that loads the folder with peft and timm alone, and predicts."""
    model = record["model"]
    where, unnamed = model["weights"], "architecture" in model
    kinds = {task["kind"] for task in record["tasks"].values()}
    standard = [
        "json",
        *(["hashlib"] if where != WITH else []),
        *(["warnings"] if where != WITH else []),
    ]
    standard += ["math"] if "angle" in kinds else []
    lines = [
        *(f"import {name}" for name in sorted(standard)),
        "from pathlib import Path",
        "",
        *([] if unnamed else ["import timm"]),
        "import torch",
        "from peft import PeftModel",
        *(["from safetensors.torch import load_file"] if record["heads"] or where == WITH else []),
        *(["from timm.models import load_state_dict"] if where == FILE else []),
        *(["from timm.models.vision_transformer import VisionTransformer"] if unnamed else []),
        *(
            ["from timm.models.vision_transformer import checkpoint_filter_fn"]
            if where == FILE
            else []
        ),
        *(["from torch.nn import functional as F"] if record["heads"] else []),
    ]
    parts = ["\n".join(lines) + "\n", _load(record)]
    if where != WITH:
        parts.append(_FINGERPRINT)
    parts.append(_forward(record))
    if record["heads"]:
        parts.append(_HEADS)
        if kinds & {"scalar", "points"}:
            parts.append(_UNSCALED)
        parts.append(_answer(kinds))
    return "\n\n".join(parts)


def _load(record: Record) -> str:
    model = record["model"]
    from_file = model["weights"] == FILE
    base = _UNNAMED if "architecture" in model else _BASES[model["weights"]]
    check = (
        ""
        if model["weights"] == WITH
        else """\
    if fingerprint(network) != about["fingerprint"]:
        warnings.warn("these base weights are not those that the adapter was trained on")
"""
    )
    heads = (
        """\
    heads = {}
    for key, tensor in load_file(folder / "heads.safetensors").items():
        name, part = key.rsplit("/", 1)
        heads.setdefault(name, {})[part] = tensor
"""
        if record["heads"]
        else "    heads = {}\n"
    )
    return (
        f"def load(folder{', checkpoint' if from_file else ''}):\n"
        '    """Return the merged network, the heads, and what is known of them."""\n'
        "    folder = Path(folder)\n"
        '    export = json.loads((folder / "export.json").read_text())\n'
        '    about = export["model"]\n'
        f"{base}{check}"
        "    network = PeftModel.from_pretrained(network, str(folder)).merge_and_unload().eval()\n"
        f"{heads}"
        "    return network, heads, export\n"
    )


def _forward(record: Record) -> str:
    end = (
        "    return {name: apply(head, features) for name, head in heads.items()}\n"
        if record["heads"]
        else "    return features\n"
    )
    what = "Return the outputs of every head" if record["heads"] else "Return features"
    return (
        "@torch.no_grad()\n"
        "def forward(network, heads, export, images):\n"
        f'    """{what} for images uint8 (N, 3, size, size), in one pass."""\n'
        '    mean = torch.tensor(export["model"]["mean"]).view(3, 1, 1)\n'
        '    std = torch.tensor(export["model"]["std"]).view(3, 1, 1)\n'
        "    features = network((images / 255 - mean) / std)\n"
        f"{end}"
    )


def _answer(kinds: set[str]) -> str:
    return (
        "def answer(export, name, outputs):\n"
        '    """Return what the outputs of a head mean."""\n'
        '    task = export["tasks"][export["heads"][name]["task"]]\n'
        f"{''.join(text for kind, text in _MEANINGS.items() if kind in kinds)}"
        "    return outputs\n"
    )


def _front(record: Record) -> str:
    model = record["model"]
    lines = ["library_name: peft", "tags: [lora, timm, cl-lora]"]
    if model["weights"] == HUB:
        lines.append(f"base_model: timm/{model['name']}")
    return "\n".join(("---", *lines, "---"))


def _what(record: Record) -> str:
    update = record["update"]
    members = list(dict.fromkeys(m for row in record["coefficients"].values() for m in row))
    adapters = (
        f"The adapters {', '.join(members)} merged into one"
        if len(members) > 1
        else f"The adapter {members[0]}"
    )
    many = len(record["heads"])
    heads = (
        f"one forward pass of the backbone serves {many} heads"
        if many > 1
        else "with its head"
        if many
        else "without a head"
    )
    cut = f", cut to rank {update['cut_to']}" if update["cut_to"] is not None else ""
    return f"{adapters}{cut}, {heads}.\n\nThe row: {record['description'] or record['arm']}"


def _tasks(record: Record) -> Iterator[str]:
    yield "## Tasks"
    if record["other_head"]:
        instead = (
            "What is here was trained with the adapters"
            if record["heads"]
            else "There is no head here: train one on the features"
        )
        yield (
            f"The head that was scored is not here ({record['other_head']}). "
            f"{instead}; scores of the other one are left out."
        )
    if record["heads"]:
        yield _table(("head", "kind", "answers", "serves"), _head_rows(record))
    if record["metrics"]:
        yield (
            f"Measured on the test parts (precision {record['precision']}, seed {record['seed']})"
            f"{_before(record)}:"
        )
        metrics = list(dict.fromkeys(m for row in record["metrics"].values() for m in row))
        yield _table(
            ("", *metrics),
            (
                (name, *(f"{row[m]:.4f}" if m in row else "" for m in metrics))
                for name, row in record["metrics"].items()
            ),
        )


def _before(record: Record) -> str:
    return ", before the update was cut" if record["update"]["cut_to"] is not None else ""


def _head_rows(record: Record) -> Iterator[tuple[str, ...]]:
    for name, head in record["heads"].items():
        task = record["tasks"][head["task"]]
        labels = task["labels"]
        more = f" and {len(labels) - _LABELS} more" if len(labels) > _LABELS else ""
        answers = ", ".join(labels[:_LABELS]) + more
        if "scaling" in task:
            answers += f"{'; ' if answers else ''}standardised while learned"
        yield name, task["kind"], answers, ", ".join(head["experiences"])


def _update(record: Record) -> Iterator[str]:
    update = record["update"]
    low, high = update["ranks"]
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    exact = (
        "the whole update, by concatenation of factors where it is a sum of adapters"
        if update["cut_to"] is None
        else f"cut; relative error in the Frobenius norm {update['relative_error']:.4g}"
    )
    yield "## Adapter"
    yield (
        f"LoRA factors of {update['modules']} modules, {ranks}: {exact}. q, k and v that were "
        "adapted apart are one module here, as timm has it."
    )
    rows = record["coefficients"]
    if len(rows) == 1:
        (weights,) = rows.values()
        yield "Coefficients: " + ", ".join(f"{m} {value:.4g}" for m, value in weights.items()) + "."
    else:
        yield f"Coefficients differ by module; `export.json` has all {len(rows)} groups of them."


def _base(record: Record) -> Iterator[str]:
    model = record["model"]
    weights = {
        HUB: "timm's, from the hub",
        FILE: f"those of your file `{model.get('file')}`, which is not in this folder",
        WITH: "`base.safetensors` in this folder",
    }[model["weights"]]
    name = "A Vision Transformer of cl-lora" if "architecture" in model else f"`{model['name']}`"
    yield "## Base model"
    yield (
        f"{name} at {model['img_size']} pixels; weights: {weights} (fingerprint "
        f"`{model['fingerprint']}`). Images are RGB, the shorter side scaled to "
        f"{model['img_size']} pixels (bicubic), the centre cropped, divided by 255 and normalised "
        f"with mean {_numbers(model['mean'])} and standard deviation {_numbers(model['std'])}."
    )


def _code(record: Record) -> Iterator[str]:
    yield "## Loading"
    yield "With peft and timm alone:"
    yield f"```python\n{loading_code(record)}```"
    given = '".", "FILE"' if record["model"]["weights"] == FILE else '"."'
    yield (
        f"`network, heads, export = load({given})`, then `forward(network, heads, export, images)`"
        + (
            " and `answer(export, name, outputs)` for the outputs of each head."
            if record["heads"]
            else "."
        )
    )


def _source(record: Record) -> Iterator[str]:
    stage, data = record["stage"], record["data"]
    yield "## Where it comes from"
    yield (
        f"cl-lora {record['cl_lora']}, run `{record['run']}` on {data['name']} (data fingerprint "
        f"`{data['fingerprint']}`), row `{record['arm']}`, seed {record['seed']}, stage "
        f"{stage['index']} ({stage['name']}). Everything else is in `export.json`."
    )


def _numbers(values: Sequence[float]) -> str:
    different = dict.fromkeys(values)
    return ", ".join(f"{v:g}" for v in (different if len(different) == 1 else values))


def _table(columns: Sequence[str], rows: Iterator[tuple[str, ...]] | Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
