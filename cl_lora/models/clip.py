"""CLIP's image tower as a frozen backbone, and heads that its text tower makes of labels.

Radford et al. (2021): images and texts are projected to one space, and a class is the direction of
texts that name it. The image tower's projection is the feature; the text tower is loaded when a
head is asked for, and let go.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_lora.models.base import ModelConfig, ModelSource, register_source, weights_digest
from cl_lora.models.checkpoint_file import check_all_finite, check_stored
from cl_lora.models.heads import CosineHead, HeadState, freeze, head_of
from cl_lora.models.images import ImageBackbone
from cl_lora.support.errors import UserError
from cl_lora.tasks import CLASS, Task

PROMPTS = ("a photo of a {}.",)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that CLIP was trained on; what holds where a folder has no preprocessor."""

CLIP_TARGETS: Mapping[str, str] = {
    "q": r".*\.self_attn\.q_proj",
    "k": r".*\.self_attn\.k_proj",
    "v": r".*\.self_attn\.v_proj",
    "proj": r".*\.self_attn\.out_proj",
    "fc1": r".*\.mlp\.fc1",
    "fc2": r".*\.mlp\.fc2",
}
_TEXT_PARTS = ("text_model.", "text_projection.", "logit_scale")
_BATCH = 64  # texts a forward pass


class CLIPBackbone(ImageBackbone):
    """The image tower: uint8 images to projected embeddings, which are not normalised.

    Args:
        network: a ``CLIPVisionModelWithProjection``.
        size: its input size in pixels; the position embedding is resampled where it is not the one
            that the model was trained with.
        mean: per-channel mean of the normalisation.
        std: per-channel standard deviation of the normalisation.
        prompts: templates that a label is put into.
        task_prompts: those of some tasks by the task's name.
        text: a digest of the text tower's weights, for the record.
        embed: texts -> their embeddings (n, d) on a device, and the scale of logits; loads the text
            tower.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        prompts: Sequence[str],
        task_prompts: Mapping[str, Sequence[str]],
        text: str,
        embed: Callable[[Sequence[str], torch.device], tuple[Tensor, Tensor]],
    ) -> None:
        config: Any = network.config
        super().__init__(network, int(config.projection_dim), CLIP_TARGETS, size, mean, std)
        self.prompts = tuple(prompts)
        self.task_prompts = {name: tuple(own) for name, own in sorted(task_prompts.items())}
        self._text = text
        self._embed = embed
        self._resamples = size != config.image_size
        self._heads: dict[tuple[tuple[str, ...], ...], HeadState] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (batch, features) of uint8 images (batch, 3, img_size, img_size)."""
        out = self.network(
            pixel_values=self.normalise(inputs), interpolate_pos_encoding=self._resamples
        )
        features: Tensor = out.image_embeds
        return features

    def task_head(self, task: Task) -> nn.Module:
        """Return the zero-shot head of a task's labels: ``logits = exp(s) cos(f, w_c)``.

        ``w_c`` is the direction of the mean of the directions of the label's texts, one for each
        prompt; an underscore in a label is read as a space.

        Raises:
            UserError: if the task has no classes, or a text is too long.
        """
        if task.kind is not CLASS:
            raise UserError(
                f"Expected a task with classes, whose names make the head, but {task.name!r} is of "
                f"the kind {task.kind.name!r}; set strategy.head=own, or leave the task out"
            )
        key = (task.labels, self.task_prompts.get(task.name, self.prompts))
        if key not in self._heads:
            self._heads[key] = self._zero_shot(*key)
        return freeze(head_of(self._heads[key]))

    @torch.no_grad()
    def _zero_shot(self, labels: Sequence[str], prompts: Sequence[str]) -> HeadState:
        texts = [p.replace("{}", label.replace("_", " ")) for label in labels for p in prompts]
        embedded, scale = self._embed(texts, self.mean.device)
        directions = F.normalize(embedded.float(), dim=1)
        means = directions.view(len(labels), len(prompts), -1).mean(dim=1)
        head = CosineHead(F.normalize(means, dim=1).cpu(), scale.float().cpu())
        return head.state_dict()

    def record(self) -> dict[str, Any]:
        """Return what decides its features and heads: weights, input, prompts and text tower."""
        own = {name: list(prompts) for name, prompts in self.task_prompts.items()}
        return {
            **super().record(),
            "prompts": list(self.prompts),
            **({"task_prompts": own} if own else {}),
            "text": self._text,
        }


