"""Data sets read by Hugging Face datasets, from local files."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from benchmark_views import classes_of, held_out_of, images_of, labels_of, train_of, val_of
from PIL import Image

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.support.errors import UserError

COUNT = 4  # images per class and domain


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch, cache):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(**replaced: list) -> dict[str, list]:
    count = 4 * COUNT
    columns = {
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "label": [i % 2 for i in range(count)],
        "domain": ["sketch" if i < 2 * COUNT else "photo" for i in range(count)],
    }
    return columns | replaced


def parquet(folder: Path, columns: dict[str, list], names: bool = True) -> dict[str, str]:
    label = datasets.ClassLabel(names=["dog", "cat"]) if names else datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "label": label, "domain": datasets.Value("string")}
    )
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    return {"kind": "hub", "path": str(folder), "test_fraction": 0.25}


def test_parquet_with_class_labels(tmp_path, no_decoding):
    config = parquet(tmp_path / "set", rows())
    validate_benchmark_config(config)
    data = make_benchmark(config, 8)
    assert classes_of(data) == ("dog", "cat")
    assert data.names == ("photo", "sketch")
    np.testing.assert_array_equal(images_of(data)[:, 4, 4, 0], np.arange(4 * COUNT))
    np.testing.assert_array_equal(labels_of(data), np.arange(4 * COUNT) % 2)
    assert sorted([*train_of(data)[0], *held_out_of(data)[0]]) == list(range(2 * COUNT, 4 * COUNT))
    assert [len(test) for test in held_out_of(data)] == [2, 2]
    no_decoding()
    assert make_benchmark(config, 8).fingerprint == data.fingerprint
    assert found(config) == config["path"]


def test_one_domain_in_the_order_asked_and_with_string_labels(tmp_path):
    labels = [("fox", "ape")[i % 2] for i in range(4 * COUNT)]
    config = parquet(tmp_path / "set", rows(label=labels), names=False)
    data = make_benchmark({**config, "domains": ["sketch"]}, 8)
    assert classes_of(data) == ("ape", "fox")
    assert data.names == ("sketch",)
    assert images_of(data).shape == (2 * COUNT, 8, 8, 3)
    assert labels_of(data)[0] == 1


def test_validation_part(tmp_path):
    config = parquet(tmp_path / "set", rows())
    data = make_benchmark({**config, "val_fraction": 0.5}, 8)
    assert [len(train) for train in train_of(data)] == [4 * COUNT // 2 - 2 - 4] * 2
    assert [np.bincount(labels_of(data)[val]).tolist() for val in val_of(data)] == [[2, 2]] * 2


def test_image_folder_with_metadata(tree):
    root = tree(domains=("one",), classes=("all",), count=16)
    lines = [
        f"one/all/{i}.png,{('cat', 'dog')[i % 2]},{'sketch' if i < 8 else 'photo'}"
        for i in range(16)
    ]
    (root / "metadata.csv").write_text("\n".join(["file_name,kind,style", *lines]) + "\n")
    config = {
        "kind": "hub",
        "path": str(root),
        "label_column": "kind",
        "domain_column": "style",
    }
    data = make_benchmark(config, 8)
    assert classes_of(data) == ("cat", "dog")
    assert np.bincount(labels_of(data)).tolist() == [8, 8]
    assert len(images_of(data)) == 16


def test_changed_pixel_is_another_fingerprint(tmp_path):
    first = make_benchmark(parquet(tmp_path / "a", rows()), 8)
    images = rows()["image"]
    images[3] = {"bytes": png(200), "path": None}
    second = make_benchmark(parquet(tmp_path / "b", rows(image=images)), 8)
    assert first.fingerprint != second.fingerprint
    assert images_of(second)[3, 0, 0, 0] == 200


def test_unreadable_images_are_all_named(tmp_path):
    images = rows()["image"]
    images[2] = {"bytes": b"broken", "path": None}
    images[5] = None
    config = parquet(tmp_path / "set", rows(image=images))
    with pytest.raises(UserError, match=r"2 of 16 images: row 2 .*; row 5 \(no image\)"):
        make_benchmark(config, 8)


@pytest.mark.parametrize("column", ["image_column", "label_column", "domain_column"])
def test_unknown_column_names_the_nearest(tmp_path, column):
    config = parquet(tmp_path / "set", rows())
    name = column.split("_")[0]
    with pytest.raises(UserError, match=f"Unknown column .* '{name}s': did you mean '{name}'"):
        validate_benchmark_config({**config, column: f"{name}s"})


def test_column_without_images(tmp_path):
    config = parquet(tmp_path / "set", rows())
    with pytest.raises(UserError, match="to hold images but it holds"):
        validate_benchmark_config({**config, "image_column": "label"})


def test_unknown_domain_missing_class_and_missing_value(tmp_path):
    config = parquet(tmp_path / "a", rows())
    with pytest.raises(UserError, match="'foto': did you mean 'photo'"):
        validate_benchmark_config({**config, "domains": ["foto"]})
    labels = [0 if i < 2 * COUNT else i % 2 for i in range(4 * COUNT)]
    with pytest.raises(UserError, match="class 'cat' is missing in 'sketch'"):
        validate_benchmark_config(parquet(tmp_path / "b", rows(label=labels)))
    labels[1] = None
    with pytest.raises(UserError, match="column 'label' of every row but got none in row 1"):
        validate_benchmark_config(parquet(tmp_path / "c", rows(label=labels)))


def test_data_set_that_cannot_be_loaded(tmp_path):
    config = parquet(tmp_path / "set", rows())
    with pytest.raises(UserError, match=r"Cannot load .* check path, config_name and split"):
        validate_benchmark_config({**config, "split": "nothing"})
    absent = {"kind": "hub", "path": "nobody/nothing-of-that-name"}
    with pytest.raises(UserError, match=r"Cannot load benchmark.path=nobody/nothing-of-that-name"):
        validate_benchmark_config(absent)
    assert found(absent) is None


def test_found_in_the_download_cache(tmp_path):
    (tmp_path / "hf" / "someone___pictures").mkdir(parents=True)
    assert "downloaded to" in str(found({"kind": "hub", "path": "someone/pictures"}))


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_datasets(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(UserError, match=r"pip install 'cl-lora\[hub\]'"):
        validate_benchmark_config({"kind": "hub", "path": str(tmp_path)})


# The same as an image set, for streams that are cut from one ------------------------------------


def test_a_data_set_of_the_hub_is_an_image_set(tmp_path):
    labels = ["abcd"[i % 4] for i in range(4 * COUNT)]
    folder = parquet(tmp_path / "set", rows(label=labels), names=False)["path"]
    config = {"kind": "class_incremental", "images": "hub", "groups": 2, "test_fraction": 0.25}
    config["order_seed"] = None
    config["options"] = {"path": folder}
    validate_benchmark_config(config)
    data = make_benchmark(config, 8)
    assert classes_of(data) == ("a", "b", "c", "d")
    np.testing.assert_array_equal(images_of(data)[:, 4, 4, 0], np.arange(4 * COUNT))
    np.testing.assert_array_equal(labels_of(data), np.arange(4 * COUNT) % 4)
    assert [len(test) for test in held_out_of(data)] == [2, 2]
    (tmp_path / "set" / "test.parquet").write_bytes(
        (tmp_path / "set" / "train.parquet").read_bytes()
    )
    config["options"] = {"path": folder, "test_split": "test"}
    data = make_benchmark(config, 8)
    assert [len(train) for train in train_of(data)] == [8, 8]
    assert sorted(np.concatenate(held_out_of(data))) == list(range(16, 32))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Expected benchmark.options.path"),
        ({"path": "SET", "label_column": "lable"}, "'lable'"),
        ({"path": "SET", "test_split": "exam"}, "Cannot load"),
    ],
)
def test_a_wrong_option_of_the_image_set(tmp_path, options, sentence):
    folder = parquet(tmp_path / "set", rows())["path"]
    given = {k: folder if v == "SET" else v for k, v in options.items()}
    with pytest.raises(UserError, match=sentence):
        validate_benchmark_config(
            {"kind": "class_incremental", "images": "hub", "groups": 2, "options": given}
        )


def test_names_that_cannot_be_shown_are_refused(tmp_path):
    domains = ["a\x1b[31m" if i < 2 * COUNT else "photo" for i in range(4 * COUNT)]
    config = parquet(tmp_path / "set", rows(domain=domains))
    with pytest.raises(UserError, match="values of column 'domain' to have printable names"):
        validate_benchmark_config(config)


def test_a_row_that_names_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    images = [{"bytes": png(i), "path": None} for i in range(4 * COUNT)]
    images[3] = {"bytes": None, "path": str(tmp_path / "pipe.png")}
    config = parquet(tmp_path / "set", rows(image=images))
    with pytest.raises(UserError, match=r"1 of 16 images: .*\(not a regular file\)"):
        make_benchmark(config, 8)
