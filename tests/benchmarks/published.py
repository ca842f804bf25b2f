"""Writers of small data sets in exactly the form in which the large ones are published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FIRE = ("High", "Low", "Moderate", "Non-burnable", "Very_High", "Very_Low", "Water")
WFLW_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"


def write_image(path: Path, size: tuple[int, int] = (12, 10), number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number % 256, 7 * number % 256, 31 * number % 256)).save(path)


def write_fire_risk(root: Path, counts: Mapping[str, int], names: Sequence[str] = FIRE) -> Path:
    number = 0
    for side, count in counts.items():
        for name in names:
            for index in range(count):
                number += 1
                write_image(root / side / name / f"2703{index}_{number}.png", number=number)
    return root


def write_utkface(root: Path, ages: Sequence[int], ending: str = ".jpg.chip.jpg") -> Path:
    for number, age in enumerate(ages):
        write_image(
            root / f"{age}_{number % 2}_{number % 5}_2017010922{number:07}{ending}", number=number
        )
    return root


def write_expw(root: Path, lines: Sequence[str], images: Sequence[str]) -> Path:
    for number, name in enumerate(images):
        write_image(root / "origin" / name, (60, 40), number)
    (root / "label.lst").write_text("".join(f"{line}\n" for line in lines))
    return root


def face_points(left: float, top: float, size: float) -> np.ndarray:
    """98 points on a grid within a box, the eyes' outer corners half a box apart."""
    grid = np.stack(np.divmod(np.arange(98), 10), axis=1)[:, ::-1] / 10 * size + (left, top)
    grid[60] = (left + size / 4, top + size / 3)
    grid[72] = (left + 3 * size / 4, top + size / 3)
    return grid


def wflw_line(points: np.ndarray, box: Sequence[int], attributes: Sequence[int], path: str) -> str:
    """A line as WFLW has it: 196 coordinates, the box, six attributes, the image."""
    coordinates = " ".join(f"{value:.6f}" for value in points.ravel())
    return f"{coordinates} {' '.join(map(str, [*box, *attributes]))} {path}"


def write_wflw(root: Path, train: Sequence[str], test: Sequence[str]) -> Path:
    folder = root / WFLW_LISTS
    folder.mkdir(parents=True, exist_ok=True)
    for side, lines in (("train", train), ("test", test)):
        file = folder / f"list_98pt_rect_attr_{side}.txt"
        file.write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            write_image(root / "WFLW_images" / line.split()[-1], (60, 50))
    return root
