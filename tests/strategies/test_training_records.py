"""What is recorded and shown of training: means over samples, steps, and where it all came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from cl_lora.adapters import Adapter, BaseModel
from cl_lora.adapters.injection import LoRAConfig
from cl_lora.benchmarks import Benchmark
from cl_lora.benchmarks.avalanche import avalanche_benchmark
from cl_lora.models.backbones import Backbone
from cl_lora.models.images import ImageBackbone
from cl_lora.strategies import LoRAMergePlugin
from cl_lora.strategies.config import TrainingConfig
from cl_lora.strategies.lora import LoRAStrategy
from cl_lora.support import progress
from cl_lora.support.errors import UserError

LORA = LoRAConfig(rank=2, targets=("qkv",))
BATCH = 10  # of 24 samples: the last batch has 4, and must weigh less


class Batches(SupervisedPlugin):
    """Notes loss, hits and size of every training batch, an epoch a list."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[tuple[float, int, int]]] = []

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        self.epochs.append([])

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        hits = int((strategy.mb_output.argmax(1) == strategy.mb_y).sum())
        self.epochs[-1].append((float(strategy.loss.detach()), hits, len(strategy.mb_y)))

    def loss(self, epoch: int) -> float:
        return sum(loss * size for loss, _, size in self.epochs[epoch]) / 24

    def accuracy(self, epoch: int) -> float:
        return sum(hits for _, hits, _ in self.epochs[epoch]) / 24


def strategy(
    backbone: Backbone, benchmark: Benchmark, seed: int = 0, plugins: Any = (), **training: Any
) -> LoRAStrategy:
    settings = {"epochs": 2, "batch_size": BATCH, "lr": 1e-2, **training}
    return LoRAStrategy(
        backbone=backbone,
        task=benchmark.tasks[0],
        lora=LORA,
        training=TrainingConfig(**settings),
        seed=seed,
        plugins=plugins,
    )


def stream(benchmark: Benchmark, encode: Any = ImageBackbone.encode) -> Any:
    return avalanche_benchmark(benchmark, encode)


def train(made: LoRAStrategy, benchmark: Benchmark, t: int = 0, validation: Any = None) -> Adapter:
    return made.train_adapter(stream(benchmark).train_stream[t], f"e{t}", validation=validation)


def script(backbone: Backbone, plugin: LoRAMergePlugin, watch: Batches) -> Naive:
    """Return the strategy of somebody else's script."""
    model = backbone.network
    model.reset_classifier(3)
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Naive(
        model=model, optimizer=optimizer, train_mb_size=BATCH, train_epochs=2,
        plugins=[watch, plugin],
    )  # fmt: skip


def test_loss_and_metric_of_an_epoch_are_means_over_its_samples(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    watch = Batches()
    curve = train(strategy(backbone, benchmark_16, plugins=[watch]), benchmark_16).training["loss"]
    assert [size for _, _, size in watch.epochs[0]] == [10, 10, 4]
    assert [entry["loss"] for entry in curve] == pytest.approx([watch.loss(0), watch.loss(1)])
    assert [entry["accuracy"] for entry in curve] == pytest.approx(
        [watch.accuracy(0), watch.accuracy(1)]
    )


def test_a_script_records_means_over_samples_and_what_a_run_records(
    make_backbone: Callable[[], Backbone], benchmark_16: Benchmark
) -> None:
    plugin, watch = LoRAMergePlugin("task_arithmetic", lora=LORA, seed=3), Batches()
    backbone = make_backbone()
    images = stream(benchmark_16, lambda x: backbone.normalise(backbone.encode(x)[None])[0])
    script(backbone, plugin, watch).train(images.train_stream[1], eval_streams=[])
    record = dict(plugin.adapters[0].training)
    losses = [entry["loss"] for entry in record["loss"]]
    assert losses == pytest.approx([watch.loss(0), watch.loss(1)])
    assert record["seconds"] > 0
    run = train(strategy(make_backbone(), benchmark_16), benchmark_16, 1).training
    assert set(record) == set(run) - {"metric"}
    assert {key: record[key] for key in ("experience", "name", "lineage", "seed")} == {
        "experience": 1,
        "name": "experience-1",
        "lineage": run["lineage"],
        "seed": 3,
    }


def test_progress_counts_every_step_up_to_the_last(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    told: list[tuple[str, int, int | None]] = []
    with progress.told_to(lambda *step: told.append(step)):
        train(strategy(backbone, benchmark_16, seed=5), benchmark_16)
    assert told == [("seed 5: training e0", done, 6) for done in range(7)]


def test_an_adapter_knows_the_model_that_it_was_trained_on(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    backbone.base_model = BaseModel(task_type="FEATURE_EXTRACTION", name_or_path="vit")
    assert train(strategy(backbone, benchmark_16), benchmark_16).base == backbone.base_model


def test_the_seed_draws_the_head_that_training_starts_from(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    heads = [strategy(backbone, benchmark_16, seed=seed).model.head.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("patience", [1, 2])
def test_a_validation_loss_that_is_no_number_ends_training_after_the_patience(
    make_backbone: Callable[[], Backbone], benchmark_16: Benchmark, patience: int
) -> None:
    """No epoch is the best then, and the last weights are kept: those of so many epochs."""
    broken = torch.full((4, 3, 16, 16), math.nan), torch.zeros(4, dtype=torch.long)
    made = strategy(make_backbone(), benchmark_16, epochs=4, patience=patience)
    adapter = train(made, benchmark_16, validation=lambda: [broken])
    losses = [entry["val_loss"] for entry in adapter.training["loss"]]
    assert len(losses) == patience
    assert all(math.isnan(loss) for loss in losses)
    assert "best_epoch" not in adapter.training
    assert all(f.B.any() and f.B.isfinite().all() for f in adapter.factors.values())


def test_avalanche_evaluates_the_strategy_in_batches_four_times_as_large(
    backbone: Backbone, benchmark_16: Benchmark
) -> None:
    sizes: list[int] = []

    class Sizes(SupervisedPlugin):
        def after_eval_iteration(self, strategy: Any, **_: Any) -> None:
            sizes.append(len(strategy.mb_y))

    made = strategy(backbone, benchmark_16, batch_size=2, plugins=[Sizes()])
    made.eval(stream(benchmark_16).test_stream[0])
    assert sizes == [8, 4]


def test_of_many_layers_a_message_names_eight_and_counts_the_others(
    benchmark_16: Benchmark,
) -> None:
    layers = {f"layer{i}": nn.Linear(8, 8) for i in range(10)}
    model = nn.Sequential()
    for name, layer in {**layers, "head": nn.Linear(8, 3)}.items():
        model.add_module(name, layer)
    named = ", ".join(f"layer{i}" for i in range(8))
    plugin = LoRAMergePlugin("ties", lora=LORA)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), plugins=[plugin]
    )
    with pytest.raises(UserError, match=f"called: {named}, and 2 more$"):
        strategy.train(stream(benchmark_16).train_stream[0], eval_streams=[])
