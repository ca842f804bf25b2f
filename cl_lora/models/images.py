"""Backbones of images: from uint8 pixels to what a network of images takes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cl_lora.models.base import Backbone
from cl_lora.support.errors import UserError


class ImageBackbone(Backbone, ABC):
    """A network that maps normalised images to features.

    Attributes:
        img_size: input size in pixels.
        normalisation: the mean and std that are applied to the batch, for the record.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        features: int,
        targets: Mapping[str, str],
        img_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(network, features, targets)
        self.img_size = img_size
        self.normalisation = {"mean": list(mean), "std": list(std)}
        # Folded constants: (x / 255 - mean) / std = x * scale + shift, one pass over the batch.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @staticmethod
    def encode(samples: npt.NDArray[Any]) -> Tensor:
        """Return images uint8 (..., H, W, 3) as a new contiguous tensor uint8 (..., 3, H, W).

        A copy: what comes out of a memory map can then be written to.
        """
        return torch.from_numpy(np.moveaxis(samples, -1, -3).copy())

    def normalise(self, images: Tensor) -> Tensor:
        """Return float images ``(x / 255 - mean) / std`` of uint8 images (batch, 3, H, W)."""
        scale = 1.0 / (255.0 * self.std)
        return images.to(scale.dtype) * scale - self.mean / self.std

    def record(self) -> dict[str, Any]:
        """Return what decides its features: weights, input size and normalisation."""
        return {**super().record(), "img_size": self.img_size, **self.normalisation}


@torch.no_grad()
def check_features(backbone: ImageBackbone, path: object) -> None:
    """Check that weights from a file give a grey image finite features: each may be, and all not.

    Raises:
        UserError: naming the file.
    """
    side = backbone.img_size
    grey = torch.full((1, 3, side, side), 128, dtype=torch.uint8)
    if not bool(backbone(grey).isfinite().all()):
        raise UserError(
            f"Expected weights with finite features but those of {path} overflow at a grey image; "
            "give an undamaged file"
        )
