"""Vision Transformers of timm, from the hub, a file or the package, as frozen backbones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_lora.adapters.injection import TARGETS, parts_of_qkv, split_qkv
from cl_lora.models.base import TIMM, ModelConfig, ModelSource, register_source
from cl_lora.models.checkpoint_file import check_finite, is_grid, read_state
from cl_lora.models.images import ImageBackbone, check_features
from cl_lora.support.errors import UserError, unknown_name

EMBEDDED = "embedded"
_TRUNK = frozenset(
    {
        *("blocks", "patch_embed", "pos_embed", "cls_token", "reg_token", "dist_token"),
        *("norm", "norm_pre", "fc_norm", "attn_pool"),
    }
)
"""Parts that compute features: a model without one of them computes others."""
_SPLIT_KEY = re.compile(r"(.*\.qkv)\.[qkv]\.(weight|bias)$")


class _ReachedError(Exception):
    """A block was reached whose input was asked for."""


class TimmBackbone(ImageBackbone):
    """A timm Vision Transformer without its classifier: uint8 images to pooled features.

    Args:
        vit: the timm model.
        img_size: its input size in pixels.
        mean: per-channel mean of the normalisation.
        std: per-channel standard deviation of the normalisation.
    """

    def __init__(
        self, vit: nn.Module, img_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(
            vit,
            int(vit.num_features),  # type: ignore[arg-type]
            TARGETS,
            img_size,
            mean,
            std,
        )

    def choose_attention(self) -> None:
        """Choose fused or written-out attention; call it before each pass through ``network``."""
        if self.spell_out_attention:
            for module in self.network.modules():
                if hasattr(module, "fused_attn"):
                    fused = not (torch.is_grad_enabled() or self.one_attention)
                    module.__dict__["fused_attn"] = fused

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features (batch, features) of uint8 images (batch, 3, img_size, img_size)."""
        self.choose_attention()
        out: Tensor = self.network(self.normalise(inputs))
        return out

    @property
    def depth(self) -> int:
        """How many blocks the network has; 0 where they are no plain row behind one embedding."""
        plain = isinstance(self.network.blocks, nn.Sequential)
        return len(self._blocks) if plain and hasattr(self.network, "num_prefix_tokens") else 0

    @property
    def _blocks(self) -> nn.Sequential:
        blocks = self.network.blocks
        assert isinstance(blocks, nn.Sequential)
        return blocks

    def tokens(self, inputs: Tensor, block: int) -> Tensor:
        """Return the input (batch, P, d) of a block for uint8 images, and compute no further."""
        if not 0 <= block < self.depth:
            return super().tokens(inputs, block)
        found: list[Tensor] = []

        def stop(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.append(arguments[0])
            raise _ReachedError

        handle = self._blocks[block].register_forward_pre_hook(stop)
        try:
            self(inputs)
        except _ReachedError:
            return found[0]
        finally:
            handle.remove()
        raise AssertionError("the network goes through all of its blocks")

    def patches(self, tokens: Tensor) -> Tensor:
        """Return the tokens behind those of class and registers."""
        return tokens[:, int(self.network.num_prefix_tokens) :]  # type: ignore[arg-type]

    def advance(self, tokens: Tensor, block: int, to: int) -> Tensor:
        """Return the input of block ``to`` from the input of an earlier one."""
        self.choose_attention()
        out: Tensor = self._blocks[block:to](tokens) if to > block else tokens
        return out

    def resume(self, tokens: Tensor, block: int) -> Tensor:
        """Return features (batch, features) from the input of a block."""
        self.choose_attention()
        network: Any = self.network
        out: Tensor = network.forward_head(network.norm(self._blocks[block:](tokens)))
        return out

    def separate(self, targets: Sequence[str]) -> None:
        """Split the fused projection where q, k or v is adapted by itself."""
        if parts_of_qkv(targets):
            split_qkv(self.network)

    def weights(self) -> Mapping[str, Sequence[Tensor]]:
        """Return every weight by name: whether q, k and v are apart does not change what it is."""
        weights: dict[str, list[Tensor]] = {}
        for key, value in self.network.state_dict().items():
            # The three parts of a split projection come in the order in which they were cut.
            weights.setdefault(_SPLIT_KEY.sub(r"\1.\2", key), []).append(value)
        return weights


def _input_size(config: ModelConfig) -> int:
    if config.img_size is not None:
        return config.img_size
    if config.name == EMBEDDED:
        return int(_embedded_settings()["architecture"]["img_size"])
    import timm

    _check_name(config.name)
    cfg = timm.get_pretrained_cfg(config.name)
    if cfg is None:
        raise UserError(f"timm does not say the input size of {config.name!r}; give model.img_size")
    return int(cfg.input_size[-1])


def load_vit(config: ModelConfig) -> TimmBackbone:
    """Build the backbone; see :func:`cl_lora.models.backbones.load_backbone`."""
    vit, mean, std = _embedded(config) if config.name == EMBEDDED else _timm(config)
    vit.requires_grad_(False).eval()
    size = _input_size(config)
    made = TimmBackbone(vit, size, list(config.mean or mean), list(config.std or std)).eval()
    if config.checkpoint is not None:
        check_features(made, config.checkpoint)
    return made


def _check_name(name: str) -> None:
    import timm

    if name in ("", "???"):  # what Hydra writes for a value that the user must give
        raise UserError(
            "Expected model.name to be a Vision Transformer of timm but got none; "
            "give model.name=NAME, e.g. vit_small_patch16_224"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", name, [*timm.list_models("*vit*"), EMBEDDED])
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise unknown_name("timm model", name, [architecture, *known])


def _timm(config: ModelConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    import timm

    _check_name(config.name)
    from_hub = config.pretrained and config.checkpoint is None
    arguments: dict[str, Any] = {"num_classes": 0, "pretrained": from_hub}
    if config.img_size is not None:
        arguments["img_size"] = config.img_size
    try:
        vit = timm.create_model(config.name, **arguments)
    except (OSError, RuntimeError) as error:
        if not from_hub:
            raise
        raise UserError(
            f"The weights of {config.name!r} could not be loaded from the hub "
            f"({type(error).__name__}); give local ones with model.checkpoint=FILE or random ones "
            "with model.pretrained=false"
        ) from error
    except (TypeError, AssertionError) as error:
        raise UserError(
            f"Expected model.name to be a Vision Transformer that takes img_size="
            f"{config.img_size} but {config.name!r} does not ({error}); give another"
        ) from error
    if not hasattr(vit, "blocks"):
        raise UserError(
            f"Expected model.name to be a Vision Transformer but {config.name!r} has no blocks; "
            "see timm.list_models('vit*')"
        )
    if config.checkpoint is not None:
        load_checkpoint(vit, config.checkpoint)
    data = timm.data.resolve_model_data_config(vit)
    return vit, data["mean"], data["std"]


def load_checkpoint(vit: nn.Module, path: str | Path) -> None:
    """Load local weights into ``vit``; a classifier in the file is left out.

    The position embedding is resampled to the model's input size. Weights of half or double
    precision become the model's.

    Raises:
        UserError: if the file is no checkpoint, one of another architecture, or one with weights
            that are not finite.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    path = Path(path).expanduser()
    stored = read_state(path)
    state = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    wanted = vit.state_dict()
    _check_embedding(vit, state, path)
    try:
        state = checkpoint_filter_fn(state, vit)
    except Exception as error:
        # It takes tensors apart by their names: whatever fails there is made for another model.
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(_other_architecture(path, detail)) from error
    odd = sorted(k for k in state if k not in wanted and k.split(".")[0] in _TRUNK)
    if odd:
        raise UserError(_other_architecture(path, f"it has {odd[0]!r}, which this model lacks"))
    missing = [k for k in wanted if k not in state]
    if missing:
        raise UserError(_other_architecture(path, f"it has no {missing[0]!r}"))
    weights = {k: state[k] for k in wanted}
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            shapes = f"{key!r} is {tuple(value.shape)}, expected {tuple(wanted[key].shape)}"
            raise UserError(_other_architecture(path, shapes))
        check_finite(key, value, path)
    vit.load_state_dict(weights)


def _check_embedding(vit: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Check what timm would make fit by resampling: patches of one size, places on a square."""
    wanted = vit.state_dict()
    patches = "patch_embed.proj.weight"
    if patches in state and patches in wanted:
        found, expected = tuple(state[patches].shape), tuple(wanted[patches].shape)
        if len(found) == 4 and found != expected:
            raise UserError(
                _other_architecture(path, f"{patches!r} is {found}, expected {expected}")
            )
    if "pos_embed" in state and "pos_embed" in wanted:
        found, expected = tuple(state["pos_embed"].shape), tuple(wanted["pos_embed"].shape)
        prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
        places = len(found) == 3 and (found[0], found[2]) == (expected[0], expected[2])
        if not (found == expected or (places and is_grid(found[1] - int(prefix)))):  # type: ignore[arg-type]
            raise UserError(
                _other_architecture(
                    path, f"'pos_embed' is {found}, expected {expected} or that of another square"
                )
            )


def _other_architecture(path: Path, detail: str) -> str:
    return (
        f"The checkpoint {path} belongs to another architecture ({detail}); "
        "choose the model that it was made for"
    )


def _embedded_settings() -> dict[str, Any]:
    text = (files("cl_lora.models") / "embedded" / "backbone.json").read_text()
    settings: dict[str, Any] = json.loads(text)
    return settings


def embedded_architecture(img_size: int | None = None) -> dict[str, Any]:
    """Return the arguments of timm's ``VisionTransformer`` that make the embedded backbone."""
    architecture = {**_embedded_settings()["architecture"], "num_classes": 0}
    return architecture if img_size is None else {**architecture, "img_size": img_size}


def _embedded(config: ModelConfig) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    from timm.models.vision_transformer import VisionTransformer

    settings = _embedded_settings()
    vit: nn.Module = VisionTransformer(**embedded_architecture(config.img_size))
    with as_file(files("cl_lora.models") / "embedded" / "backbone.safetensors") as weights:
        load_checkpoint(vit, config.checkpoint or weights)
    return vit, settings["mean"], settings["std"]


register_source(
    ModelSource(
        TIMM,
        "a Vision Transformer of timm by its name, or the embedded one",
        load_vit,
        _input_size,
        TARGETS,
        takes=frozenset({"pretrained", "checkpoint", "img_size", "mean", "std"}),
        exports=True,
    )
)
