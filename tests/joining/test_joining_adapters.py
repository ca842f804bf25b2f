"""Merging LoRA folders: beside peft and dense algebra, loaded by peft again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import warm
import yaml
from joining_folders import Deltas, deltas, layer_deltas, relative, tiny_bert, tiny_gpt2, write

from cl_lora.adapters import Adapter
from cl_lora.cli import main
from cl_lora.joining import from_options, make_recipe, open_inputs
from cl_lora.joining.comparing import compare
from cl_lora.joining.settings import parse_setting
from cl_lora.merging import geometry
from cl_lora.merging.depths import depths
from cl_lora.support.errors import UserError

MIXED: tuple[dict[str, Any], ...] = (
    {"r": 3},
    {"r": 2, "use_rslora": True},
    {"r": 3, "rank_pattern": {"attn.c_proj": 1}, "alpha_pattern": {"1.attn.c_attn": 20}},
)
"""Settings of adapters that differ in everything an adapter may differ in."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with adapters m0, m1, m2 of MIXED and p0, p1 of one rank; a BERT with a head."""
    root = tmp_path_factory.mktemp("folders")
    tiny_gpt2().save_pretrained(root / "gpt2")
    tiny_bert().save_pretrained(root / "bert")
    for i, options in enumerate(MIXED):
        write(root / "gpt2", root / f"m{i}", i, **options)
    for i in range(2):
        write(root / "gpt2", root / f"p{i}", 10 + i, r=2)
        write(
            root / "bert",
            root / f"b{i}",
            20 + i,
            r=2,
            target_modules=["query", "value"],
            fan_in_fan_out=False,
            task_type="SEQ_CLS",
        )
    return root


@pytest.fixture(scope="module")
def mixed(folder: Path) -> list[Deltas]:
    return [deltas(tiny_gpt2(), folder / f"m{i}") for i in range(3)]


def run(*arguments: object) -> int:
    return main(["merge", *map(str, arguments)])


def merged(folder: Path, out: Path, *arguments: object) -> Deltas:
    """Merge m0, m1 and m2 by the command, and return what peft adds of the result."""
    assert run(*(folder / f"m{i}" for i in range(3)), "--out", out, *arguments) == 0
    return deltas(tiny_gpt2(), out)


# The numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cat", "task_arithmetic", "linear"])
def test_a_sum_of_mixed_adapters_is_the_dense_sum(folder, mixed, tmp_path, method):
    found = merged(folder, tmp_path / "o", "--method", method, "--weights", "-1,0.5,2")
    expected = {m: -mixed[0][m] + 0.5 * mixed[1][m] + 2 * mixed[2][m] for m in mixed[0]}
    assert relative(found, expected) < 1e-6


def test_the_rank_of_the_sum_is_the_sum_of_ranks_up_to_the_full_one(folder, tmp_path, capsys):
    assert run(*[folder / "m0"] * 8, "--out", tmp_path / "o") == 0
    config = json.loads((tmp_path / "o" / "adapter_config.json").read_text())
    assert config["r"] == 16  # 8 * 3 would be more than the matrix has
    assert "ranks add up to the full rank" in " ".join(capsys.readouterr().out.split())
    found = deltas(tiny_gpt2(), tmp_path / "o")
    assert relative(found, deltas(tiny_gpt2(), folder / "m0")) < 1e-5


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_cut_sum_is_the_best_of_its_rank_and_says_what_is_lost(folder, mixed, tmp_path, rank):
    found = merged(folder, tmp_path / "o", "--weights", "1,1,1", "--rank", rank)
    missing = total = 0.0
    for module in mixed[0]:
        whole = sum(d[module] for d in mixed)
        u, s, vh = torch.linalg.svd(whole)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(found[module], best, rtol=1e-4, atol=1e-4)
        missing += float(s[rank:].square().sum())
        total += float(s.square().sum())
    record = json.loads((tmp_path / "o" / "training.json").read_text())
    assert record["relative_error"] == pytest.approx((missing / total) ** 0.5, rel=1e-4, abs=1e-7)


