"""Whole models from pairs of checkpoints, and the files that are read and written by tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joining_folders import tiny_gpt2

from cl_lora.adapters import Adapter
from cl_lora.adapters.checkpoints import Checkpoint, Differences, fine_tuned
from cl_lora.adapters.tensor_file import LazyTensors, writing
from cl_lora.cli import main
from cl_lora.support.errors import UserError

State = dict[str, torch.Tensor]


def state(seed: int = 0, shift: float = 0.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    found = {
        "h.0.fc.weight": torch.randn(5, 4, generator=generator),
        "h.0.fc.bias": torch.randn(5, generator=generator),
        "h.1.conv.weight": torch.randn(3, 2, 2, 2, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator),
        "positions": torch.arange(3),
        "odd": torch.randn(3, generator=generator).half(),
    }
    return {k: v + shift if v.is_floating_point() else v for k, v in found.items()}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two models of it; the second one in parts."""
    safetensors.torch.save_file(state(), tmp_path / "base.safetensors")
    safetensors.torch.save_file(state(1), tmp_path / "one.safetensors")
    (tmp_path / "two").mkdir()
    whole, places = state(2), {}
    for i, names in enumerate((list(whole)[:3], list(whole)[3:])):
        file = f"model-{i}.safetensors"
        safetensors.torch.save_file({name: whole[name] for name in names}, tmp_path / "two" / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps(index))
    return [tmp_path / "base.safetensors", tmp_path / "one.safetensors", tmp_path / "two"]


def run(*arguments: object) -> int:
    return main(["merge", *map(str, arguments)])


def refused(capsys, *arguments: object) -> str:
    assert run(*arguments) == 2
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_pair_is_its_difference_read_when_it_is_asked_for(models):
    base = Checkpoint(models[0])
    adapter = fine_tuned(base, models[2])
    before, after = state(), state(2)
    assert set(adapter.entries) == {"h.0.fc", "h.0.fc.bias", "h.1.conv", "scale", "odd"}
    assert adapter.name == "two"
    for entry, delta in adapter.deltas.items():
        name = entry if entry in before else f"{entry}.weight"
        assert delta.dtype == torch.float32
        assert torch.equal(delta, after[name].float() - before[name].float())


def test_models_are_merged_into_a_model(models, tmp_path):
    base, one, two = models
    code = run(one, two, "--base", base, "--weights", "0.5,2", "--out", tmp_path / "o")
    assert code == 0
    found = safetensors.torch.load_file(tmp_path / "o" / "model.safetensors")
    before, first, second = state(), state(1), state(2)
    assert set(found) == set(before)
    for name, tensor in before.items():
        assert found[name].dtype == tensor.dtype
        if not tensor.is_floating_point():
            assert torch.equal(found[name], tensor)
            continue
        w, a, b = (s[name].double() for s in (before, first, second))
        expected = w + 0.5 * (a - w) + 2 * (b - w)
        width = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[tensor.dtype]
        torch.testing.assert_close(found[name].double(), expected, rtol=width, atol=width)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ties", {"density": 0.5}), ("dare_linear", {"density": 0.5}), ("norm_balanced", {})],
)
def test_only_the_difference_is_what_the_library_merges(models, tmp_path, method, options):
    from cl_lora.merging import merge

    base = Checkpoint(models[0])
    expected = merge([fine_tuned(base, path) for path in models[1:]], method, [1, 1], **options)
    density = [f"--density={options['density']}"] if options else []
    common = ("--method", method, *density, "--weights", "1,1", "--out", tmp_path / "o")
    assert run(*models[1:], "--base", models[0], "--delta", *common) == 0
    found = Adapter.load(tmp_path / "o").deltas
    assert set(found) == set(expected.modules())
    for entry in found:
        assert torch.equal(found[entry], expected.delta(entry))


def test_a_folder_of_a_model_keeps_what_lies_beside_its_weights(tmp_path):
    from transformers import GPT2LMHeadModel

    base, tuned = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter))
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    out = tmp_path / "o"
    assert run(tmp_path / "tuned", "--base", tmp_path / "base", "--weights", "1", "--out", out) == 0
    found = GPT2LMHeadModel.from_pretrained(out).eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, tuned(tokens).logits, rtol=1e-4, atol=1e-4)