@dataclass(frozen=True)
class _Source:
    """What a name on the hub or a folder says before weights are loaded.

    Attributes:
        where: the name or the folder.
        size: input size in pixels of the preprocessor.
        trained_size: the size that the position embedding belongs to.
        patch: side of a patch in pixels.
        mean: per-channel mean of the normalisation.
        std: per-channel standard deviation of the normalisation.
    """

    where: str
    size: int
    trained_size: int
    patch: int
    mean: Sequence[float]
    std: Sequence[float]


def _look(config: ModelConfig) -> _Source:
    where = _where(config)
    with _reading(where):
        from transformers import CLIPConfig

        found, _ = CLIPConfig.get_config_dict(where)
        kind = found.get("model_type")
    if kind != "clip":
        raise UserError(
            f"Expected {where} to be a CLIP model of transformers but its model_type is {kind!r}; "
            "choose one such as openai/clip-vit-base-patch32"
        )
    vision = CLIPConfig.from_dict(found).vision_config
    images = _preprocessor(where)
    normalises = images.get("do_normalize", True)
    return _Source(
        where,
        config.img_size or _side(images, where) or int(vision.image_size),
        int(vision.image_size),
        int(vision.patch_size),
        images.get("image_mean", MEAN) if normalises else (0.0,) * 3,
        images.get("image_std", STD) if normalises else (1.0,) * 3,
    )


def _where(config: ModelConfig) -> str:
    if config.checkpoint is None:
        if config.name in ("", "???"):  # what Hydra writes for a value that the user must give
            raise UserError(
                "Expected model.name to be a CLIP model on the hub but got none; give "
                "model.name=NAME, e.g. openai/clip-vit-base-patch32, or model.checkpoint=FOLDER"
            )
        return config.name
    folder = Path(config.checkpoint).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"Expected model.checkpoint to be the folder of a CLIP model but {config.checkpoint} "
            "has no config.json; give the folder that save_pretrained of transformers wrote"
        )
    return str(folder)


