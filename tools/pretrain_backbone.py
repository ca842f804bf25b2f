"""Pre-train the embedded backbone: a small ViT on photos of outlines that no benchmark uses.

The class label alone hardly trains a small transformer from scratch, so every picture also says
where its outline lies. Each patch tells its part of the mask, and its class where it shows the
object; the pooled features tell key points, orientation, area, and how far the outline reaches in
each direction, which, unlike the key points, can be told without knowing the class. All of these
come for free from the generator. Only photos are shown: every other style is a true shift of the
domain for whoever adapts the backbone.

    python tools/pretrain_backbone.py --work FOLDER

can be stopped at any time: the same command goes on after the last whole epoch. The weights and
their description are written to ``cl_lora/models/embedded`` every few epochs and at the end.
"""

from __future__ import annotations

import cl_lora.support.compat  # noqa: F401  # isort: skip  # before timm

import argparse
import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from cl_lora.benchmarks.sources import shapes
from cl_lora.support import files
from cl_lora.support.progress import track
from cl_lora.support.seeding import seed_everything, torch_generator

SIDE, PATCH, WIDTH = 48, 8, 128
ARCHITECTURE: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": 6,
    "num_heads": 4,
    # The mean of the patch tokens: they are trained directly, by the mask and by their class.
    "class_token": False,
    "global_pool": "avg",
}
MEAN = STD = (0.5, 0.5, 0.5)
RAYS = 24  # directions of the radial profile
POINTS = 2 * shapes.KEYPOINTS
TARGETS = POINTS + 2 + 2 + RAYS  # key points, centre; orientation, root of the area; profile
MASK_CELLS = 24  # cells a side of the coarse mask; four by four in each patch
SHIFT = 4  # largest random shift in pixels
EMBEDDED = Path(__file__).resolve().parent.parent / "cl_lora" / "models" / "embedded"


@dataclass(frozen=True)
class Settings:
    """How the backbone is trained; written into its description."""

    first_class: int = 32
    classes: int = 64
    samples_per_class: int = 600
    seed: int = 7
    epochs: int = 8
    batch_size: int = 128
    matrix_learning_rate: float = 3e-3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 0.7
    geometry_weight: float = 4.0
    mask_weight: float = 1.0
    patch_weight: float = 0.5

    def spec(self, test: bool = False) -> shapes.ShapesSpec:
        """Return the pictures to train on, or those to test on (fewer, of another seed)."""
        return shapes.ShapesSpec(
            classes=self.classes,
            styles=("photo",),
            samples_per_class=16 if test else self.samples_per_class,
            image_size=SIDE,
            seed=self.seed + test,
            first_class=self.first_class,
        )


@dataclass(frozen=True)
class Pictures:
    """Rendered samples: N uint8 images (3, S, S), int64 labels, float32 targets, uint8 masks."""

    images: Tensor
    labels: Tensor
    targets: Tensor
    masks: Tensor


class Pretraining(nn.Module):
    """The backbone with the three heads that it sheds after training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = VisionTransformer(**ARCHITECTURE, num_classes=0, drop_path_rate=0.05)
        for block in self.backbone.blocks:
            # On CPUs the fused attention in bfloat16 costs more than all matrix products together.
            block.attn.fused_attn = False
        with torch.no_grad():
            # timm's start of 0.02 drowns beside the patches, and everything here is about places.
            position = waves(SIDE // PATCH, WIDTH)
            self.backbone.pos_embed.copy_(0.5 * position)
        self.classifier = nn.Linear(WIDTH, classes)
        self.regressor = nn.Linear(WIDTH, TARGETS)
        self.norm = nn.LayerNorm(WIDTH)
        self.patch_classifier = nn.Linear(WIDTH, classes)
        self.patches = SIDE // PATCH
        self.cells = MASK_CELLS // self.patches
        self.segmenter = nn.Linear(WIDTH, self.cells**2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the heads say of N images.

        Logits (N, classes), targets (N, TARGETS), mask logits (N, MASK_CELLS, MASK_CELLS), and the
        patches' logits (N, patches, classes).
        """
        tokens = self.backbone.forward_features(images)
        pooled = self.backbone.forward_head(tokens, pre_logits=True)
        tokens = self.norm(tokens)
        p, c = self.patches, self.cells
        grid = self.segmenter(tokens).view(-1, p, p, c, c)
        masks = grid.permute(0, 1, 3, 2, 4).reshape(-1, p * c, p * c)
        return (
            self.classifier(pooled),
            self.regressor(pooled),
            masks,
            self.patch_classifier(tokens),
        )


