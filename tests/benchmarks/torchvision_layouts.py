"""Small image sets on disk exactly as torchvision lays the published ones out.

What a picture shows is its class: grey 10 * class, one more on the test side.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

CLASSES = 4
PER_CLASS = 4

TRAIN, TEST = 0, 1


def grey(label: int, side: int) -> int:
    return 10 * label + side


def picture(path: Path, label: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (grey(label, side),) * 3).save(path, format="PNG")


def samples() -> list[int]:
    """The labels of one side, classes mixed."""
    return [number % CLASSES for number in range(CLASSES * PER_CLASS)]


def arrays(side: int, *shape: int) -> np.ndarray:
    return np.stack([np.full(shape, grey(c, side), dtype=np.uint8) for c in samples()])


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, side in (("train", TRAIN), ("test", TEST)):
        batch = {"data": arrays(side, 3072), "fine_labels": samples()}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"fine_label_names": ["apple", "bear", "cup", "dog"]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", is_file)


def mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, side in (("train", TRAIN), ("t10k", TEST)):
        images, labels = arrays(side, 28, 28), np.array(samples(), dtype=np.uint8)
        for kind, data in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, data.ndim]) + b"".join(n.to_bytes(4, "big") for n in data.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + data.tobytes())


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, side in (("train", TRAIN), ("test", TEST)):
        labels = np.array([label or 10 for label in samples()])[:, None]  # 10 is the digit 0
        data = {"X": arrays(side, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels}
        scipy.io.savemat(root / f"{name}_32x32.mat", data)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", is_file)


def eurosat(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, label in enumerate(samples()):
        picture(root / "eurosat" / "2750" / f"c{label}" / f"{number}.png", label, TRAIN)


def sun(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "SUN397"
    names = [f"/{'abcd'[c]}/{'place' if c else 'place/indoor'}{c}" for c in range(CLASSES)]
    for number, label in enumerate(samples()):
        picture(folder / names[label][1:] / f"sun_{number}.jpg", label, TRAIN)
    (folder / "ClassName.txt").write_text("\n".join(names) + "\n")


def food(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for name, side in (("train", TRAIN), ("test", TEST)):
        listed: dict[str, list[str]] = {}
        for number, label in enumerate(samples()):
            file = f"dish{label}/{name}{number}"
            listed.setdefault(f"dish{label}", []).append(file)
            picture(folder / "images" / f"{file}.jpg", label, side)
        (folder / "meta" / f"{name}.json").write_text(json.dumps(listed))


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "flowers-102"
    sides = [TRAIN] * 8 + [TRAIN] * 8 + [TEST] * 16  # train, val, test
    labels = (samples() * 2)[:32]
    for number, (label, side) in enumerate(zip(labels, sides, strict=True), start=1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", label, side)
    parts = {"trnid": range(1, 9), "valid": range(9, 17), "tstid": range(17, 33)}
    scipy.io.savemat(folder / "setid.mat", {name: list(ids) for name, ids in parts.items()})
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": [label + 1 for label in labels]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", is_file)


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for name, side, chosen in (
        ("train", TRAIN, samples()[:8]),
        ("val", TRAIN, samples()[8:]),
        ("test", TEST, samples()),
    ):
        files = [f"texture{label}/{name}{number}.jpg" for number, label in enumerate(chosen)]
        for file, label in zip(files, chosen, strict=True):
            picture(folder / "images" / file, label, side)
        (folder / "labels" / f"{name}1.txt").write_text("\n".join(files) + "\n")


def gtsrb(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "gtsrb" / "GTSRB"
    rows = ["Filename;ClassId"]
    for number, label in enumerate(samples()):
        picture(folder / "Training" / f"{label:05d}" / f"{number}.ppm", label, TRAIN)
        picture(folder / "Final_Test" / "Images" / f"{number}.ppm", label, TEST)
        rows.append(f"{number}.ppm;{label}")
    (root / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


def cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    for name, side in (("train", TRAIN), ("test", TEST)):
        rows = np.zeros(len(samples()), dtype=[("fname", object), ("class", object)])
        for number, label in enumerate(samples()):
            picture(folder / f"cars_{name}" / f"{number:05d}.jpg", label, side)
            rows[number] = (f"{number:05d}.jpg", label + 1)
        place = folder / ("devkit/cars_train_annos" if side == TRAIN else "cars_test_annos")
        place = place if side == TRAIN else place.with_name("cars_test_annos_withlabels")
        scipy.io.savemat(f"{place}.mat", {"annotations": rows})
    names = np.array(["Audi", "BMW", "Cord", "Dodge"], dtype=object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})


def is_file(path: str, md5: str | None = None) -> bool:
    return Path(path).is_file()


Fabricate = Callable[[Path, pytest.MonkeyPatch], None]

LAYOUTS: dict[str, tuple[Fabricate, str]] = {
    "CIFAR100": (cifar, "apple bear cup dog"),
    "DTD": (dtd, "texture0 texture1 texture2 texture3"),
    "EuroSAT": (eurosat, "c0 c1 c2 c3"),
    "Food101": (food, "dish0 dish1 dish2 dish3"),
    "GTSRB": (gtsrb, "0 1 2 3"),
    "StanfordCars": (cars, "Audi BMW Cord Dodge"),
    "SUN397": (sun, "place/indoor0 place1 place2 place3"),
    "SVHN": (svhn, "0 1 2 3"),
}
"""Every set whose classes are told by its files: how it is written, and its class names."""

SPLIT_BY_US = {"EuroSAT", "SUN397"}
"""Sets that come without a split."""
