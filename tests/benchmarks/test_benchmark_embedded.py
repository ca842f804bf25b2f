"""The shapes as a benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from cl_lora.benchmarks import found, make_benchmark, validate_benchmark_config
from cl_lora.benchmarks.sources.shapes import ShapesSpec, class_names, describe_sample, render_sample
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
    assert data.domains == ("sketch", "photo")
    assert data.images.shape == (2 * 3 * 6, 16, 16, 3)
    for train, test in zip(data.train, data.test, strict=True):
        assert np.bincount(data.labels[train]).tolist() == [4, 4, 4]
        assert np.bincount(data.labels[test]).tolist() == [2, 2, 2]
    assert sorted(np.concatenate([*data.train, *data.test])) == list(range(36))


def test_pixels_and_annotations_are_those_of_the_shapes():
    data = make_benchmark(CONFIG, 16)
    spec = ShapesSpec(3, ("sketch", "photo"), 4, 16, seed=0)
    assert data.classes == class_names(spec)
    for number, style in enumerate(data.domains):
        train = data.train[number]
        assert (data.annotations["style"][train] == number).all()
        for label in range(3):
            for index, sample in enumerate(train[data.labels[train] == label]):
                picture = render_sample(spec, style, label, index)
                np.testing.assert_array_equal(data.images[sample], picture.image)
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
            data.images[data.test[number]], larger.images[larger.test[number]]
        )
    pictures = {data.images[i].tobytes() for i in range(36)}
    assert len(pictures) == 36


def test_order_of_styles_keeps_the_pictures(no_decoding):
    data = make_benchmark(CONFIG, 16)
    no_decoding()
    swapped = make_benchmark({**CONFIG, "styles": ["photo", "sketch"]}, 16)
    np.testing.assert_array_equal(swapped.train[0], data.train[1])
    assert (swapped.annotations["style"][swapped.train[1]] == 1).all()
    assert swapped.fingerprint != data.fingerprint


def test_another_seed_size_or_class_range_is_other_data():
    base = make_benchmark(CONFIG, 16)
    others = [
        make_benchmark({**CONFIG, "split_seed": 1}, 16),
        make_benchmark(CONFIG, 18),
        make_benchmark({**CONFIG, "first_class": 3}, 16),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert not set(base.classes) & set(others[2].classes)


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
    np.testing.assert_array_equal(other.images, 255 - data.images)
    assert other.fingerprint != data.fingerprint


def test_unknown_style_and_found():
    with pytest.raises(UserError, match=r"'foto'.*'photo'"):
        validate_benchmark_config({**CONFIG, "styles": ["foto"]})
    validate_benchmark_config(CONFIG)
    assert "embedded" in str(found(CONFIG))
