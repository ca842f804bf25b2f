"""Merging for Avalanche's users: a plugin that gives a strategy of theirs a LoRA an experience."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cl_lora.adapters import Adapter, AdapterBank, LoRAFactors
from cl_lora.adapters.injection import (
    LoRAConfig,
    adapter_parameters,
    extract,
    inject,
    parameter_name,
    remove,
    set_aside,
)
from cl_lora.benchmarks.core import Benchmark, Experience
from cl_lora.experiment.arms import Arm, ArmDefaults, check_groups, make_arm
from cl_lora.experiment.banks import FRESH
from cl_lora.experiment.merged import serve_arm
from cl_lora.experiment.serving import OwnUpdate, Part, Workbench
from cl_lora.experiment.stages import Stage
from cl_lora.merging import Update
from cl_lora.models.compute import Compute
from cl_lora.models.heads import freeze, head_of
from cl_lora.models.statistics import TRAIN, Observed, get_statistic
from cl_lora.models.weights import Weights, changed
from cl_lora.run_folder.records import Coefficient
from cl_lora.strategies.config import ANEW
from cl_lora.strategies.script import ScriptBackbone, batches_of, remembered
from cl_lora.support.errors import UserError
from cl_lora.support.seeding import derive
from cl_lora.tasks import CLASS, Task

_NAME = "merged"
"""What the arm is called in messages."""


@dataclass(frozen=True)
class _Opened:
    """An experience while it is trained.

    Attributes:
        network: the model as peft wraps it.
        name: of the experience.
        label: what Avalanche counts it as.
        start: when it began.
    """

    network: Any
    name: str
    label: int
    start: float


class LoRAMergePlugin(SupervisedPlugin):  # type: ignore[misc]
    """Trains a fresh LoRA in every experience, and serves the merge of all so far.

    For a strategy of Avalanche such as its ``Naive``, with any benchmark of classes and a model
    whose classifier is one linear layer, as timm's Vision Transformers have. Everything but adapter
    and classifier is frozen; the classifier is trained on from experience to experience. After
    each, the adapters are merged as a run's arm does it, by the same code, and the model is the
    merged one until the next is trained: ``strategy.eval``, metrics, loggers and whoever calls the
    model see it. Where Avalanche evaluates while an experience is trained, the adapter as it is by
    then is merged with the others.

    Give it last of the plugins: what others do after an experience then sees the model as it was
    trained.

    Args:
        arm: settings of an arm as in YAML, such as ``{"method": "ties", "density": 0.2}``, with
            ``coefficients``, ``space``, ``spc``, ``head: prototypes`` and so on; or the name of a
            merge method.
        lora: the shape of the adapters. Its targets are those of timm's Vision Transformers (qkv,
            or q, k and v; proj, fc1, fc2) or ends of the names of linear layers.
        head: name of the classifier in the model.
        seed: adapters start, buffers are drawn and methods that draw do so by it. Order of batches
            and dropout remain those of the script.
        names: of the experiences, for the bank; by them and the seed buffers are drawn.
        labels: of the classes; the same. By default their numbers.
        batch_size: inputs per forward pass where a merge needs them.
        head_lr: learning rate of a classifier that is tuned with the coefficients.

    Raises:
        UserError: for an arm that is not valid, or needs what a script cannot give.
    """

    def __init__(
        self,
        arm: Mapping[str, Any] | str,
        *,
        lora: LoRAConfig | None = None,
        head: str = "head",
        seed: int = 0,
        names: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        batch_size: int = 64,
        head_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.arm = _made(arm)
        self.lora = lora or LoRAConfig()
        self.seed = seed
        self.update: Update | None = None
        """What is added to the model's weights after the newest merge."""
        self.coefficients: tuple[Coefficient, ...] = ()
        """The coefficients of every merge after an experience, by stage, group and adapter."""
        self._head = head
        self._names = names
        self._labels = labels
        self._batch_size = batch_size
        self._head_lr = head_lr
        self._backbone: ScriptBackbone | None = None
        self._task = Task("script", CLASS)
        self._adapters: list[Adapter] = []
        self._buffers: list[Experience] = []
        self._opened: _Opened | None = None
        self._losses: list[dict[str, float]] = []
        self._loss, self._count = 0.0, 0
        self._served = contextlib.ExitStack()
        self._evaluating = contextlib.ExitStack()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters so far, each with the classifier after its experience."""
        return tuple(self._adapters)

    def save_bank(self, folder: str | Path) -> AdapterBank:
        """Write the adapters as a bank, ``folder/NN-name``, each a folder that peft reads.

        Raises:
            UserError: if nothing was trained, or a folder holds anything else than an adapter.
        """
        if not self._adapters:
            raise UserError("Expected adapters to save but none was trained; call train() first")
        bank = AdapterBank(folder)
        for t, adapter in enumerate(self._adapters):
            bank.save(t, adapter.name, adapter)
            for name, tensors in adapter.statistics.items():
                bank.add_statistic(t, adapter.name, name, tensors)
        return bank

    # Avalanche's hooks, in the order in which they come. The adapter must be there before model
    # and optimizer are checked: in before_training_exp it would be too late, and never train.

    def before_training(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Look at the model, the first time."""
        if self._backbone is None:
            with _draws_kept():
                backbone = ScriptBackbone(strategy.model, self._head, self.lora)
            check_groups([self.arm], backbone.modules_adapted)
            self._task = Task("script", CLASS, self._label_names(backbone.outputs))
            self._backbone = backbone
        if strategy.model is not self._backbone.network:
            raise UserError(
                "Expected the model that this plugin was first trained with but the strategy has "
                "another one; make a plugin for each model"
            )

    def before_train_dataset_adaptation(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Take the merge back and put a fresh adapter in."""
        backbone = self._known
        t = len(self._adapters)
        label = strategy.experience.current_experience
        name = self._name(t, label)
        self._check_coefficients(t)
        if self.arm.needs_buffer:
            dataset = strategy.experience.dataset
            drawn = remembered(dataset, self._task, name, self.arm.spc, self.seed)
            self._buffers = [*self._buffers[:t], drawn]
            self._probe(strategy)
        self._abandon(strategy)  # a training that was broken off
        self._served.close()
        with _draws_kept():
            torch.manual_seed(derive(self.seed, "adapter", t))
            network = inject(backbone.network, self.lora, None, backbone.targets)
        self._opened = _Opened(network, name, label, time.monotonic())
        self._losses = []
        backbone.head.requires_grad_(True)
        backbone.train()
        for module in backbone.network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # the frozen model stays the same: statistics would move
        _seat(strategy, backbone.network)

    def before_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Check that what is to be trained will be."""
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        for name, parameter in self._known.network.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                raise UserError(
                    f"Expected the optimizer of {type(strategy).__name__} to hold every new "
                    f"parameter but it lacks {name!r}, which would never be trained; do not "
                    "override make_optimizer, or put all parameters of the model into it"
                )

    def before_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Begin a mean of the loss."""
        self._loss, self._count = 0.0, 0

    def after_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Add to the mean."""
        size = len(strategy.mb_y)
        self._loss += float(strategy.loss.detach()) * size
        self._count += size

    def after_training_epoch(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Note the mean."""
        if self._count:
            epoch = len(self._losses) + 1
            self._losses.append({"epoch": epoch, "loss": self._loss / self._count})

    def after_training_exp(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Keep the adapter, take it out and merge."""
        opened = self._opened
        assert opened is not None
        adapter = self._snapshot(opened)
        if not any(f.B.any() for f in adapter.factors.values()):
            raise UserError(
                f"Expected training to change the adapter of {opened.name!r} but its factors B are "
                "all zero, as at the start; check the learning rate, and that the loss depends on "
                "the model"
            )
        self._abandon(strategy)
        self._known.eval()
        self._adapters.append(self._observed(strategy, adapter))
        part, coefficients = self._merged(strategy, self._adapters)
        assert isinstance(part.update, Update)
        self.update = part.update
        self.coefficients += coefficients
        self._served.callback(self._serve(part))

    def before_eval(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Merge what there is by now, if an experience is being trained."""
        if self._opened is None:
            return
        adapter = self._snapshot(self._opened)
        self._evaluating.enter_context(set_aside(self._opened.network))
        self._known.eval()
        now = self._observed(strategy, adapter)
        part, _coefficients = self._merged(strategy, [*self._adapters, now])
        self._evaluating.callback(self._serve(part))

    def after_eval(self, strategy: Any, *_: Any, **__: Any) -> None:
        """Go on with the adapter that is being trained."""
        self._evaluating.close()

    @property
    def _known(self) -> ScriptBackbone:
        assert self._backbone is not None
        return self._backbone

    def _abandon(self, strategy: Any) -> None:
        """Take the adapter that is being trained out of the model, if there is one."""
        self._evaluating.close()
        if self._opened is not None:
            _unseat(strategy, adapter_parameters(self._opened.network))
            remove(self._opened.network)
            self._opened = None

    def _label_names(self, outputs: int) -> tuple[str, ...]:
        if self._labels is None:
            return tuple(map(str, range(outputs)))
        if len(self._labels) != outputs:
            raise UserError(
                f"Expected {outputs} labels, as many as the classifier has outputs, but got "
                f"{len(self._labels)}: {list(self._labels)}"
            )
        return tuple(self._labels)

    def _name(self, t: int, label: int) -> str:
        if self._names is None:
            return f"experience-{label}"
        if t >= len(self._names):
            raise UserError(
                f"Expected a name for each experience but this is number {t + 1} and names are "
                f"{list(self._names)}; give more, or none"
            )
        return self._names[t]

    def _check_coefficients(self, t: int) -> None:
        value = self.arm.rule.options.get("value")
        if isinstance(value, Sequence) and t >= len(value):
            raise UserError(
                f"Expected a fixed coefficient for each experience but this is number {t + 1} and "
                f"coefficients are {list(value)}; give more, or one number for all"
            )

    def _probe(self, strategy: Any) -> None:
        """Fail before training, the model untouched, where features could not be had after it."""
        inputs = self._known.encode(self._buffers[-1].inputs[:1])
        self._known.eval()
        with torch.no_grad():
            self._known(inputs.to(strategy.device))

    def _snapshot(self, opened: _Opened) -> Adapter:
        """Return the adapter as it is now, with the classifier beside it."""
        factors: dict[str, LoRAFactors] = extract(opened.network)
        head = self._known.head.state_dict()
        return Adapter(
            opened.name,
            factors,
            {key: value.detach().cpu().clone() for key, value in head.items()},
            {
                "experience": opened.label,
                "name": opened.name,
                "lineage": ANEW.name,
                "seed": self.seed,
                "seconds": round(time.monotonic() - opened.start, 3),
                "loss": list(self._losses),
            },
        )

    def _observed(self, strategy: Any, adapter: Adapter) -> Adapter:
        """Return an adapter with the statistics beside it that the arm needs."""
        if not self.arm.statistics:
            return adapter
        device = strategy.device
        observed = Observed(
            self._known,
            Compute(device, bf16=False),
            OwnUpdate(adapter),
            freeze(head_of(adapter.head)).to(device),
            self._task,
            adapter.modules(),
            self.seed,
            (FRESH.name, len(self._adapters)),
        )
        dataset, size = strategy.experience.dataset, self._batch_size
        statistics = [get_statistic(name) for name in self.arm.statistics]
        return replace(
            adapter,
            statistics={
                s.name: s.gather(observed, batches_of(dataset, size, adapter.name)).result()
                for s in statistics
            },
        )

    def _merged(
        self, strategy: Any, adapters: Sequence[Adapter]
    ) -> tuple[Part, tuple[Coefficient, ...]]:
        """Return what the arm serves of some adapters, made as a run makes it."""
        t = len(adapters) - 1
        members = tuple(range(len(adapters)))
        stage = Stage(t, adapters[-1].name, members, (t,), members)
        spc = self.arm.spc
        bench = Workbench(
            benchmark=Benchmark("script", tuple(self._buffers), fingerprint=""),
            backbone=self._known,
            banks={FRESH.name: tuple(adapters)},
            compute=Compute(strategy.device, bf16=False),
            seed=self.seed,
            policy=self.arm.policy,
            buffers={spc: tuple(e.train for e in self._buffers)},
            spc=spc,
            batch_size=self._batch_size,
            head_lr=self._head_lr,
        )
        # Avalanche evaluates without gradients, but coefficients may be learned by them.
        with torch.enable_grad(), _draws_kept():
            served = serve_arm(bench, self.arm, stage)
        return served.parts[t], served.coefficients

    def _serve(self, part: Part) -> Callable[[], None]:
        """Make the model what serves a part; return what takes it back, bit for bit.

        The weights are written, not changed for as long as something is open: who keeps the model
        and forgets the plugin keeps the merge.
        """
        backbone, update = self._known, part.update
        network, head = backbone.network, backbone.head
        assert isinstance(update, Update)
        names = {parameter_name(network, module) for module in update.modules()}
        own = Weights.of(network, names)
        with changed(network, update):
            merged = Weights.of(network, names)
        merged.write(network)
        backbone.put_head(part.head)

        def back() -> None:
            own.write(network)
            backbone.put_head(head)

        return back


def _draws_kept() -> contextlib.AbstractContextManager[None]:
    """Leave torch's global generator as it is: making a layer draws from it, whatever it is for.

    The script's own draws, such as the order of batches, must not depend on what is merged.
    """
    kept: contextlib.AbstractContextManager[None] = torch.random.fork_rng(devices=[])
    return kept


def _made(arm: Mapping[str, Any] | str) -> Arm:
    """Return the arm, which must need nothing that a script cannot give."""
    settings = {"method": arm} if isinstance(arm, str) else arm
    if isinstance(settings, Mapping):
        _refuse(settings)
    made = make_arm(_NAME, settings, ArmDefaults())
    alien = [name for name in made.statistics if get_statistic(name).part != TRAIN]
    if alien:
        raise _refusal(
            f"method {made.method!r} needs a statistic of validation parts ({alien[0]}), "
            "which no experience has",
            "choose another method",
        )
    if made.rule.routed:
        raise _refusal(
            "coefficients=routed serve every input with adapters of its own, not one model",
            "choose other coefficients",
        )
    return made


_BEYOND: Mapping[str, tuple[str, str]] = {
    "residual": ("a residual is served where the task of a sample is known", "leave residual out"),
    "bank": ("other banks are trained beside the script's own adapters", "leave bank out"),
    "select_on": ("validation parts are no part of an experience", "leave select_on out"),
    "adapt": ("arms are adapted to support sets of a downstream task", "leave adapt out"),
}
"""Settings of arms that mean nothing to a script -> why, and what to do."""


def _refuse(settings: Mapping[str, Any]) -> None:
    for key, (why, remedy) in _BEYOND.items():
        if settings.get(key) not in (None, *_HARMLESS.get(key, ())):
            raise _refusal(f"{key}={settings[key]}: {why}", remedy)
    if settings.get("head") not in (None, "prototypes"):
        raise _refusal(
            f"head={settings['head']}: the classifier is trained on from experience to experience",
            "leave head out, or give head=prototypes",
        )


_HARMLESS: Mapping[str, tuple[str, ...]] = {"bank": (FRESH.name,), "select_on": ("support",)}


def _refusal(what: str, remedy: str) -> UserError:
    return UserError(
        f"Expected an arm that a script of Avalanche can serve but {what}; {remedy}, or use it in "
        "cl-lora run"
    )


def _seat(strategy: Any, model: nn.Module) -> None:
    """Give every parameter of the model a seat in the optimizer.

    Avalanche puts new ones into the first group, and fails where there are several groups and one
    parameter is in none. Here an adapter goes where the weight is that it is added to.
    """
    groups = strategy.optimizer.param_groups
    parameters = dict(model.named_parameters())
    seats = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in seats:
            weight = parameters.get(f"{name.partition('.lora_')[0]}.base_layer.weight")
            seats[id(parameter)] = 0 if weight is None else seats.get(id(weight), 0)
            groups[seats[id(parameter)]]["params"].append(parameter)
    if getattr(strategy, "optimized_param_id", None) is not None:
        # What Avalanche compares the model with: it would look for the parameters of old names.
        strategy.optimized_param_id = parameters


def _unseat(strategy: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Take the parameters of an adapter out of the optimizer."""
    gone = {id(p): p for p in parameters}
    for group in strategy.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in gone.values():
        strategy.optimizer.state.pop(parameter, None)
