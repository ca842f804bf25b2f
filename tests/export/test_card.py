"""The code of the card: heads and answers of every kind, as the package has them."""

import math

import pytest
import torch

from cl_lora.experiment.pipeline import task_record
from cl_lora.export.card import loading_code, model_card
from cl_lora.export.model import FILE, HUB, WITH
from cl_lora.models.heads import new_head
from cl_lora.tasks import Scaling, Task, get_kind

TASKS = {
    "shape": Task("shape", get_kind("class"), ("disc", "star", "ring")),
    "area": Task("area", get_kind("scalar"), scaling=Scaling((7.0,), (3.0,))),
    "raw": Task("raw", get_kind("scalar")),
    "turn": Task("turn", get_kind("angle"), period=math.pi),
    "outline": Task(
        "outline",
        get_kind("points"),
        ("left", "right", "top"),
        Scaling((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
        (0, 1),
    ),
}


def record(weights=WITH, tasks=TASKS, **more):
    model = {
        "name": "vit_tiny_patch16_224",
        "img_size": 32,
        "mean": [0.5] * 3,
        "std": [0.4, 0.5, 0.6],
        "fingerprint": "cafe",
        "weights": weights,
        "file": "weights.pth",
    }
    return {
        "cl_lora": "0",
        "run": "a run",
        "data": {"name": "shapes", "fingerprint": "f00d"},
        "arm": "cat",
        "description": "The sum.",
        "seed": 0,
        "stage": {"index": 1, "name": "a + b"},
        "coefficients": {"all": {"a": 1.0, "b": 1.0}},
        "update": {"modules": 2, "ranks": [4, 4], "cut_to": None, "relative_error": 0.0},
        "model": model,
        "tasks": {
            name: task_record(task, task.kind.metrics).record() for name, task in tasks.items()
        },
        "heads": {name: {"task": name, "experiences": [name]} for name in tasks},
        "other_head": "",
        "metrics": {"a": {"accuracy": 0.5}, "b": {"mae": 2.0}},
        "precision": "fp32",
        **more,
    }


@pytest.mark.parametrize("shape", ["linear", "mlp"])
@pytest.mark.parametrize("name", TASKS)
def test_heads_and_answers_are_those_of_the_package(name, shape):
    task, written = TASKS[name], record()
    code: dict = {}
    exec(loading_code(written), code)
    head = new_head(shape, 6, task.outputs, seed=3)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    outputs = code["apply"](head.state_dict(), features)
    torch.testing.assert_close(outputs, head(features))
    answers, expected = code["answer"](written, name, outputs), task.predictions(outputs)
    if name == "shape":
        assert answers == [task.labels[i] for i in expected.tolist()]
    else:
        torch.testing.assert_close(answers, expected)


@pytest.mark.parametrize("weights", [HUB, FILE, WITH])
@pytest.mark.parametrize("tasks", [TASKS, {"shape": TASKS["shape"]}, {}], ids=len)
def test_the_code_is_short_compiles_and_names_no_machine(weights, tasks):
    written = record(weights, tasks)
    code = loading_code(written)
    compile(code, "README.md", "exec")
    assert "cl_lora" not in code
    assert len(code.splitlines()) < 100
    assert max(map(len, code.splitlines())) <= 100
    assert code in model_card(written)


def test_the_card_says_what_is_there():
    card = model_card(record(FILE))
    for text in ("a, b merged into one", "5 heads", "`weights.pth`", "cafe", "disc, star, ring"):
        assert text in card
    assert "| b |  | 2.0000 |" in card
    assert "base_model: timm/vit_tiny_patch16_224" in model_card(record(HUB))


def test_the_card_says_what_was_cut_and_left_out():
    update = {"modules": 2, "ranks": [2, 2], "cut_to": 2, "relative_error": 0.25}
    card = model_card(record(tasks={}, update=update, other_head="it is tuned", metrics={}))
    for text in ("cut to rank 2", "norm 0.25", "it is tuned", "There is no head here"):
        assert text in card
