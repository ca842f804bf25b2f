"""What makes two runs the same: where things lie never does, what changes numbers always does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from whole_runs import rows, run_tree, stamps

from cl_lora.adapters.injection import split_qkv
from cl_lora.experiment import pipeline
from cl_lora.experiment.settings import Settings
from cl_lora.experiment.stages import PROTOCOLS, prefixes, register_protocol
from cl_lora.models.backbones import Backbone
from cl_lora.run_folder.identity import first_difference, require_same
from cl_lora.support.errors import UserError

OTHER_DATA = "The data changed since .* was begun; use a new run_dir"
OTHER_WEIGHTS = "The backbone's weights changed since .* was begun; use a new run_dir"


def write_tree(root: Path) -> Path:
    """Write two domains of two classes of five images."""
    for d, domain in enumerate(("one", "two")):
        for c, name in enumerate(("cat", "dog")):
            (root / domain / name).mkdir(parents=True)
            for i in range(5):
                image = Image.new("RGB", (16, 16), (40 * i, 120 * c, 120 * d))
                image.save(root / domain / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tree, a checkpoint and the finished run of both, in a folder that it named itself."""
    place = tmp_path_factory.mktemp("identity")
    tree = write_tree(place / "tree")
    checkpoint = shutil.copy(embedded(), place / "weights.safetensors")
    folder = run_tree(tree, f"model.checkpoint={checkpoint}", f"runs_root={place / 'runs'}")
    return tree, checkpoint, folder


def embedded() -> Path:
    return Path(str(files("cl_lora.models") / "embedded" / "backbone.safetensors"))


def same_run(folder: Path, root: Path | str, *more: str) -> None:
    """Check that a command goes on in the folder and finds all of it done."""
    before, scores = stamps(folder), rows(folder)
    assert run_tree(root, f"runs_root={folder.parent}", *more).resolve() == folder.resolve()
    assert run_tree(root, f"run_dir={folder}", *more) == folder
    assert stamps(folder) == before
    assert rows(folder) == scores


# The same --------------------------------------------------------------------------------------


