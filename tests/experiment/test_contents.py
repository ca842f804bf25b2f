"""Scoring what is the same once: equal numbers are one content, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tiny_run import overrides
from torch import Tensor, nn

from cl_lora.adapters import Adapter, LoRAFactors
from cl_lora.cli import main
from cl_lora.experiment.contents import content_of
from cl_lora.experiment.evaluator import Evaluator
from cl_lora.experiment.serving import OwnUpdate, Part
from cl_lora.merging import merge


@pytest.fixture
def adapter() -> Adapter:
    return Adapter("a", {"m": LoRAFactors(torch.randn(2, 4), torch.randn(3, 2), 4.0)})


def head(value: float = 1.0) -> nn.Linear:
    made = nn.Linear(3, 2)
    with torch.no_grad():
        made.weight.fill_(value)
        made.bias.fill_(value)
    return made


def test_one_adapter_and_its_merge_alone_are_one_content(adapter: Adapter) -> None:
    own = Part(OwnUpdate(adapter), head(), key="anything")
    merged = Part(merge([adapter], "task_arithmetic", [1.0]), head())
    assert content_of(own) == content_of(merged) is not None


def test_what_differs_in_one_number_is_another_content(adapter: Adapter) -> None:
    update = OwnUpdate(adapter)
    contents = [
        content_of(Part(update, head())),
        content_of(Part(update, head(1.0 + 1e-7))),
        content_of(Part(None, head())),
        content_of(Part(merge([adapter], "task_arithmetic", [1.0 + 1e-6]), head())),
        content_of(Part(update, nn.Sequential(head()))),
        content_of(Part(update, nn.Linear(3, 2, bias=False))),
    ]
    assert len(set(contents)) == len(contents)


def test_what_cannot_be_told_has_no_content(adapter: Adapter) -> None:
    class Alien(nn.Module):
        hidden = torch.ones(2)

    assert content_of(Part(OwnUpdate(adapter), Alien())) is None
    assert content_of(Part(None, head(), answers=lambda j: [])) is None
    secret = head()
    secret.more = torch.ones(1).tolist  # no tensor that is registered
    secret.plain = torch.ones(1)
    assert content_of(Part(None, secret)) is None


def test_scores_are_those_of_scoring_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms that are the same at the first stage are scored once, and nothing else changes."""
    asked: list[int] = []
    measured = Evaluator._measured

    def counted(
        self: Evaluator, parts: Mapping[int, Part], *more: object
    ) -> Iterator[tuple[int, object]]:
        asked.append(len(parts))
        return measured(self, parts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "_measured", counted)
    more = ["+arms.one={method: task_arithmetic, coefficients: 1}", "references=[last,oracle]"]
    assert main(["run", *overrides(tmp_path / "once", *more)]) == 0
    once = sum(asked)
    asked.clear()
    monkeypatch.setattr("cl_lora.experiment.evaluator.content_of", lambda part: None)
    assert main(["run", *overrides(tmp_path / "every", *more)]) == 0
    assert once < sum(asked)
    scores = [(tmp_path / name / "scores.csv").read_bytes() for name in ("once", "every")]
    assert scores[0] == scores[1]


def test_the_digest_of_a_tensor_tells_its_shape_and_kind() -> None:
    def of(value: Tensor) -> object:
        made = nn.Module()
        made.register_buffer("value", value)
        return content_of(Part(None, made))

    values = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4).int(), torch.zeros(8).half()]
    assert len({of(v) for v in values}) == len(values)