def test_ties_is_computed_on_the_dense_updates(folder, mixed, tmp_path):
    found = merged(folder, tmp_path / "o", "--method", "ties", "--density", "0.3", "--dense")
    for module in mixed[0]:
        stack = torch.stack([d[module] for d in mixed])
        for tensor in stack:
            k = int(0.3 * tensor.numel())
            tensor[tensor.abs() < tensor.abs().flatten().sort().values[-k]] = 0
        sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
        agree = stack.sign() == sign
        expected = (stack * agree / 3).sum(0) / agree.sum(0).clamp(min=1)
        assert relative({"m": found[module]}, {"m": expected}) < 1e-5


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (("cat",), "cat", {}),
        (("linear", "--space", "factors"), "linear", {}),
        (("ties", "--space", "factors", "--density", "0.5"), "ties", {"density": 0.5}),
        (
            ("ties", "--space", "factors", "--density", "0.5", "--set", "elect=frequency"),
            "ties",
            {"density": 0.5, "majority_sign_method": "frequency"},
        ),
        (
            ("magnitude_prune", "--space", "factors", "--density", "0.4"),
            "magnitude_prune",
            {"density": 0.4},
        ),
        (("dare_linear", "--space", "factors", "--density", "1"), "dare_linear", {"density": 1.0}),
        (("dare_ties", "--space", "factors", "--density", "1"), "dare_ties", {"density": 1.0}),
        (("svd", "--rank", "2"), "svd", {"svd_rank": 2}),
    ],
)
def test_the_same_numbers_as_add_weighted_adapter(folder, tmp_path, ours, theirs, options):
    from peft import PeftModel

    paths = [folder / "p0", folder / "p1"]
    assert run(*paths, "--method", *ours, "--weights", "0.7,0.4", "--out", tmp_path / "o") == 0
    model = PeftModel.from_pretrained(tiny_gpt2(), paths[0], adapter_name="a")
    model.load_adapter(paths[1], "b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "c", combination_type=theirs, **options)
    found = deltas(tiny_gpt2(), tmp_path / "o")
    assert relative(found, layer_deltas(model, "c")) < 1e-5


def test_the_command_is_what_the_library_computes(folder, tmp_path):
    from cl_lora.merging import merge

    options = {"density": 0.4, "mask_seed": 3}
    adapters = [Adapter.load(folder / f"p{i}") for i in range(2)]
    expected = merge(adapters, "dare_ties", [1.0, 1.0], **options)
    paths = [folder / "p0", folder / "p1"]
    arguments = ["--method", "dare_ties", "--density", "0.4", "--set", "mask_seed=3"]
    code = run(*paths, *arguments, "--weights", "1,1", "--dense", "--out", tmp_path / "o")
    assert code == 0
    found = Adapter.load(tmp_path / "o")
    for module in expected.modules():
        assert torch.equal(found.factors[module].delta(), expected.delta(module))


def test_a_method_inside_another_is_given_by_its_name_or_with_its_options(folder, tmp_path):
    from cl_lora.merging import merge

    adapters = [Adapter.load(folder / f"p{i}") for i in range(2)]
    for number, (text, inner) in enumerate(
        [("iso_c", "iso_c"), ("{name: ties, density: 0.5}", {"name": "ties", "density": 0.5})]
    ):
        out = tmp_path / str(number)
        arguments = ["--method", "core_space", "--set", f"inner={text}", "--weights", "1,1"]
        assert run(folder / "p0", folder / "p1", *arguments, "--out", out) == 0
        expected = merge(adapters, "core_space", [1.0, 1.0], inner=inner)
        found = Adapter.load(out)
        assert found.training["merge"]["inner"] == expected.variant["inner"]
        for module in expected.modules():
            torch.testing.assert_close(found.factors[module].delta(), expected.delta(module))


# The folder ---------------------------------------------------------------------------------------


def test_auto_peft_opens_the_result_and_it_is_the_merged_model(folder, mixed, tmp_path):
    from peft import AutoPeftModelForCausalLM

    merged(folder, tmp_path / "o", "--weights", "1,1,1")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "o").eval()
    base = tiny_gpt2()
    with torch.no_grad():
        for module in mixed[0]:
            base.get_submodule(module).weight.add_(sum(d[module] for d in mixed).T.float())
        tokens = torch.arange(8)[None]
        torch.testing.assert_close(model(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "o" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == str(folder / "gpt2")
    assert Adapter.load(tmp_path / "o").modules() == tuple(mixed[0])


def test_a_head_is_merged_with_the_same_weights(folder, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    paths = [folder / "b0", folder / "b1"]
    assert run(*paths, "--weights", "0.25,0.75", "--out", tmp_path / "o") == 0
    heads = [Adapter.load(path).head for path in (*paths, tmp_path / "o")]
    for name in ("weight", "bias"):
        torch.testing.assert_close(heads[2][name], 0.25 * heads[0][name] + 0.75 * heads[1][name])
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "o", num_labels=3)
    saved = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(saved.weight, heads[2]["weight"])


def test_a_head_that_one_lacks_is_refused_by_name_unless_left_out(folder, tmp_path, capsys):
    shutil.copytree(folder / "b1", tmp_path / "bare")
    weights = tmp_path / "bare" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "lora" in k}, weights)
    arguments = [folder / "b0", tmp_path / "bare", "--out", tmp_path / "o"]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "'classifier.bias', but 'b0' has it and 'bare' lacks it" in error
    assert run(*arguments, "--no-head") == 0
    assert not Adapter.load(tmp_path / "o").head


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_the_precision_is_that_of_the_adapters_or_as_asked_for(folder, tmp_path, name):
    dtype = getattr(torch, name)
    paths = [folder / "p0", folder / "p1"]
    assert run(*paths, "--dtype", name, "--out", tmp_path / "one") == 0
    again = tmp_path / "one"
    assert run(again, "--weights", "1", "--out", tmp_path / "two") == 0
    for out in (again, tmp_path / "two"):
        tensors = safetensors.torch.load_file(out / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_a_pickle_of_tensors_alone_is_read(folder, tmp_path):
    source, old = folder / "p0", tmp_path / "old"
    old.mkdir()
    (old / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = safetensors.torch.load_file(source / "adapter_model.safetensors")
    for zipped in (True, False):
        torch.save(tensors, old / "adapter_model.bin", _use_new_zipfile_serialization=zipped)
        out = tmp_path / f"o{zipped}"
        assert run(old, "--weights", "1", "--out", out) == 0
        assert relative(deltas(tiny_gpt2(), out), deltas(tiny_gpt2(), source)) < 1e-6


def test_only_what_is_asked_for_is_read(folder, monkeypatch):
    from cl_lora.adapters.tensor_file import LazyTensors

    read = []
    original = LazyTensors.__getitem__
    monkeypatch.setattr(
        LazyTensors, "__getitem__", lambda self, name: read.append(name) or original(self, name)
    )
    adapter = Adapter.open(folder / "m0")
    assert len(adapter.modules()) == 6
    assert not read
    module = adapter.modules()[2]
    eager = Adapter.load(folder / "m0").factors[module]
    read.clear()
    factors = adapter.factors[module]
    assert torch.equal(factors.A, eager.A)
    assert factors.scaling == eager.scaling
    assert len(read) == 2
    assert all(module in name for name in read)


# Recipes ------------------------------------------------------------------------------------------


def as_mergekit(
    stack: torch.Tensor, weights: list[float], density: list[float], normalize: bool
) -> torch.Tensor:
    """TIES as mergekit defines it, written again: weigh, elect by the sum, divide by weights."""
    tensors = stack.clone()
    for tensor, share in zip(tensors, density, strict=True):
        k = int(share * tensor.numel())
        tensor[tensor.abs() < tensor.abs().flatten().sort().values[-k]] = 0
    factor = torch.tensor(weights, dtype=stack.dtype)[:, None, None]
    weighted = tensors * factor
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    mask = weighted.sign() == sign
    divisor = (factor * mask).sum(0)
    divisor[divisor.abs() < 1e-8] = 1
    total = (weighted * mask).sum(0)
    return total / divisor if normalize else total


@pytest.mark.parametrize("normalize", [True, False])
def test_a_recipe_of_mergekit_is_computed_as_mergekit_does(folder, mixed, tmp_path, normalize):
    recipe = {
        "models": [
            {"model": str(folder / "gpt2")},
            {
                "model": str(folder / "m0"),
                "parameters": {
                    "weight": [0.2, 1.0],
                    "density": [{"filter": "mlp", "value": 0.5}, {"value": 0.9}],
                },
            },
            {
                "model": f"{folder / 'gpt2'}+{folder / 'm1'}",
                "parameters": {"weight": [{"filter": "*.attn.*", "value": 0.4}, {"value": -0.3}]},
            },
        ],
        "merge_method": "ties",
        "base_model": str(folder / "gpt2"),
        "parameters": {"normalize": normalize, "density": 0.6, "lambda": 1.5, "int8_mask": True},
        "dtype": "float32",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert run(path, "--dense", "--out", tmp_path / "o") == 0
    found = deltas(tiny_gpt2(), tmp_path / "o")
    for module in mixed[0]:
        attention, mlp = ".attn." in module, "mlp" in module
        weights = [0.2 if ".0." in module else 1.0, 0.4 if attention else -0.3]
        stack = torch.stack([d[module] for d in mixed[:2]])
        expected = 1.5 * as_mergekit(stack, weights, [0.5 if mlp else 0.9, 0.6], normalize)
        assert relative({"m": found[module]}, {"m": expected}) < 1e-5, module
    record = json.loads((tmp_path / "o" / "training.json").read_text())
    assert record["recipe"] == recipe
    assert record["merge"]["sign"] == "weighted"


def test_linear_divides_by_all_weights_the_own_of_the_base_too(folder, mixed, tmp_path):
    recipe = tmp_path / "linear.yml"
    recipe.write_text(
        f"""
models:
  - model: {folder}/gpt2
    parameters: {{weight: 1}}
  - model: {folder}/m0
    parameters: {{weight: 2}}
  - model: {folder}/m2
    parameters: {{weight: 1}}
merge_method: linear
base_model: {folder}/gpt2
"""
    )
    assert run(recipe, "--out", tmp_path / "o") == 0
    expected = {m: (2 * mixed[0][m] + mixed[2][m]) / 4 for m in mixed[0]}
    assert relative(deltas(tiny_gpt2(), tmp_path / "o"), expected) < 1e-6


def test_own_methods_and_options_are_recipes_too(folder, tmp_path):
    content = {
        "models": [{"model": str(folder / f"p{i}")} for i in range(2)],
        "merge_method": "magnitude_prune",
        "parameters": {"weight": 0.5, "space": "factors", "density": 0.4, "trim": "global"},
    }
    recipe = make_recipe(content)
    assert (recipe.method, recipe.space) == ("magnitude_prune", "factors")
    assert recipe.options == {"trim": "global"}
    assert recipe.options_at("x.0.weight", 0.0) == {"trim": "global", "density": 0.4}
    assert recipe.weights_at("x.0.weight", 0.0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": []}, "Recipes with 'slices'"),
        ({"tokenizer_source": "union"}, "'tokenizer_source'"),
        ({"merge_methods": "x"}, "did you mean 'merge_method'"),
        ({"merge_method": "slerp"}, "'slerp' is not computed here: it goes along a sphere"),
        ({"merge_method": "tie"}, "did you mean 'ties'"),
        ({"dtype": "fp16"}, "dtype of the recipe 'fp16'"),
        ({"models": []}, "to list models"),
        ({"models": [{"name": "x"}]}, "number 0"),
        ({"models": [{"model": "nowhere"}]}, "'nowhere' but there is none"),
        ({"parameters": {"weigth": 1}}, "did you mean 'weight'"),
        ({"parameters": {"weight": "a"}}, "weight of the recipe to be a number"),
        ({"parameters": {"weight": 1, "normalize": 3}}, "normalize of the recipe to be true"),
        ({"parameters": {"weight": 1, "rescale": True}}, "rescale: true"),
        ({"parameters": {}}, "Expected a weight of"),
        ({"parameters": {"weight": 1, "density": 2}}, "density"),
        ({"merge_method": "linear", "parameters": {"weight": 1, "normalize": False}}, "scales the"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused(folder, tmp_path, capsys, change, message):
    content = {
        "models": [{"model": str(folder / "p0")}, {"model": str(folder / "p1")}],
        "merge_method": "ties",
        "parameters": {"weight": 1},
        **change,
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    assert run(path, "--out", tmp_path / "o", "--dense") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_yaml_that_is_none_says_the_line(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("models:\n  - model: [a\nmerge_method: ties\n")
    assert run(tmp_path / "r.yaml", "--out", tmp_path / "o") == 2
    assert "not valid YAML, line 3" in capsys.readouterr().err


def test_numbers_by_pattern_and_by_layer():
    setting = parse_setting([{"filter": "mlp", "value": [0, 1, 0]}, {"value": 3}], "weight")
    assert setting.at("h.1.mlp.weight", 0.25) == 0.5
    assert setting.at("h.1.attn.weight", 0.25) == 3
    assert parse_setting([{"filter": "mlp", "value": 1}], "weight").at("h.attn", None) is None
    with pytest.raises(UserError, match=r"'score' has no number of a layer"):
        parse_setting([0, 1], "weight").at("score", None)
    names = ["encoder.block.0.q", "encoder.block.3.q", "decoder.block.1.q", "decoder.block.0.q"]
    assert list(depths(names).values()) == [0.0, 1.0, 1.0, 0.0]
    assert depths(["h.0.q"]) == {"h.0.q": 1.0}


def test_density_by_module_needs_modules_that_are_merged_apart(folder, tmp_path, capsys):
    content = {
        "models": [{"model": str(folder / f"p{i}")} for i in range(2)],
        "merge_method": "ties",
        "parameters": {
            "weight": 1,
            "trim": "global",
            "density": [{"filter": "mlp", "value": 0.5}, {"value": 1}],
        },
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    assert run(path, "--dense", "--out", tmp_path / "o") == 2
    assert "looks at all modules together" in capsys.readouterr().err


# Comparing ----------------------------------------------------------------------------------------


def test_a_comparison_is_what_the_geometry_says(folder, mixed, capsys):
    paths = [folder / f"m{i}" for i in range(3)]
    assert run(*paths, "--info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    adapters = [Adapter.load(path) for path in paths]
    for i, a in enumerate(adapters):
        about = found["adapters"][i]
        assert about["norm"] == pytest.approx(geometry.norm(a.factors), rel=1e-5)
        assert about["stable_rank"] == pytest.approx(geometry.stable_rank(a.factors), rel=1e-4)
        assert about["modules"] == 6
        for j, b in enumerate(adapters):
            cosine = geometry.cosine(a.factors, b.factors)
            overlap = geometry.subspace_overlap(a.factors, b.factors)
            assert found["cosine"][i][j] == pytest.approx(cosine, abs=1e-6)
            assert found["overlap"][i][j] == pytest.approx(overlap, abs=1e-6)
            predicted = overlap * (1 - cosine) / 2
            assert found["interference"][i][j] == pytest.approx(predicted, abs=1e-6)
            signs = [
                (mixed[i][m].sign() != mixed[j][m].sign()).double().mean().item() for m in mixed[0]
            ]
            sizes = [mixed[0][m].numel() for m in mixed[0]]
            expected = float(np.average(signs, weights=sizes))
            assert found["sign_conflicts"][i][j] == pytest.approx(expected, abs=2e-3)


def test_opposite_adapters_interfere_by_one_and_equal_ones_not_at_all(folder, tmp_path):
    assert run(folder / "p0", "--weights", "-1", "--out", tmp_path / "opposite") == 0
    paths = [folder / "p0", tmp_path / "opposite", folder / "p0"]
    found = compare(open_inputs(from_options(paths, "cat")))
    assert found.interference[0, 1] == pytest.approx(1, abs=1e-5)
    assert found.interference[0, 2] == pytest.approx(0, abs=1e-5)
    assert found.conflicts[0, 1] == pytest.approx(1, abs=1e-5)


# As a user runs it --------------------------------------------------------------------------------


def test_the_story_of_a_user(folder, tmp_path):
    paths = [str(folder / f"m{i}") for i in range(3)]
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*warm.python(), "-m", "cl_lora", "merge", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )

    asked = command(*paths, "--method", "ties", "--out", "o")
    assert asked.returncode == 2
    assert "give --rank R" in asked.stderr
    assert "--dense" in asked.stderr
    done = command(*paths, "--method", "ties", "--weights", "-1,1,1", "--rank", "2", "--out", "o")
    assert done.returncode == 0, done.stderr
    assert "relative error" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]


@pytest.mark.parametrize("n", [3, 18])
def test_a_comparison_fits_80_columns(folder, n, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(*[folder / f"m{i % 3}" for i in range(n)], "--info") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "Predicted interference" in printed
