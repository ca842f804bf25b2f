"""Image trees: what is read, how it is split, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmark_views import classes_of, held_out_of, images_of, labels_of, train_of, val_of
from PIL import Image

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.support.errors import UserError


def lists(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_loads_every_image_once_with_label_and_domain(folder_config):
    data = make_benchmark(folder_config, 8)
    assert classes_of(data) == ("cat", "dog")
    assert data.names == ("photo", "sketch")
    assert images_of(data).shape == (20, 8, 8, 3)
    assert np.bincount(labels_of(data)).tolist() == [10, 10]
    parts = [*train_of(data), *held_out_of(data)]
    assert sorted(np.concatenate(parts)) == list(range(20))
    for train, test in zip(train_of(data), held_out_of(data), strict=True):
        assert np.bincount(labels_of(data)[train]).tolist() == [4, 4]
        assert np.bincount(labels_of(data)[test]).tolist() == [1, 1]
    # The writer of the tree gives image n (from 1) in path order red = n.
    np.testing.assert_array_equal(images_of(data)[:, 4, 4, 0], np.arange(1, 21))
    assert not data.annotations


def test_extensions_in_any_case_are_images_and_all_else_is_not(folder_config):
    folder = Path(folder_config["root"]) / "photo" / "cat"
    image = Image.new("RGB", (8, 8))
    for name in ("a.JPG", "b.Jpeg", "c.PNG"):
        image.save(folder / name)
    (folder / "notes.txt").write_text("")
    (folder / ".hidden.png").write_text("")
    (folder.parent / ".DS_Store").mkdir()
    assert len(images_of(make_benchmark(folder_config, 8))) == 23


def test_domain_order_changes_the_stream_and_the_fingerprint_but_no_split_and_no_pixel(
    folder_config, no_decoding
):
    data = make_benchmark(folder_config, 8)
    no_decoding()
    swapped = make_benchmark({**folder_config, "domains": ["sketch", "photo"]}, 8)
    assert swapped.names == ("sketch", "photo")
    np.testing.assert_array_equal(train_of(swapped)[0], train_of(data)[1])
    assert swapped.fingerprint != data.fingerprint


def test_touched_files_are_not_decoded_again(folder_config, cache, no_decoding):
    data = make_benchmark(folder_config, 8)
    (file,) = cache.iterdir()
    before = file.stat()
    for path in Path(folder_config["root"]).rglob("*.png"):
        os.utime(path, (1, 1))
    no_decoding()
    again = make_benchmark(folder_config, 8)
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(images_of(again), images_of(data))


def test_moved_tree_is_not_decoded_again(folder_config, tmp_path, no_decoding):
    data = make_benchmark(folder_config, 8)
    shutil.move(folder_config["root"], tmp_path / "elsewhere")
    no_decoding()
    moved = make_benchmark({**folder_config, "root": str(tmp_path / "elsewhere")}, 8)
    assert moved.fingerprint == data.fingerprint


def test_changed_byte_or_size_is_decoded_again(folder_config, cache):
    data = make_benchmark(folder_config, 8)
    larger = make_benchmark(folder_config, 9)
    assert images_of(larger).shape == (20, 9, 9, 3)
    path = Path(folder_config["root"]) / "sketch" / "dog" / "4.png"
    times = path.stat()
    Image.new("RGB", (12, 10), (255, 254, 253)).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = make_benchmark(folder_config, 8)
    assert images_of(changed)[19, 0, 0].tolist() == [255, 254, 253]
    assert len({data.fingerprint, larger.fingerprint, changed.fingerprint}) == 3
    assert len(list(cache.iterdir())) == 3


def test_split_seed_and_caps_need_no_new_decoding(folder_config, no_decoding):
    data = make_benchmark(folder_config, 8)
    no_decoding()
    other = make_benchmark({**folder_config, "split_seed": 1}, 8)
    assert other.fingerprint != data.fingerprint
    capped = make_benchmark({**folder_config, "samples_per_class": 2, "test_fraction": 0.4}, 8)
    assert [np.bincount(labels_of(capped)[t]).tolist() for t in train_of(capped)] == [
        [2, 2],
        [2, 2],
    ]
    assert [np.bincount(labels_of(capped)[t]).tolist() for t in held_out_of(capped)] == [
        [2, 2],
        [2, 2],
    ]


def test_validation_part_leaves_the_rest_as_it_is(folder_config, no_decoding):
    data = make_benchmark(folder_config, 8)
    assert [len(val) for val in val_of(data)] == [0, 0]
    no_decoding()
    assert make_benchmark({**folder_config, "val_fraction": 0}, 8).fingerprint == data.fingerprint
    other = make_benchmark({**folder_config, "val_fraction": 0.25}, 8)
    assert other.fingerprint != data.fingerprint
    for number in range(2):
        train, val = train_of(other)[number], val_of(other)[number]
        assert np.bincount(labels_of(other)[val]).tolist() == [1, 1]
        assert sorted([*train, *val]) == train_of(data)[number].tolist()
        np.testing.assert_array_equal(held_out_of(other)[number], held_out_of(data)[number])


def test_missing_root(folder_config):
    with pytest.raises(UserError, match=r"does not exist; give benchmark.root=DIR"):
        validate_benchmark_config({**folder_config, "root": folder_config["root"] + "x"})
    assert found({**folder_config, "root": folder_config["root"] + "x"}) is None


def test_root_that_is_a_file_or_empty(folder_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="which is a file"):
        validate_benchmark_config({**folder_config, "root": str(tmp_path / "file")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no folder"):
        validate_benchmark_config({**folder_config, "root": str(tmp_path / "empty")})


def test_root_one_level_too_deep_has_no_class_folders(folder_config):
    root = Path(folder_config["root"]) / "photo"
    with pytest.raises(UserError, match="no domain has a class folder"):
        validate_benchmark_config({**folder_config, "root": str(root)})


def test_unknown_domain_names_the_nearest(folder_config):
    with pytest.raises(UserError, match=r"Unknown domain .* 'foto': did you mean 'photo'"):
        validate_benchmark_config({**folder_config, "domains": ["sketch", "foto"]})


def test_class_too_few_too_many_and_empty_are_all_named_at_once(tree, cache):
    root = tree(domains=("art", "photo", "sketch"))
    shutil.rmtree(root / "sketch" / "dog")
    shutil.copytree(root / "photo" / "dog", root / "photo" / "wolf")
    for path in (root / "art" / "cat").iterdir():
        path.unlink()
    with pytest.raises(UserError) as caught:
        make_benchmark({"kind": "domains", "root": str(root)}, 8)
    message = str(caught.value)
    assert "class 'dog' is missing in 'sketch'" in message
    assert "class 'wolf' is only in 'photo'" in message
    assert "class 'cat' of domain 'art' has no image" in message


def test_incomplete_domain_that_is_not_chosen_does_not_matter(tree, cache):
    root = tree(domains=("art", "photo"))
    (root / "broken").mkdir()
    config = {"kind": "domains", "root": str(root), "domains": ["photo", "art"]}
    assert make_benchmark(config, 8).names == ("photo", "art")


def test_all_unreadable_images_are_named(folder_config, cache):
    root = Path(folder_config["root"])
    bad = [root / "photo" / "cat" / "3.png", root / "sketch" / "dog" / "0.png"]
    bad[0].write_bytes(b"not an image")
    bad[1].write_bytes(bad[1].read_bytes()[:40])
    (root / "sketch" / "cat" / "link.png").symlink_to(root / "nowhere.png")
    validate_benchmark_config(folder_config)  # decodes nothing
    with pytest.raises(UserError, match="Cannot read 3 of 21 images") as caught:
        make_benchmark(folder_config, 8)
    for path in (*bad, root / "sketch" / "cat" / "link.png"):
        assert str(path) in str(caught.value)
    assert list(cache.iterdir()) == []


def test_class_with_a_single_image_cannot_be_split(folder_config):
    for path in (Path(folder_config["root"]) / "photo" / "cat").glob("[1-9].png"):
        path.unlink()
    with pytest.raises(UserError, match="class 'cat' in domain 'photo'"):
        validate_benchmark_config(folder_config)


def full_lists(suffixes: tuple[str, str] = ("_train", "_test")) -> dict[str, list[str]]:
    files = {}
    for domain in ("photo", "sketch"):
        paths = [
            f"{domain}/{name}/{i}.png {label}"
            for label, name in enumerate(("cat", "dog"))
            for i in range(5)
        ]
        files[domain + suffixes[0]] = [*paths[:3], "", *paths[5:8]]
        files[domain + suffixes[1]] = [paths[4], paths[9].rsplit(" ", 1)[0]]
    return files


@pytest.mark.parametrize(
    "suffixes",
    [("_train", "_test"), ("_train_kfold", "_crossval_kfold"), ("_train_kfold", "_test_kfold")],
)
def test_split_from_lists(folder_config, tmp_path, suffixes):
    folder = lists(tmp_path / "lists", **full_lists(suffixes))
    data = make_benchmark({**folder_config, "split_lists": str(folder)}, 8)
    assert [train.tolist() for train in train_of(data)] == [
        [0, 1, 2, 5, 6, 7],
        [10, 11, 12, 15, 16, 17],
    ]
    assert [test.tolist() for test in held_out_of(data)] == [[4, 9], [14, 19]]


def test_lists_may_lie_in_the_root_and_name_folders_with_spaces(tree, cache):
    root = tree(domains=("Real World",))
    names = [f"Real World/{c}/{i}.png" for c in ("cat", "dog") for i in range(5)]
    files = {"Real World_train": names[1::2], "Real World_test": [n + " 3" for n in names[::2]]}
    folder = lists(root / "splits", **files)
    data = make_benchmark({"kind": "domains", "root": str(root), "split_lists": str(folder)}, 8)
    assert data.names == ("Real World",)
    assert held_out_of(data)[0].tolist() == [0, 2, 4, 6, 8]


def test_bad_lines_in_lists_are_all_named(folder_config, tmp_path):
    files = full_lists()
    files["photo_train"][0] = "photo/cat/nothing.png 0"
    files["photo_test"].append("sketch/cat/0.png 0")
    files["sketch_test"].append("sketch/cat/1.png 0")
    folder = lists(tmp_path / "lists", **files)
    with pytest.raises(UserError) as caught:
        validate_benchmark_config({**folder_config, "split_lists": str(folder)})
    message = str(caught.value)
    assert "photo_train.txt line 1: no image 'photo/cat/nothing.png'" in message
    assert "photo_test.txt line 3: no image 'sketch/cat/0.png' in domain 'photo'" in message
    assert "sketch/cat/1.png is in both lists" in message


def test_missing_list_and_class_missing_in_a_list(folder_config, tmp_path):
    files = full_lists()
    files["photo_test"] = files["photo_test"][:1]
    folder = lists(tmp_path / "lists", **files)
    config = {**folder_config, "split_lists": str(folder)}
    with pytest.raises(UserError, match="test sample of every class in domain 'photo'"):
        validate_benchmark_config(config)
    (folder / "sketch_test.txt").unlink()
    with pytest.raises(UserError, match=r"sketch_train.txt and sketch_test.txt .* does not"):
        validate_benchmark_config(config)


def test_found_says_what_is_there(folder_config):
    text = found(folder_config)
    assert text is not None
    assert "20 images, 2 classes, domains photo, sketch" in text


@pytest.mark.parametrize("place", ["photo", "photo/cat", "sketch/dog"])
def test_a_folder_that_is_a_link_to_itself_is_one_sentence(folder_config, place):
    path = Path(folder_config["root"]) / place
    shutil.rmtree(path)
    path.symlink_to(path.name)
    with pytest.raises(
        UserError, match=rf"Cannot read {path}: Too many levels .*; check the links"
    ):
        validate_benchmark_config(folder_config)
    with pytest.raises(UserError, match="Too many levels"):
        found(folder_config)


def test_a_folder_that_may_not_be_read_is_one_sentence(folder_config, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path) + "\n")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for check in (validate_benchmark_config, found, lambda config: make_benchmark(config, 8)):
        with pytest.raises(UserError, match=r"photo/dog\\n: Permission denied; check its perm"):
            check(folder_config)


def test_an_error_that_is_of_no_file_is_none_of_the_data(folder_config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cl_lora.benchmarks.sources.tree.scan", full)
    with pytest.raises(OSError, match="No space left"):
        validate_benchmark_config(folder_config)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", os.fsdecode(b"caf\xe9"), "\u2028"])
@pytest.mark.parametrize("level", ["domain", "class"])
def test_folders_whose_names_cannot_be_shown_are_refused(folder_config, name, level):
    root = Path(folder_config["root"])
    for folder in (root,) if level == "domain" else (root / "photo", root / "sketch"):
        first = sorted(folder.iterdir())[0]
        first.rename(folder / name)
    with pytest.raises(UserError, match="to have printable names in UTF-8 but got") as caught:
        validate_benchmark_config(folder_config)
    assert repr(name) in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_of_files_may_hold_anything(folder_config):
    folder = Path(folder_config["root"]) / "photo" / "cat"
    plain = images_of(make_benchmark(folder_config, 8))
    for number, name in enumerate(("a\nb", "\x1b[31m", os.fsdecode(b"caf\xe9"))):
        (folder / f"{number}.png").rename(folder / f"{name}.png")
    images = images_of(make_benchmark(folder_config, 8))
    assert sorted(images[:5, 0, 0, 0].tolist()) == sorted(plain[:5, 0, 0, 0].tolist())


def test_a_pipe_called_like_an_image_is_named_and_not_waited_for(folder_config):
    os.mkfifo(Path(folder_config["root"]) / "photo" / "cat" / "odd.jpg")
    with pytest.raises(UserError, match=r"photo/cat/odd.jpg \(not a regular file\)"):
        make_benchmark(folder_config, 8)
