"""Few-shot runs of a language model, every answer again from transformers and the files alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_t5 import save_questions, save_t5
from whole_runs import rows, stamps

from cl_lora.benchmarks import make_benchmark
from cl_lora.configuration.compose import compose_config
from cl_lora.experiment.pipeline import execute
from cl_lora.reporting.figures.weights import learned_weights, middle_stage, similarities
from cl_lora.run_folder.reader import RunFolder
from cl_lora.support.errors import UserError

LENGTH = 40
SMALL = (
    f"model.max_length={LENGTH}",
    *("precision=fp32", "device=cpu", "report=false", "seeds=[0]", "draws=1", "shots=[0,2]"),
    *("strategy.rank=4", "strategy.epochs=3", "strategy.batch_size=16", "strategy.lr=0.01"),
    *("adaptation.steps=6", "adaptation.lora_lr=0.01", "adaptation.full_lr=0.003"),
)


@dataclass(frozen=True)
class Place:
    """Where the model, the questions and the run are."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def questions(self) -> Path:
        return self.root / "questions"

    def given(self, *more: str) -> list[str]:
        places = [f"benchmark.root={self.questions}", f"model.checkpoint={self.model}"]
        where = [] if any(m.startswith("run_dir=") for m in more) else [f"run_dir={self.run}"]
        return ["experiment=few_shot_language", *where, *places, *SMALL, *more]

    def execute(self, *more: str) -> Path:
        return execute(compose_config(self.given(*more)))

    @cached_property
    def benchmark(self) -> Any:
        return make_benchmark({"kind": "few_shot_language", "root": str(self.questions)}, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run: every arm of the paper at K = 0 and K = 2."""
    made = Place(tmp_path_factory.mktemp("language"))
    save_t5(made.model)
    save_questions(made.questions, train=40, test=30)
    made.execute()
    return made


def scores(run: Path, metric: str = "exact_match") -> dict[tuple[str, int], float]:
    return {
        (r["arm"], int(r["stage"])): float(r["value"]) for r in rows(run) if r["metric"] == metric
    }


def generated(place: Place, deltas: Mapping[str, torch.Tensor]) -> float:
    """Return the share of ARC's test questions whose generated token is the right letter."""
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(place.model).eval()
    with torch.no_grad():
        for module, delta in deltas.items():
            model.get_submodule(module).weight += delta.to(torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    arc = place.benchmark.experiences[3]
    prompts = ["".join(parts) for parts in arc.inputs[arc.test]]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    said = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=1,
        do_sample=False,
    )
    texts = tokenizer.batch_decode(said[:, 1:])
    right = [arc.task.labels[y] for y in arc.targets[arc.test]]
    return float(np.mean([text == letter for text, letter in zip(texts, right, strict=True)]))


def deltas_of(place: Place, name: str) -> dict[str, torch.Tensor]:
    """Return alpha / r B A of every module, float64, from the folder of an adapter."""
    (folder,) = (place.run / "adapters" / "seed-0").glob(f"*-{name}")
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, A in state.items():
        if ".lora_A." in key:
            B = state[key.replace(".lora_A.", ".lora_B.")]
            module = key.removeprefix("base_model.model.").split(".lora_A.")[0]
            found[module] = config["lora_alpha"] / config["r"] * B.double() @ A.double()
    return found


UPSTREAM = ("sciq", "commonsense_qa", "quail")


def test_every_arm_is_scored_at_every_k(place: Place) -> None:
    run = RunFolder.read(place.run)
    assert [s.name for s in run.stream.stages] == ["K=0", "K=2"]
    assert {e.name for e in run.stream.experiences} == {*UPSTREAM, "arc_challenge"}
    arms = ("zero_shot", "full", "lora", "uniform", "learned")
    assert set(scores(place.run)) == {(arm, stage) for arm in arms for stage in (0, 1)}
    assert set(scores(place.run, "option_accuracy")) == set(scores(place.run))
    assert run.yardstick == "lora"


def test_training_upstream_lowers_the_loss(place: Place) -> None:
    for name in (*UPSTREAM, "arc_challenge"):
        (folder,) = (place.run / "adapters" / "seed-0").glob(f"*-{name}")
        record = json.loads((folder / "training.json").read_text())
        losses = [epoch["loss"] for epoch in record["loss"]]
        assert losses[-1] < losses[0] - 0.1
        assert record["metric"] == "exact_match"


def test_zero_shot_is_what_the_model_generates(place: Place) -> None:
    found = scores(place.run)
    expected = generated(place, {})
    for arm in ("zero_shot", "full", "lora"):
        assert found[arm, 0] == pytest.approx(expected)
    assert found["zero_shot", 1] == pytest.approx(expected)


def test_the_uniform_composition_is_what_the_merged_model_generates(place: Place) -> None:
    each = [deltas_of(place, name) for name in UPSTREAM]
    merged = {module: sum(e[module] for e in each) / 3 for module in each[0]}
    assert len(merged) == 18
    expected = generated(place, merged)
    found = scores(place.run)
    assert 0 < expected < 1  # else it would say little
    assert found["uniform", 0] == pytest.approx(expected)
    assert found["uniform", 1] == pytest.approx(expected)
    assert found["learned", 0] == pytest.approx(expected)


def test_the_learned_composition_is_what_the_merged_model_generates(place: Place) -> None:
    run = RunFolder.read(place.run)
    table = run.coefficients
    table = table[(table["arm"] == "learned") & (table["stage"] == 1)]
    alpha = {(r.group, r.adapter): r.value for r in table.itertuples()}
    each = [deltas_of(place, name) for name in UPSTREAM]
    merged = {m: sum(alpha[m, i] * e[m] for i, e in enumerate(each)) for m in each[0]}
    expected = generated(place, merged)
    assert 0 < expected < 1
    assert scores(place.run)["learned", 1] == pytest.approx(expected)
    sums = table.groupby("group")["value"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    assert float(table["value"].std()) > 0.01


def test_what_is_trained_is_counted(place: Place) -> None:
    accounts = RunFolder.read(place.run).accounts
    counts = accounts[accounts["quantity"] == "trainable_parameters"]
    found = {(r.arm, r.stage): r.value for r in counts.itertuples()}
    parameters = sum(v.numel() for v in load_file(place.model / "model.safetensors").values())
    assert found["full", 1] == parameters
    assert found["lora", 1] == 18 * 4 * (32 + 32)
    assert found["learned", 1] == 18 * 3
    assert all(found[arm, 1] == 0 for arm in ("zero_shot", "uniform"))


def test_adapters_hold_no_copy_of_the_language_models_head(place: Place) -> None:
    folders = sorted((place.run / "adapters" / "seed-0").iterdir())
    assert len(folders) == 4
    for folder in folders:
        head = load_file(folder / "head.safetensors")
        assert set(head) == {"letters"}
        assert head["letters"].tolist() == [3, 4, 5, 6, 7][: len(head["letters"])]


def test_peft_opens_an_adapter_with_its_model_by_itself(place: Place) -> None:
    from peft import AutoPeftModelForSeq2SeqLM
    from transformers import T5ForConditionalGeneration

    (folder,) = (place.run / "adapters" / "seed-0").glob("*-quail")
    merged = AutoPeftModelForSeq2SeqLM.from_pretrained(folder).merge_and_unload()
    plain = T5ForConditionalGeneration.from_pretrained(place.model)
    for module, delta in deltas_of(place, "quail").items():
        expected = plain.get_submodule(module).weight.double() + delta
        torch.testing.assert_close(
            merged.get_submodule(module).weight.double(), expected, rtol=1e-5, atol=1e-6
        )


def test_features_of_layers_are_compared(place: Place) -> None:
    table = RunFolder.read(place.run).similarity
    assert set(table["adapter"]) == {0, 1, 2}
    assert table["value"].between(0, 1 + 1e-9).all()
    modules = set(table["group"])
    # The first decoder block reads the start token: what does not see the question is no feature.
    assert "decoder.block.0.layer.0.SelfAttention.q" not in modules
    assert {"encoder.block.1.layer.0.SelfAttention.v",
            "decoder.block.1.layer.1.EncDecAttention.q"} <= modules  # fmt: skip


def test_the_same_command_again_computes_nothing(place: Place) -> None:
    before, found = stamps(place.run / "adapters"), scores(place.run)
    place.execute()
    assert stamps(place.run / "adapters") == before
    assert scores(place.run) == found


def test_more_shots_and_arms_go_on(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place.run, run)
    before = stamps(run / "adapters")
    place.execute(
        f"run_dir={run}",
        "shots=[1]",
        "yardstick=null",
        "arms=none",
        "+arms.ties={method: ties, coefficients: softmax, adapt: coefficients, head_start: text}",
        "+arms.best={method: task_arithmetic, coefficients: best, adapt: none, head_start: text}",
        "+arms.on_merge={method: task_arithmetic, adapt: lora, head_start: text}",
    )
    assert stamps(run / "adapters") == before
    assert {("ties", 2), ("best", 2), ("on_merge", 2)} <= set(scores(run))


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["strategy.head=own"], r"answered in words, which no head .* policy is 'own'; set"),
        (["arms.lora.head_start=null"], r"Arm 'lora': .*answered in words.*head_start=zero; set"),
        (["+arms.tune={adapt: head, head_start: text}"], r"'tune': head_start=text gives a head"),
        (
            ["+arms.m={method: task_arithmetic, adapt: none, head_start: means}"],
            r"Arm 'm': .*answered in words.*head_start=means; set",
        ),
        (["model.max_length=8"], r"at most model.max_length=8 tokens beside their passage but"),
        (["model=embedded", "~model.checkpoint", "~model.max_length"], r"a model that takes texts"),
        (["shots=[99]"], r"Expected shots to be at most \d+, the train samples of choice 'A'"),
        (["strategy.targets=[qkv]"], r"LoRA target 'qkv'"),
        (["benchmark=shapes"], r"a model that takes images, which benchmark.kind=shapes has"),
    ],
)
def test_settings_that_do_not_go_together(
    place: Place, tmp_path: Path, more: list[str], said: str
) -> None:
    given = place.given(f"run_dir={tmp_path / 'run'}", *more)
    if any(m.startswith("benchmark=") for m in more):
        given = [g for g in given if not g.startswith("benchmark.root")]
    if any(m.startswith("model=") for m in more):
        given = [g for g in given if not g.startswith(("model.", "~model."))]
    with pytest.raises(UserError, match=said):
        execute(compose_config(given))
    assert not list(tmp_path.glob("run/adapters/*"))


def test_encoder_decoder_and_cross_attention_are_rows_of_their_own(place: Place) -> None:
    run = RunFolder.read(place.run)
    stage = middle_stage(run, "learned", 3)
    assert stage is not None
    heat = learned_weights(run, "learned", stage, 3)
    assert heat is not None
    assert [layer.label for layer in heat.layers] == [
        *("encoder 0", "encoder 1", "decoder 0", "decoder 0 cross", "decoder 1"),
        "decoder 1 cross",
    ]
    table = run.coefficients
    module = "decoder.block.1.layer.1.EncDecAttention.v"
    rows_ = table[(table["arm"] == "learned") & (table["stage"] == 1) & (table["group"] == module)]
    assert heat.parts["v"][-1] == pytest.approx(rows_.sort_values("adapter")["value"].to_numpy())
    similar = similarities(run, 3, heat)
    assert similar is not None
    # The decoder's first self-attention sees the start token alone.
    assert np.isnan(similar.parts["v"][2]).all()
    assert np.isfinite(similar.parts["v"][3]).all()