def _preprocessor(where: str) -> Mapping[str, Any]:
    """Return the settings of the images' preprocessor; none where there is no such file."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(where)
    except OSError:
        return {}
    found: dict[str, Any] = settings
    return found


def _side(images: Mapping[str, Any], where: str) -> int | None:
    """Return the side of the cropped image, however a preprocessor writes it; None if unsaid."""
    size = images.get("crop_size") or images.get("size")
    if size is None or isinstance(size, int):
        return size
    sides = set(size.values())
    if len(sides) != 1:
        raise UserError(
            f"Expected {where} to take square images but its preprocessor crops to {size}; choose "
            "another model"
        )
    return int(sides.pop())


def _input_size(config: ModelConfig) -> int:
    return _look(config).size


def load_clip(config: ModelConfig) -> CLIPBackbone:
    """Build the backbone; see :func:`cl_lora.models.backbones.load_backbone`."""
    source = _look(config)
    if source.size % source.patch:
        raise UserError(
            f"Expected model.img_size to be a multiple of {source.patch}, the side of a patch of "
            f"{source.where}, but got {source.size}; give another"
        )
    whole = _whole(source.where)
    text = {
        name: [value] for name, value in whole.state_dict().items() if name.startswith(_TEXT_PARTS)
    }
    return CLIPBackbone(
        _image_tower(whole).requires_grad_(False).eval(),
        source.size,
        list(config.mean or source.mean),
        list(config.std or source.std),
        prompts=PROMPTS if config.prompts is None else config.prompts,
        task_prompts=config.task_prompts or {},
        text=weights_digest(text),
        embed=lambda texts, device: _embedded(source.where, texts, device),
    ).eval()


def _whole(where: str) -> Any:
    """Return both towers in float32.

    Raises:
        UserError: if they cannot be loaded, or weights are missing.
    """
    with _reading(where), _quiet(where):
        from transformers import CLIPModel

        # Weights that are no safetensors are read with torch's weights_only.
        model, about = CLIPModel.from_pretrained(where, output_loading_info=True, weights_only=True)
    missing = sorted(about["missing_keys"])
    if missing:
        raise UserError(
            f"Expected the weights of both towers of a CLIP model in {where} but there is no "
            f"{missing[0]!r}; use the whole model, as save_pretrained of CLIPModel writes it"
        )
    check_stored(where)
    check_all_finite(model.state_dict().items(), where)
    return model.float()


def _image_tower(whole: Any) -> nn.Module:
    """Return the image tower with its projection, made of the parts of the whole model."""
    from transformers import CLIPVisionModelWithProjection

    config = copy.deepcopy(whole.config.vision_config)
    config.projection_dim = whole.config.projection_dim
    with torch.device("meta"):  # parts without weights, as all of them are replaced
        tower: Any = CLIPVisionModelWithProjection(config)
    tower.vision_model = whole.vision_model
    tower.visual_projection = whole.visual_projection
    made: nn.Module = tower
    return made


@torch.no_grad()
def _embedded(where: str, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return projected embeddings (n, d) of texts, and what cosines are multiplied by, ()."""
    with _reading(where):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    whole = _whole(where).eval()
    longest = int(whole.config.text_config.max_position_embeddings)
    for text in texts:
        inner = tokenizer(text)["input_ids"][1:-1]
        if len(inner) + 2 > longest:
            raise UserError(
                f"Expected texts of at most {longest} tokens but {text!r} has {len(inner) + 2}; "
                "shorten the label or model.prompts"
            )
        if tokenizer.unk_token_id in inner:
            raise UserError(
                f"The tokenizer of {where} does not know all of {text!r}; give a folder that has "
                "the tokenizer's own files (vocab.json and merges.txt, or tokenizer.json)"
            )
    tower, projection = whole.text_model.to(device), whole.text_projection.to(device)
    parts = []
    for begin in range(0, len(texts), _BATCH):
        tokens = tokenizer(list(texts[begin : begin + _BATCH]), padding=True, return_tensors="pt")
        pooled = tower(
            input_ids=tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device),
        ).pooler_output
        parts.append(projection(pooled))
    return torch.cat(parts), whole.logit_scale.exp()


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Say in a sentence what of a folder or of the hub cannot be read."""
    try:
        yield
    except Exception as error:
        # Whatever a reader meets in bytes that are no model, or on the way to the hub.
        raise UserError(
            f"{where} could not be read as a CLIP model of transformers ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160].rstrip('.')}); give the name of one on the hub, "
            "or a whole local folder with model.checkpoint=FOLDER"
        ) from error


@contextlib.contextmanager
def _quiet(where: str) -> Iterator[None]:
    """Show no progress bar beside the run's own, as reading a local folder takes a moment.

    Nor is a table shown of weights that are missing, which one sentence tells.
    """
    from transformers.utils import logging

    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if Path(where).is_dir():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()


register_source(
    ModelSource(
        "clip",
        "the image tower of a CLIP model of transformers, from the hub or a folder",
        load_clip,
        _input_size,
        CLIP_TARGETS,
        takes=frozenset({"checkpoint", "img_size", "mean", "std", "prompts", "task_prompts"}),
    )
)
