"""Configs: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from cl_lora.benchmarks import KINDS, found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.config import benchmark_kind, read_config
from cl_lora.support.errors import UserError

GROUP = Path(__file__).parents[2] / "configs" / "benchmark"
FILES = sorted(GROUP.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_file_fits_its_kind_and_comments_every_key(file, tmp_path):
    config = yaml.safe_load(file.read_text())
    settings = set(KINDS[config["kind"]].__dataclass_fields__)
    assert set(config) == {"kind"} | settings
    assert all("#" in line for line in file.read_text().splitlines())
    for name in ("root", "path"):
        if name in config:
            elsewhere = config["kind"] in ("multitask", "few_shot_language")  # drawn, or on the hub
            optional = config.get("images") == "shapes" or elsewhere
            assert config[name] == (None if optional else "???")
            drawn = not any("root" in task for task in config.get("tasks", {"": "root"}).values())
            config[name] = None if drawn else str(tmp_path)
    if config.get("downstream") == "???":
        config["downstream"] = "sketch"
    typed = read_config(config)
    chosen = {"name", "root", "path", "domains", "images", "options", "tasks"}
    if config["kind"] == "multitask":
        chosen |= {"samples_per_class", "test_samples_per_class"}
    for field in dataclasses.fields(KINDS[config["kind"]]):
        value = getattr(typed, field.name)
        if field.name not in chosen and field.default is not dataclasses.MISSING:
            assert value == field.default


def test_the_expected_config_files_are_there():
    domains = {"shapes", "pacs", "office_home", "domains", "hub"}
    streams = (
        "label",
        "cifar100",
        "label_shapes",
        "entangled",
        "covariate",
        "covariate_shapes",
        "task",
    )
    few_shot = {f"few_shot_{name}" for name in (*streams, "language")}
    multitask = {"multitask_shapes", "multitask_faces_and_sky", "task_folders"}
    multitask |= {"reuse_shapes", "reuse_eight"}
    growing = {"class_incremental", "class_incremental_shapes"}
    assert {file.stem for file in FILES} == domains | few_shot | multitask | growing
    order = yaml.safe_load((GROUP / "pacs.yaml").read_text())["domains"]
    assert order == ["photo", "art_painting", "cartoon", "sketch"]
    order = yaml.safe_load((GROUP / "office_home.yaml").read_text())["domains"]
    assert order == ["Art", "Clipart", "Product", "Real World"]


@pytest.mark.parametrize("value", ["???", None])
@pytest.mark.parametrize(("kind", "name"), [("domains", "root=DIR"), ("hub", "path=NAME")])
def test_required_setting_that_is_not_given(kind, name, value):
    config = {"kind": kind, name.split("=")[0]: value}
    with pytest.raises(UserError, match=f"not given; add benchmark.{name}"):
        validate_benchmark_config(config)
    assert found(config) is None
    assert found({"kind": kind}) is None


def test_unknown_kind_and_setting():
    with pytest.raises(UserError, match=r"Unknown benchmark.kind 'shape': did you mean 'shapes'"):
        make_benchmark({"kind": "shape"}, 16)
    with pytest.raises(UserError, match=r"Unknown benchmark.kind 'None'"):
        make_benchmark({}, 16)
    with pytest.raises(UserError, match="'split_sed': did you mean 'split_seed'"):
        make_benchmark({"kind": "shapes", "split_sed": 1}, 16)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("domains", "test_fraction", 0),
        ("domains", "test_fraction", 1.0),
        ("domains", "test_fraction", "a"),
        ("domains", "test_fraction", True),
        ("domains", "val_fraction", -0.1),
        ("domains", "val_fraction", 1.0),
        ("domains", "val_fraction", float("nan")),
        ("domains", "val_fraction", "a"),
        ("hub", "val_fraction", 1.5),
        ("shapes", "val_fraction", 1.0),
        ("shapes", "val_fraction", None),
        ("domains", "split_seed", -1),
        ("domains", "split_seed", None),
        ("domains", "samples_per_class", 0),
        ("domains", "test_samples_per_class", 2.5),
        ("domains", "domains", "photo"),
        ("domains", "domains", []),
        ("domains", "domains", ["photo", "photo"]),
        ("domains", "root", 3),
        ("domains", "split_lists", 3),
        ("domains", "cache_dir", ""),
        ("domains", "name", ""),
        ("hub", "image_column", None),
        ("hub", "split", ""),
        ("hub", "config_name", 1),
        ("shapes", "classes", 0),
        ("shapes", "classes", True),
        ("shapes", "samples_per_class", None),
        ("shapes", "test_samples_per_class", 0),
        ("shapes", "first_class", -1),
        ("shapes", "styles", None),
        ("shapes", "styles", []),
    ],
)
def test_bad_value_is_refused_with_name_and_value(kind, name, value):
    base = {"domains": {"root": "x"}, "hub": {"path": "x"}, "shapes": {}}[kind]
    with pytest.raises(UserError) as caught:
        read_config({"kind": kind, **base, name: value})
    assert f"benchmark.{name}" in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("size", [0, -3, 2.0])
def test_image_size_must_be_a_positive_integer(size):
    with pytest.raises(UserError, match="image_size"):
        make_benchmark({"kind": "shapes"}, size)


def test_a_name_in_a_list_that_is_no_text():
    with pytest.raises(UserError, match=r"benchmark.styles\[1\] to be a text but got 1"):
        read_config({"kind": "shapes", "styles": ["photo", 1]})


def test_a_kind_that_is_taken_is_an_error():
    before = dict(KINDS)
    with pytest.raises(UserError, match=r"'shapes' is registered already, by .*ShapesConfig"):
        benchmark_kind("shapes")(KINDS["hub"])
    assert before == KINDS


def test_paths_may_be_path_objects(tmp_path):
    assert read_config({"kind": "domains", "root": tmp_path}).root == str(tmp_path)
