"""The measurements run on what the package is now, and compare what they say they compare."""

import copy
import pkgutil
import sys
from importlib import import_module

import pytest
import torch
from torch import nn

import perf
from cl_lora.adapters.injection import applied, split_qkv
from cl_lora.merging import merge
from cl_lora.models.backbones import ModelConfig, load_backbone
from cl_lora.models.compute import Compute
from cl_lora.models.routing import styles
from cl_lora.strategies.config import TrainingConfig
from perf import common, composition, learning, routing, serving, training
from perf.coefficient_step import step
from tools import pretrain_backbone

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(perf.__path__)])
def test_every_script_imports(name):
    assert import_module(f"perf.{name}")


def test_strategy_and_loop_train_the_same_number_of_images(monkeypatch):
    config = TrainingConfig(epochs=2, batch_size=8)
    monkeypatch.setattr(training, "MODELS", {"tiny": (ModelConfig("embedded"), 20, config)})
    forward, seen = training.LoRAModel.forward, []

    def counted(model, inputs):
        seen.append(len(inputs))
        return forward(model, inputs)

    monkeypatch.setattr(training.LoRAModel, "forward", counted)
    cases, images = training.cases("tiny")
    for name, run in cases.items():
        seen.clear()
        run()
        assert sorted(seen) == [4, 4, 8, 8, 8, 8], name
        assert sum(seen) == images == 40


def test_learning_steps_differentiate_what_a_fresh_merge_does():
    adapters = common.random_adapters(3, 2, {"blocks.0.fc": (5, 4), "blocks.1.fc": (4, 6)})
    weights = {"blocks.0.fc": torch.zeros(5, 4), "blocks.1.fc": torch.zeros(4, 6)}
    for name, plan in learning.plans(adapters).items():
        alpha = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
        update = plan.combine(alpha)
        sum(update.delta(module).sum() for module in weights).backward()
        for module, weight in weights.items():
            assert update.delta(module).shape == weight.shape
        found = [step(plan.materialise(), {m: w}, torch.ones_like(w)) for m, w in weights.items()]
        torch.testing.assert_close(sum(found), alpha.grad, msg=name)


def test_each_case_of_learning_is_compared_with_one_on_the_linear_path():
    plans = learning.plans(common.random_adapters(2, 2, {"fc": (4, 4)}))
    linear = {name for name, plan in plans.items() if plan.linear}
    assert set(learning.BASELINE.values()) == linear
    assert all(plan.learnable for plan in plans.values())


def test_each_way_of_composing_has_the_same_gradient(monkeypatch):
    monkeypatch.setattr(composition, "WIDTH", 8)
    names = {f"blocks.{b}.attn.qkv.{p}": (8, 8) for b in range(2) for p in "qk"}
    adapters = common.random_adapters(3, 2, names)
    layers = composition.Layers(tuple(names))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    steps = {name: start() for name, start in composition.cases(adapters, layers).items()}
    gradients = {name: step(x.clone()) for name, step in steps.items()}
    assert not gradients.pop("frozen layers").any()
    assert gradients["bottleneck"].shape == (4, 3)
    assert gradients["bottleneck"].all()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients["bottleneck"], msg=name)


@pytest.mark.parametrize("targets", [("qkv",), ("q", "k", "v")])
def test_either_whole_step_of_composition_learns_the_same(targets):
    setting = composition.Setting(ModelConfig("embedded"), 3, 2, targets, (2,), 2)
    merged, apart = (run().alpha for run in composition.learning(setting, False, 2).values())
    assert (merged - 1 / 3).abs().max() > 1e-4, "nothing was learned"
    torch.testing.assert_close(apart, merged, rtol=1e-3, atol=1e-5)


def test_either_warm_up_trains_the_same_head(monkeypatch):
    monkeypatch.setattr(composition, "EPOCHS", 2)
    monkeypatch.setitem(
        composition.MODELS, composition.VIT, (ModelConfig("embedded"), 20, TrainingConfig())
    )
    plain, cached = (run().state_dict() for run in composition.warming_up().values())
    torch.testing.assert_close(plain, cached, rtol=1e-3, atol=1e-5)


def test_one_backbone_with_the_heads_of_two_tasks_is_their_merged_model():
    backbone = load_backbone(ModelConfig("embedded"))
    split = copy.deepcopy(backbone)
    split_qkv(split.network)
    adapters = common.random_adapters(2, 2, common.shapes_of(split.network, ("k", "v")))
    heads = [nn.Linear(backbone.features, 3) for _ in adapters]
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    one, each = (run() for run in serving.cases(backbone, adapters, heads, images).values())
    for t, adapter in enumerate(adapters):
        both, alone = merge(adapters, "cat", [1.0, 1.0]), merge([adapter])
        for found, update in ((one[t], both), (each[t], alone)):
            with applied(split.network, update), torch.no_grad():
                torch.testing.assert_close(found, heads[t](split(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first_block", [0, 2])
def test_a_routed_batch_is_dealt_out_evenly(first_block):
    backbone, compute = training.backbone_for(ModelConfig("embedded"), False), Compute(CPU, False)
    experts = routing.experts_of(backbone, ("qkv",), compute, first_block, False)
    assert experts.shares_prefix is (first_block == experts.block == 2)
    images = torch.cat([routing.images_of(domain, 2, 48) for domain in range(4)])
    ((found, _),) = styles(compute, backbone, [(images, torch.zeros(8))], 2)
    assert experts.router.hard(found).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    answers = experts.serve(images)
    assert answers.shape == (8, routing.CLASSES)
    assert answers.isfinite().all()


def test_pretraining_the_embedded_backbone_goes_through(tmp_path, monkeypatch, capsys):
    options = {"classes": 2, "samples-per-class": 8, "epochs": 1, "batch-size": 8}
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    folders = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["pretrain_backbone", *folders, *given])
    pretrain_backbone.main()
    assert '"epoch": 1' in capsys.readouterr().out
    assert (tmp_path / "out" / "backbone.safetensors").stat().st_size > 10_000
    assert (tmp_path / "out" / "backbone.json").is_file()
