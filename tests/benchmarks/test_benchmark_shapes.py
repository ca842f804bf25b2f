"""The shapes as a benchmark."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark_views import classes_of, held_out_of, images_of, labels_of, train_of, val_of

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.shapes import (
    ShapesSpec,
    class_names,
    describe_sample,
    render_sample,
)
from cl_lora.support.errors import UserError

CONFIG = {
    "kind": "shapes",
    "classes": 3,
    "styles": ["sketch", "photo"],
    "samples_per_class": 4,
    "test_samples_per_class": 2,
}

pytestmark = pytest.mark.usefixtures("cache")


def test_styles_are_the_domains_and_every_class_has_the_asked_number():
    data = make_benchmark(CONFIG, 16)
    assert data.names == ("sketch", "photo")
    assert images_of(data).shape == (2 * 3 * 6, 16, 16, 3)
    for train, test in zip(train_of(data), held_out_of(data), strict=True):
        assert np.bincount(labels_of(data)[train]).tolist() == [4, 4, 4]
        assert np.bincount(labels_of(data)[test]).tolist() == [2, 2, 2]
    assert sorted(np.concatenate([*train_of(data), *held_out_of(data)])) == list(range(36))


def test_pixels_and_annotations_are_those_of_the_shapes():
    data = make_benchmark(CONFIG, 16)
    spec = ShapesSpec(3, ("sketch", "photo"), 4, 16, seed=0)
    assert classes_of(data) == class_names(spec)
    for number, style in enumerate(data.names):
        train = train_of(data)[number]
        assert (data.annotations["style"][train] == number).all()
        for label in range(3):
            for index, sample in enumerate(train[labels_of(data)[train] == label]):
                picture = render_sample(spec, style, label, index)
                np.testing.assert_array_equal(images_of(data)[sample], picture.image)
                note = describe_sample(spec, style, label, index)
                assert data.annotations["area"][sample] == note.area
                assert data.annotations["orientation"][sample] == note.orientation
                np.testing.assert_array_equal(data.annotations["keypoints"][sample], note.keypoints)


def test_second_load_draws_nothing(cache, no_decoding):
    data = make_benchmark(CONFIG, 16)
    (file,) = cache.iterdir()
    before = file.stat()
    no_decoding()
    again = make_benchmark(CONFIG, 16)
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.fingerprint == data.fingerprint


def test_test_pictures_do_not_depend_on_the_number_of_train_pictures_and_differ_from_them():
    data = make_benchmark(CONFIG, 16)
    larger = make_benchmark({**CONFIG, "samples_per_class": 7}, 16)
    for number in range(2):
        np.testing.assert_array_equal(
            images_of(data)[held_out_of(data)[number]],
            images_of(larger)[held_out_of(larger)[number]],
        )
    pictures = {images_of(data)[i].tobytes() for i in range(36)}
    assert len(pictures) == 36


def test_validation_pictures_are_train_pictures_held_out(no_decoding):
    data = make_benchmark(CONFIG, 16)
    no_decoding()
    other = make_benchmark({**CONFIG, "val_fraction": 0.25}, 16)
    assert other.fingerprint != data.fingerprint
    for number in range(2):
        train, val = train_of(other)[number], val_of(other)[number]
        assert np.bincount(labels_of(other)[val]).tolist() == [1, 1, 1]
        assert sorted([*train, *val]) == train_of(data)[number].tolist()
        np.testing.assert_array_equal(held_out_of(other)[number], held_out_of(data)[number])


def test_order_of_styles_keeps_the_pictures(no_decoding):
    data = make_benchmark(CONFIG, 16)
    no_decoding()
    swapped = make_benchmark({**CONFIG, "styles": ["photo", "sketch"]}, 16)
    np.testing.assert_array_equal(train_of(swapped)[0], train_of(data)[1])
    assert (swapped.annotations["style"][train_of(swapped)[1]] == 1).all()
    assert swapped.fingerprint != data.fingerprint


def test_another_seed_size_or_class_range_is_other_data():
    base = make_benchmark(CONFIG, 16)
    others = [
        make_benchmark({**CONFIG, "split_seed": 1}, 16),
        make_benchmark(CONFIG, 18),
        make_benchmark({**CONFIG, "first_class": 3}, 16),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert not set(classes_of(base)) & set(classes_of(others[2]))


def test_a_renderer_that_draws_differently_is_noticed(monkeypatch):
    data = make_benchmark(CONFIG, 16)

    def inverted(*arguments):
        sample = render_sample(*arguments)
        return type(sample)(
            255 - sample.image,
            sample.label,
            sample.style,
            sample.area,
            sample.orientation,
            sample.keypoints,
        )

    monkeypatch.setattr("cl_lora.benchmarks.sources.shapes.benchmark.render_sample", inverted)
    other = make_benchmark(CONFIG, 16)
    np.testing.assert_array_equal(images_of(other), 255 - images_of(data))
    assert other.fingerprint != data.fingerprint


def test_unknown_style_and_found():
    with pytest.raises(UserError, match=r"'foto'.*'photo'"):
        validate_benchmark_config({**CONFIG, "styles": ["foto"]})
    validate_benchmark_config(CONFIG)
    assert "embedded" in str(found(CONFIG))
