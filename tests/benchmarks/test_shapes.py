"""The shapes against independent references: a rasterised polygon, formulas, and their pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cl_lora.benchmarks.sources import shapes
from cl_lora.benchmarks.sources.shapes import STYLES, ShapesSpec
from cl_lora.support.errors import UserError

EMBEDDED = Path(__file__).resolve().parents[2] / "cl_lora" / "models" / "embedded"
SPEC = ShapesSpec(classes=16, styles=STYLES, samples_per_class=4, image_size=48, seed=3)


def inside(outline, points):
    """Even-odd rule: which of (M, 2) points a closed polygon of (N, 2) corners contains."""
    x, y = points[:, :1], points[:, 1:]
    (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
    crosses = (y0 > y) != (y1 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        left_of = x < (x1 - x0) * (y - y0) / (y1 - y0) + x0
    return (crosses & left_of).sum(axis=1) % 2 == 1


def distance(outline, points):
    """Distance of (M, 2) points to the nearest edge of a closed polygon."""
    start, edge = outline, np.roll(outline, -1, axis=0) - outline
    way = points[:, None] - start
    share = np.clip((way * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    return np.linalg.norm(way - share[..., None] * edge, axis=-1).min(axis=1)


def turn_between(before, after):
    """The rotation that best maps one point set to another of the same order (Kabsch, 2-D)."""
    a, b = before - before.mean(axis=0), after - after.mean(axis=0)
    return np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum())


class TestRandomness:
    @pytest.mark.parametrize("style", STYLES)
    def test_same_arguments_give_the_same_sample(self, style):
        first = shapes.render_sample(SPEC, style, 2, 1)
        second = shapes.render_sample(SPEC, style, 2, 1)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.keypoints.tobytes() == second.keypoints.tobytes()

    @pytest.mark.parametrize(
        "change",
        [{"samples_per_class": 900}, {"classes": 40}, {"styles": ("sketch", "photo")}],
        ids=lambda change: next(iter(change)),
    )
    def test_other_samples_do_not_matter(self, change):
        other = replace(SPEC, **change)
        expected = shapes.render_sample(SPEC, "photo", 5, 3)
        received = shapes.render_sample(other, "photo", 5, 3)
        assert np.array_equal(received.image, expected.image)

    def test_first_class_moves_the_labels_only(self):
        moved = replace(SPEC, first_class=4, classes=3)
        expected = shapes.render_sample(SPEC, "cartoon", 6, 0)
        received = shapes.render_sample(moved, "cartoon", 2, 0)
        assert np.array_equal(received.image, expected.image)
        assert received.label == 2
        assert shapes.class_names(moved) == shapes.class_names(SPEC)[4:7]

    @pytest.mark.parametrize("change", ["seed", "index", "label", "style"])
    def test_each_argument_changes_the_sample(self, change):
        spec = replace(SPEC, seed=4) if change == "seed" else SPEC
        label, index = (1, 0) if change == "label" else (0, 1) if change == "index" else (0, 0)
        style = "neon" if change == "style" else "photo"
        first = shapes.render_sample(SPEC, "photo", 0, 0)
        second = shapes.render_sample(spec, style, label, index)
        assert not np.array_equal(first.image, second.image)
        assert not np.array_equal(first.keypoints, second.keypoints)

    def test_the_image_size_only_scales(self):
        small = shapes.describe_sample(SPEC, "photo", 0, 0)
        large = shapes.describe_sample(replace(SPEC, image_size=96), "photo", 0, 0)
        assert np.allclose(large.keypoints, 2 * small.keypoints, atol=1e-4)
        assert large.area == pytest.approx(small.area)
        assert large.orientation == small.orientation


class TestAnnotations:
    @pytest.mark.parametrize("style", STYLES)
    def test_description_and_picture_agree(self, style):
        note = shapes.describe_sample(SPEC, style, 7, 2)
        sample = shapes.render_sample(SPEC, style, 7, 2)
        assert sample.image.shape == (48, 48, 3)
        assert sample.image.dtype == np.uint8
        assert (sample.label, sample.style) == (note.label, note.style) == (7, style)
        assert (sample.area, sample.orientation) == (note.area, note.orientation)
        assert note.keypoints.shape == (shapes.KEYPOINTS, 2)
        assert note.keypoints.dtype == np.float32
        assert np.array_equal(sample.keypoints, note.keypoints)

    def test_area_of_regular_polygons_follows_the_formula(self):
        for corners in (3, 4, 6, 60):
            angle = np.arange(corners) * 2 * np.pi / corners
            polygon = np.stack([5 * np.cos(angle) + 9, 5 * np.sin(angle) - 2], axis=1)
            expected = corners / 2 * 25 * np.sin(2 * np.pi / corners)
            assert shapes.polygon_area(polygon) == pytest.approx(expected)
            assert shapes.polygon_area(polygon[::-1]) == pytest.approx(expected)

    @pytest.mark.parametrize("label", range(SPEC.classes))
    def test_area_matches_a_rasterised_polygon(self, label):
        fine = (np.arange(240) + 0.5) / 240 * SPEC.image_size
        grid = np.stack(np.meshgrid(fine, fine), axis=-1).reshape(-1, 2)
        outline = shapes.sample_outline(SPEC, "photo", label, 0)
        covered = inside(outline, grid).mean()
        area = shapes.describe_sample(SPEC, "photo", label, 0).area
        assert area == pytest.approx(covered, abs=1.5e-3)
        assert shapes.fill_mask(outline, 48).mean() == pytest.approx(covered, rel=0.1)

    @pytest.mark.parametrize("number", [*range(16), *range(16, 96, 5)])
    def test_key_points_lie_on_an_outline_within_the_picture(self, number):
        spec = replace(SPEC, classes=1, first_class=number)
        for index in range(4):
            note = shapes.describe_sample(spec, "sketch", 0, index)
            outline = shapes.sample_outline(spec, "sketch", 0, index)
            assert distance(outline, note.keypoints).max() < 1e-4
            assert outline.min() > -0.5
            assert outline.max() < SPEC.image_size + 0.5
            assert np.ptp(note.keypoints, axis=0).min() > 3

    @pytest.mark.parametrize("label", range(SPEC.classes))
    def test_key_points_lie_where_the_pixels_change(self, label):
        sample = shapes.render_sample(SPEC, "silhouette", label, 0)
        grey = sample.image.mean(axis=2)
        for x, y in sample.keypoints:
            column, row = int(x), int(y)
            around = grey[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
            assert np.ptp(around) > 60

    @pytest.mark.parametrize("label", range(SPEC.classes))
    def test_orientation_is_the_turn_of_the_outline(self, label):
        upright = shapes.class_outline(label)
        for index in range(5):
            note = shapes.describe_sample(SPEC, "photo", label, index)
            outline = shapes.sample_outline(SPEC, "photo", label, index)
            assert abs(note.orientation) <= shapes.MAX_ORIENTATION
            # The outline is also stretched and bent a little, hence the tolerance.
            assert turn_between(upright, outline) == pytest.approx(note.orientation, abs=0.12)

    def test_outlines_are_centred_and_of_unit_radius(self):
        for number in range(100):
            outline = shapes.class_outline(number)
            assert outline.shape == (shapes.OUTLINE_POINTS, 2)
            assert np.hypot(*outline.T).max() == pytest.approx(1.0)
            assert shapes.polygon_area(outline) > 0.15


class TestStyles:
    def test_each_style_has_a_look_of_its_own(self):
        def look(style):
            images = [shapes.render_sample(SPEC, style, label, 0).image for label in range(16)]
            pixels = np.stack(images) / 255.0
            colour = np.ptp(pixels, axis=3).mean()
            warmth = (pixels[..., 0] - pixels[..., 2]).mean()  # the painter's palette is warm
            flat = (np.abs(np.diff(pixels, axis=2)).max(axis=3) < 0.02).mean()
            return np.array([pixels.mean(), pixels.std(), colour, warmth, flat])

        looks = {style: look(style) for style in STYLES}
        for first in STYLES:
            for second in STYLES:
                if first < second:
                    assert np.abs(looks[first] - looks[second]).max() > 0.05, (first, second)
        assert looks["sketch"][2] == 0  # pencil is grey
        assert looks["sketch"][0] > 0.8  # on white paper

    def test_the_object_stands_out_in_every_style(self):
        for style in STYLES:
            for label in (0, 7):
                outline = shapes.sample_outline(SPEC, style, label, 0)
                image = shapes.render_sample(SPEC, style, label, 0).image.astype(float)
                mask = shapes.fill_mask(outline, 48)
                edge = (mask > 0.05) & (mask < 0.95)
                contrast = np.abs(image[edge].mean(axis=0) - image[mask == 0].mean(axis=0))
                assert contrast.max() > 10, style

    def test_classes_differ(self):
        outlines = [shapes.class_outline(number) for number in range(96)]
        masks = np.stack([shapes.fill_mask(o * 11 + 12, 24).ravel() for o in outlines])
        gap = np.abs(masks[:, None] - masks).mean(axis=2) + np.eye(len(masks))
        assert gap.min() > 0.01
        assert gap[:16, :16].min() > 0.03


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"styles": ("foto",)}, "did you mean 'photo'"),
            ({"styles": ()}, "one or more names"),
            ({"styles": "photo"}, "one or more names"),
            ({"styles": ("photo", "photo")}, "every style once"),
            ({"classes": 0}, "classes .* at least 1 but got 0"),
            ({"classes": 2.5}, "integer"),
            ({"samples_per_class": 0}, "samples_per_class"),
            ({"image_size": 8}, "image_size"),
            ({"first_class": -1}, "first_class"),
            ({"seed": None}, "seed"),
        ],
    )
    def test_a_bad_spec_is_explained(self, change, words):
        with pytest.raises(UserError, match=words):
            replace(SPEC, **change)

    @pytest.mark.parametrize(
        ("style", "label", "index", "words"),
        [
            ("neon", 0, 0, "style"),
            ("photo", 3, 0, "label from 0 to 2 but got 3"),
            ("photo", -1, 0, "label"),
            ("photo", 0, -1, "index"),
        ],
    )
    def test_a_sample_that_does_not_exist_is_explained(self, style, label, index, words):
        spec = replace(SPEC, classes=3, styles=("photo", "sketch"))
        with pytest.raises(UserError, match=words):
            shapes.render_sample(spec, style, label, index)


@pytest.fixture(scope="module")
def card():
    return json.loads((EMBEDDED / "backbone.json").read_text())


class TestBackbone:
    def test_the_weights_are_those_described(self, card):
        data = (EMBEDDED / "backbone.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == card["sha256"]
        assert len(data) < 8 * 2**20

    def test_pretraining_saw_no_demo_class_and_only_photos(self, card):
        settings = card["pretraining"]
        seen = range(settings["first_class"], settings["first_class"] + settings["classes"])
        assert not set(seen) & set(range(16))
        assert settings["styles"] == ["photo"]

    def test_the_weights_load_in_timm(self, card):
        import torch
        from safetensors.torch import load_file

        from timm.models.vision_transformer import VisionTransformer  # isort: skip

        model = VisionTransformer(**card["architecture"], num_classes=0)
        weights = load_file(EMBEDDED / "backbone.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        model.load_state_dict(weights, strict=True)
        model.eval()
        side = card["architecture"]["img_size"]
        spec = ShapesSpec(3, ("photo",), 1, side, seed=0)
        images = np.stack([shapes.render_sample(spec, "photo", c, 0).image for c in range(3)])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(card[key]).view(3, 1, 1) for key in ("mean", "std"))
        with torch.inference_mode():
            features = model((pixels - mean) / std)
        assert features.shape == (3, card["architecture"]["embed_dim"])
        assert torch.isfinite(features).all()
        assert torch.pdist(features).min() > 0.1