def test_another_spelling_of_the_root_is_the_same_run(
    begun: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, checkpoint, folder = begun
    monkeypatch.chdir(tree.parent)
    for root in ("tree", "./tree", f"{tree}/", f"{tree.parent}/runs/../tree"):
        same_run(folder, root, f"model.checkpoint={checkpoint}")


def test_a_moved_tree_and_another_cache_are_the_same_run(
    begun: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    tree, checkpoint, folder = begun
    moved = shutil.copytree(tree, tmp_path / "moved")
    cache = f"benchmark.cache_dir={tmp_path / 'cache'}"
    same_run(folder, moved, cache, f"model.checkpoint={checkpoint}")


def test_equal_weights_elsewhere_are_the_same_run(
    begun: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Another place, another file format, or the weights of the package itself."""
    tree, _, folder = begun
    copy = shutil.copy(embedded(), tmp_path / "other.safetensors")
    pickled = tmp_path / "weights.pth"
    torch.save(safetensors.torch.load_file(embedded()), pickled)
    for checkpoint in (copy, pickled, "null"):
        same_run(folder, tree, f"model.checkpoint={checkpoint}")


@pytest.mark.parametrize(
    "option",
    ["eval_batch_size=64", "threads=1", "spc=3", "buffer_batch_size=7", "references=[last]"],
)
def test_what_changes_no_adapter_is_the_same_run(
    begun: tuple[Path, Path, Path], tmp_path: Path, option: str
) -> None:
    tree, checkpoint, folder = begun
    copy = shutil.copytree(folder, tmp_path / folder.name)
    before = stamps(copy)
    given = (f"model.checkpoint={checkpoint}", option)
    assert run_tree(tree, f"runs_root={copy.parent}", *given) == copy
    assert stamps(copy) == before


# A later version -------------------------------------------------------------------------------


def test_an_option_that_came_later_changes_no_folder(
    begun: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """An older folder says nothing of it: what it means there is its default."""
    tree, _, folder = begun
    copy = shutil.copytree(folder, tmp_path / folder.name)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for option in ("warmup", "rslora"):
        del config["identity"]["strategy"][option]
    del config["digest"]  # nor does it know one
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    same_run(copy, tree)
    # It is no wild card.
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"strategy\.warmup is 0\.1 there and 0\.3 here"):
        run_tree(tree, f"run_dir={copy}", "strategy.warmup=0.3")


def test_the_name_leaves_out_what_is_at_its_default(begun: tuple[Path, Path, Path]) -> None:
    """Spelled out or not, known to this version or not."""
    tree, _, folder = begun
    settings: list[Settings] = []
    original = pipeline.check
    identity = yaml.safe_load((folder / "config.yaml").read_text())["identity"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "check", lambda raw: settings.append(original(raw)) or settings[-1])
        run_tree(tree, f"runs_root={folder.parent}")
    name = settings[0].folder(identity).name
    assert name == folder.name
    older = {k: v for k, v in identity["strategy"].items() if k not in ("warmup", "rslora")}
    assert settings[0].folder({**identity, "strategy": older}).name == name
    for option, value in (("warmup", 0.3), ("lr", 0.5), ("rslora", True)):
        other = {**identity, "strategy": {**identity["strategy"], option: value}}
        assert settings[0].folder(other).name != name


# Another ---------------------------------------------------------------------------------------


@pytest.fixture
def double() -> Any:
    """A second protocol of the same stages."""
    register_protocol("again", summary="prefixes again", ordered=True)(prefixes)
    yield
    del PROTOCOLS["again"]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("strategy.lr=0.5", r"strategy\.lr is 0\.002 there and 0\.5 here"),
        ("strategy.epochs=2", r"strategy\.epochs is 1 there and 2 here"),
        ("strategy.targets=[q,v]", r"strategy\.targets"),
        ("strategy.head=frozen", r"strategy\.head is 'shared' there and 'frozen' here"),
        ("precision=bf16", "precision is 'fp32' there and 'bf16' here"),
        ("protocol=again", "protocol is 'prefixes' there and 'again' here"),
        ("benchmark.split_seed=1", OTHER_DATA),
        ("benchmark.domains=[two,one]", OTHER_DATA),
        ("model.mean=[0.1,0.2,0.3]", OTHER_WEIGHTS),
    ],
)
def test_what_changes_numbers_is_another_run(
    begun: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    """Refused in a folder that is named, and never the same folder where it is not."""
    tree, _, folder = begun
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        run_tree(tree, f"run_dir={folder}", option)
    assert "\n" not in str(caught.value)
    assert (folder / "config.yaml").read_bytes() == before
    # Left to itself it would run elsewhere; nothing is trained here to see it.
    monkeypatch.setattr(pipeline, "locked", stop)
    with pytest.raises(_StoppedError) as stopped:
        run_tree(tree, f"runs_root={folder.parent}", option)
    assert stopped.value.args[0] != folder


class _StoppedError(Exception):
    """Raised where a run would begin to write, with the folder."""


def stop(folder: Path) -> None:
    raise _StoppedError(folder)


def test_changed_data_are_refused(begun: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tree, _, folder = begun
    changed = shutil.copytree(tree, tmp_path / "tree")
    Image.new("RGB", (16, 16), (1, 2, 3)).save(changed / "two" / "dog" / "4.png")
    with pytest.raises(UserError, match=OTHER_DATA):
        run_tree(changed, f"run_dir={folder}")


def test_changed_weights_are_refused(begun: tuple[Path, Path, Path], tmp_path: Path) -> None:
    tree, _, folder = begun
    weights = safetensors.torch.load_file(embedded())
    name = next(k for k in weights if k.endswith("qkv.weight"))
    weights[name][0, 0] += 1
    path = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(weights, path)
    with pytest.raises(UserError, match=OTHER_WEIGHTS):
        run_tree(tree, f"run_dir={folder}", f"model.checkpoint={path}")


def test_samples_of_the_reference_rows_heads_count(tmp_path: Path) -> None:
    """With prototypes they are made of spc samples; with a trained head spc is an arm's."""
    tree = write_tree(tmp_path / "tree")
    folder = run_tree(tree, f"run_dir={tmp_path / 'run'}", "strategy.head=prototypes", "spc=2")
    with pytest.raises(UserError, match="spc is 2 there and 3 here"):
        run_tree(tree, f"run_dir={folder}", "strategy.head=prototypes", "spc=3")


# The pieces ------------------------------------------------------------------------------------


def test_fingerprint_of_split_attention_is_that_of_the_fused(
    make_backbone: Callable[[], Backbone],
) -> None:
    fused, split = make_backbone(), make_backbone()
    split_qkv(split.network)
    assert {k for k in split.network.state_dict() if ".qkv.q." in k}
    assert split.fingerprint() == fused.fingerprint()
    with torch.no_grad():
        split.network.blocks[1].attn.qkv.k.weight[0, 0] += 1
    assert split.fingerprint() != fused.fingerprint()


@pytest.mark.parametrize("weight", ["blocks.0.mlp.fc2.bias", "pos_embed", "norm.weight"])
def test_fingerprint_changes_with_any_weight(
    make_backbone: Callable[[], Backbone], weight: str
) -> None:
    one, other = make_backbone(), make_backbone()
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.network.get_parameter(weight).view(-1)[0] += 1e-3
    assert one.fingerprint() != other.fingerprint()


def test_swapped_parts_of_attention_are_other_weights(
    make_backbone: Callable[[], Backbone],
) -> None:
    one, other = make_backbone(), make_backbone()
    split_qkv(other.network)
    qkv = other.network.blocks[0].attn.qkv
    qkv.q, qkv.k = qkv.k, qkv.q
    assert one.fingerprint() != other.fingerprint()


def test_first_difference_names_the_dotted_key() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({}, {"x": 1}) == ("x", None, 1)
    assert first_difference({"x": 1}, {}) == ("x", 1, None)
    assert first_difference({"a": {"b": 1}}, {"a": 2}) == ("a", {"b": 1}, 2)


def test_an_unknown_part_of_an_identity_is_a_difference(tmp_path: Path) -> None:
    """A folder of a later version may depend on what this one does not know."""
    here = {"data": "x", "strategy": {"lr": 1}}
    require_same(tmp_path, here, here, {})
    for there in (
        {**here, "rotation": 90},
        {**here, "strategy": {"lr": 1, "rotation": 90}},
    ):
        with pytest.raises(UserError, match=r"rotation is 90 there and None here"):
            require_same(tmp_path, there, here, {})


def test_identity_names_no_place(begun: tuple[Path, Path, Path]) -> None:
    tree, checkpoint, folder = begun
    identity = yaml.safe_load((folder / "config.yaml").read_text())["identity"]
    text = str(identity)
    assert set(identity) == {"data", "backbone", "strategy", "protocol", "precision", "device"}
    assert str(tree.parent) not in text
    assert os.sep not in text.replace("'", "")
    assert Path(checkpoint).name not in text