def test_models_are_compared(models, capsys):
    assert run(*models[1:], "--base", models[0], "--info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    deltas = [
        torch.cat(
            [(s[n].double() - state()[n].double()).flatten() for n in s if s[n].is_floating_point()]
        )
        for s in (state(1), state(2))
    ]
    assert found["adapters"][0]["norm"] == pytest.approx(float(deltas[0].norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(*deltas, dim=0)
    assert found["cosine"][0][1] == pytest.approx(float(cosine), abs=1e-4)
    assert found["overlap"][0][1] is None
    conflicts = (deltas[0].sign() != deltas[1].sign()).double().mean()
    assert found["sign_conflicts"][0][1] == pytest.approx(float(conflicts), abs=1e-6)


def saved(path: Path, **changes: torch.Tensor | None) -> Path:
    found = {**state(1), **changes}
    safetensors.torch.save_file({k: v for k, v in found.items() if v is not None}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": None}, ("'scale'", "lacks it")),
        ({"more": torch.ones(2)}, ("'more'", "lacks it")),
        ({"odd": torch.ones(4)}, ("'odd'", "(3,)", "(4,)")),
        ({"positions": torch.arange(1, 4)}, ("'positions'", "no floating-point")),
        ({"scale": torch.tensor(math.nan)}, ("'scale'", "NaN or infinity")),
    ],
)
def test_models_that_are_no_pair(models, tmp_path, capsys, changes, words):
    bad = saved(tmp_path / "bad.safetensors", **changes)
    error = refused(capsys, models[1], bad, "--base", models[0], "--out", tmp_path / "o")
    for word in words:
        assert word in error
    assert not (tmp_path / "o").exists()


def test_files_that_are_no_models(models, tmp_path, capsys):
    base, one, two = models
    out = ("--out", tmp_path / "o")
    torch.save(state(), tmp_path / "x.pt")
    (tmp_path / "empty").mkdir()
    assert "a pickle" in refused(capsys, tmp_path / "x.pt", "--base", base, *out)
    assert "model.safetensors" in refused(capsys, tmp_path / "empty", "--base", base, *out)
    assert "nothing" in refused(capsys, one, "--base", tmp_path / "none", *out)
    assert "or --base" in refused(capsys, one, *out)
    assert "without a rank" in refused(capsys, one, "--base", base, "--rank", "2", *out)
    assert "space 'factors'" in refused(
        capsys, one, two, "--base", base, "--method", "ties", "--space", "factors", *out
    )
    one.write_bytes(one.read_bytes()[:-4])
    assert "no readable safetensors" in refused(capsys, one, "--base", base, *out)
    index = two / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-0", "model-1"))
    assert "but it does not" in refused(capsys, two, "--base", base, *out)
    index.write_text("[]")
    assert "no index" in refused(capsys, two, "--base", base, *out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".", "o"))) == [
        "one.safetensors"
    ]


def test_differences_need_names_of_their_own(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(2), "x.weight": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(UserError, match=r"both 'x' and 'x.weight'"):
        Differences(Checkpoint(tmp_path / "m"), Checkpoint(tmp_path / "m"))


# Files by tensor ----------------------------------------------------------------------------------

DTYPES = (torch.float64, torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.uint8)


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_by_tensor_is_what_the_library_reads(tmp_path_factory, shapes, seed):
    path = tmp_path_factory.getbasetemp() / "by_tensor.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, dtype in enumerate(DTYPES[: len(shapes)]):
        values = torch.randn(shapes[i], generator=generator) * 10
        tensors[f'näme "{i}"'] = values.abs().to(dtype)
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    with writing(path, list(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    lazy = LazyTensors(path)
    for found in (safetensors.torch.load_file(path), lazy):
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    assert all(lazy.shape(name) == tuple(tensor.shape) for name, tensor in tensors.items())
    assert all(lazy.dtype(name) == tensor.dtype for name, tensor in tensors.items())


def test_a_tensor_that_was_not_announced_or_not_written_is_a_mistake_of_ours(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "x", ["a"]) as writer:
        writer.add("b", torch.ones(1))
    with (
        pytest.raises(AssertionError, match="announced and not written"),
        writing(tmp_path / "x", ["a"]),
    ):
        pass