def waves(side: int, width: int) -> Tensor:
    """Return sine and cosine position embeddings of a square grid, (side * side, width)."""
    rates = 100.0 ** -torch.linspace(0.0, 1.0, width // 4)
    angles = torch.outer(torch.arange(side).float(), rates) * math.pi / 2.0
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def geometry(sample: shapes.ShapeSample, outline: npt.NDArray[np.float64]) -> list[float]:
    """Return the TARGETS numbers of a sample, each of about unit size."""
    centre = outline.mean(axis=0)
    away = outline - centre
    # The farthest point in each direction; zero where no point of the outline falls into it.
    ray = np.floor(np.arctan2(away[:, 1], away[:, 0]) / (2 * np.pi) * RAYS).astype(int) % RAYS
    profile = np.zeros(RAYS)
    np.maximum.at(profile, ray, np.hypot(away[:, 0], away[:, 1]))
    return [
        *(sample.keypoints.ravel() / SIDE * 4.0 - 2.0),
        *(centre / SIDE * 4.0 - 2.0),
        sample.orientation / shapes.MAX_ORIENTATION,
        math.sqrt(sample.area) * 4.0 - 1.5,
        *(profile / SIDE * 4.0 - 1.0),
    ]


def render(spec: shapes.ShapesSpec, cache: Path) -> Pictures:
    """Draw every sample of the spec, or read them from ``cache`` where that was done before."""
    if not cache.exists():
        count = spec.classes * spec.samples_per_class
        side = spec.image_size
        arrays: dict[str, Any] = {
            "images": np.empty((count, 3, side, side), np.uint8),
            "labels": np.empty(count, np.int64),
            "targets": np.empty((count, TARGETS), np.float32),
            "masks": np.empty((count, MASK_CELLS, MASK_CELLS), np.uint8),
        }
        for n in track(range(count), "drawing", count):
            label, index = divmod(n, spec.samples_per_class)
            sample = shapes.render_sample(spec, "photo", label, index)
            outline = shapes.sample_outline(spec, "photo", label, index)
            arrays["images"][n] = sample.image.transpose(2, 0, 1)
            arrays["labels"][n] = label
            arrays["targets"][n] = geometry(sample, outline)
            coarse = shapes.fill_mask(outline * (MASK_CELLS / side), MASK_CELLS)
            arrays["masks"][n] = coarse * 255.0
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name("partial-" + cache.name)
        np.savez(partial, **arrays)
        partial.replace(cache)
    with np.load(cache) as stored:
        return Pictures(*(torch.from_numpy(stored[f.name]) for f in dataclasses.fields(Pictures)))


def normalised(images: Tensor) -> Tensor:
    """Return uint8 images as floats with mean and standard deviation 0.5."""
    return images.float().div_(127.5).sub_(1.0)


def augmented(batch: Pictures, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Shift the batch, and change the colours of each picture: images, targets and masks."""
    cell = SIDE // MASK_CELLS
    shift = torch.randint(-SHIFT // cell, SHIFT // cell + 1, (2,), generator=generator).tolist()
    dy, dx = (s * cell for s in shift)
    images = nn.functional.pad(normalised(batch.images), (SHIFT,) * 4, mode="reflect")
    images = images[:, :, SHIFT - dy : SHIFT - dy + SIDE, SHIFT - dx : SHIFT - dx + SIDE]
    edge = SHIFT // cell
    masks = functional.pad(batch.masks.float() / 255.0, (edge,) * 4)
    masks = masks[:, edge - shift[0] :, edge - shift[1] :][:, :MASK_CELLS, :MASK_CELLS]
    targets = batch.targets.clone()
    targets[:, : POINTS + 2 : 2] += dx / SIDE * 4.0
    targets[:, 1 : POINTS + 2 : 2] += dy / SIDE * 4.0
    count = len(images)

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        values = torch.rand(count, channels, 1, 1, generator=generator)
        return values * (high - low) + low

    order = torch.randperm(3, generator=generator)
    images = images[:, order]
    grey = images.mean(dim=1, keepdim=True)
    images = torch.lerp(grey, images, draw(0.0, 1.3))
    images = images * draw(0.7, 1.3) * draw(0.85, 1.15, 3) + draw(-0.2, 0.2)
    return images.clamp_(-1.0, 1.0), targets, masks


def schedule(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """Return the share of the learning rate: linear warm-up, then half a cosine down to 1 %."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1.0, settings.epochs * steps_per_epoch - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))


def make_optimizers(model: Pretraining, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks and AdamW for all the rest.

    Measured from the same checkpoint, 100 steps of Muon went as far as 300 of AdamW alone.
    """
    matrices = [p for p in model.backbone.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices,
            lr=settings.matrix_learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=settings.learning_rate, weight_decay=0.0, fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["top_lr"] = group["lr"]
    return optimizers


def train_epoch(
    model: Pretraining,
    optimizers: list[torch.optim.Optimizer],
    pictures: Pictures,
    settings: Settings,
    epoch: int,
) -> float:
    """Train for one epoch; return the mean loss."""
    model.train()
    seed_everything(settings.seed, "pretraining epoch", epoch)  # drop path uses the global one
    generator = torch_generator(settings.seed, "pretraining batches", epoch)
    order = torch.randperm(len(pictures.labels), generator=generator)
    batches = order[: len(order) // settings.batch_size * settings.batch_size]
    batches = batches.view(-1, settings.batch_size)
    total = 0.0
    for number, chosen in enumerate(batches):
        batch = Pictures(*(getattr(pictures, f.name)[chosen] for f in dataclasses.fields(Pictures)))
        images, targets, masks = augmented(batch, generator)
        share = schedule(settings, epoch * len(batches) + number, len(batches))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["top_lr"] * share
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, regressed, drawn, patch_logits = model(images)
        # Only patches that show a good part of the object are asked for its class.
        shown = functional.avg_pool2d(masks, model.cells).flatten(1) > 0.25
        loss = (
            settings.patch_weight
            * functional.cross_entropy(
                patch_logits.float()[shown],
                batch.labels[:, None].expand_as(shown)[shown],
                label_smoothing=0.05,
            )
            + functional.cross_entropy(logits.float(), batch.labels, label_smoothing=0.05)
            + settings.geometry_weight * functional.smooth_l1_loss(regressed.float(), targets)
            + settings.mask_weight
            * functional.binary_cross_entropy_with_logits(drawn.float(), masks)
        )
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
    return total / len(batches)


@torch.inference_mode()
def evaluate(model: Pretraining, pictures: Pictures) -> dict[str, float]:
    """Return the scores on unseen samples of the same classes: accuracy and errors."""
    model.eval()
    correct, points, cells = [], [], []
    for chosen in torch.split(torch.arange(len(pictures.labels)), 256):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, regressed, drawn, _ = model(normalised(pictures.images[chosen]))
        correct.append(logits.argmax(dim=1) == pictures.labels[chosen])
        error = (regressed.float() - pictures.targets[chosen])[:, :POINTS]
        points.append(error.view(len(chosen), -1, 2).norm(dim=2).mean(dim=1) * SIDE / 4.0)
        cells.append(((drawn > 0) == (pictures.masks[chosen] > 127)).float().mean(dim=(1, 2)))
    return {
        "accuracy": round(torch.cat(correct).float().mean().item(), 4),
        "keypoint_error_px": round(torch.cat(points).mean().item(), 3),
        "mask_accuracy": round(torch.cat(cells).mean().item(), 4),
    }


def export(
    model: Pretraining, settings: Settings, epochs: int, scores: dict[str, float], folder: Path
) -> None:
    """Write the backbone as float16 under timm's names, and its description."""
    weights = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.backbone.state_dict().items()
    }
    data = save(weights, metadata={"format": "pt"})
    files.write_bytes(folder / "backbone.safetensors", data)
    files.write_json(
        folder / "backbone.json",
        {
            "architecture": ARCHITECTURE,
            "mean": MEAN,
            "std": STD,
            "pretraining": {
                **dataclasses.asdict(settings),
                "styles": ["photo"],
                "epochs_done": epochs,
            },
            "scores": scores,
            "sha256": hashlib.sha256(data).hexdigest(),
        },
    )


def main() -> None:
    """Train from the last checkpoint in the work folder on, and export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, checkpoints")
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder of the weights")
    parser.add_argument("--export-every", type=int, default=5, help="epochs between two exports")
    for field in dataclasses.fields(Settings):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(arguments, name) for name in names})

    # Every array belongs to the settings that drew it: others in the same folder are left alone.
    spec, test_spec = settings.spec(), settings.spec(test=True)
    key = files.digest(dataclasses.asdict(spec), TARGETS, MASK_CELLS, size=6)
    pictures = render(spec, arguments.work / f"train-{key}.npz")
    test = render(test_spec, arguments.work / f"test-{key}.npz")

    seed_everything(settings.seed, "pretraining weights")
    model = Pretraining(settings.classes)
    optimizers = make_optimizers(model, settings)
    # Without the epochs: a run may be cut short or go on for longer from its last checkpoint.
    lasting = {**dataclasses.asdict(settings), "epochs": None}
    run = files.digest(lasting, ARCHITECTURE, size=6)
    checkpoint = arguments.work / f"checkpoint-{run}.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        first = state["epochs"]
    for epoch in range(first, settings.epochs):
        start = time.monotonic()
        loss = train_epoch(model, optimizers, pictures, settings, epoch)
        scores = evaluate(model, test)
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "epochs": epoch + 1,
            },
            partial,
        )
        partial.replace(checkpoint)
        line = {"epoch": epoch + 1, "of": settings.epochs, "loss": round(loss, 4), **scores}
        print(json.dumps({**line, "seconds": round(time.monotonic() - start, 1)}), flush=True)
        if (epoch + 1) % arguments.export_every == 0 or epoch + 1 == settings.epochs:
            export(model, settings, epoch + 1, scores, arguments.output)


if __name__ == "__main__":
    main()
