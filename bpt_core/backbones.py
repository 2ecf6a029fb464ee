"""Name -> frozen Vision Transformer, ready for prompts.

A backbone is shared by every customer, so it never changes: parameters take no gradient, the model stays
in eval mode, and its fingerprint says which weights a prompt set was learned on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from bpt_core import catalog
from bpt_core.catalog import Pooling
from bpt_core.errors import BackboneError

# What checkpoints carry beside the encoder: classifier heads and the decoder of a masked autoencoder.
_NOT_ENCODER = ("head.", "head_drop.", "decoder", "mask_token", "pre_logits.")
_WRAPPERS = ("model", "state_dict", "module", "teacher")


@dataclass(frozen=True)
class Backbone:
    """A frozen timm ViT with what is needed to feed it and to read it.

    `image_size` in pixels (square), `embed_dim` = d, `depth` = number of blocks L.
    """

    name: str
    model: Any  # timm's VisionTransformer; timm ships no types
    pooling: Pooling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        return int(self.model.patch_embed.img_size[0])

    @property
    def patch_size(self) -> int:
        return int(self.model.patch_embed.patch_size[0])

    @property
    def embed_dim(self) -> int:
        return int(self.model.embed_dim)

    @property
    def depth(self) -> int:
        return len(self.model.blocks)

    @property
    def device(self) -> torch.device:
        parameter: Tensor = next(self.model.parameters())
        return parameter.device

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How an upright RGB image becomes the model's input; part of every artifact."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over every parameter and buffer, by name, shape and float32 bytes."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(json.dumps([key, list(tensor.shape)]).encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] on any device -> float32 [B, 3, S, S] on the backbone's device."""
        pixels = pixels.to(self.device, non_blocking=True).float().div_(255)
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        return pixels.sub_(mean).div_(std)


def load_backbone(name: str, *, weights: Path | None = None, device: str = "cpu") -> Backbone:
    """The frozen backbone `name`, with weights from `weights`, the bundle, or timm's hub, in this order.

    Raises BackboneError: `backbone_unknown`, `backbone_unsupported` (not a plain ViT),
    `weights_unavailable` (neither a file nor the hub could be had), `weights_mismatch`.
    """
    spec = catalog.CATALOG.get(name)
    if weights is None and spec is not None and spec.bundled is not None:
        weights = catalog.WEIGHTS_DIRECTORY / spec.bundled
    if spec is not None and spec.architecture:
        model = VisionTransformer(**spec.architecture)
    elif timm.is_model(name.split(".")[0]):
        model = _create(name, pretrained=weights is None)
    else:
        raise BackboneError(f"timm has no model named {name!r}", code="backbone_unknown")
    if weights is not None:
        check_supported(model, name)
        _load_weights(model, weights)
    if spec is not None:
        return freeze(model, name, pooling=spec.pooling, mean=spec.mean, std=spec.std, device=device)
    return freeze(model, name, device=device)


def freeze(
    model: Any,
    name: str,
    *,
    pooling: Pooling | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    device: str = "cpu",
) -> Backbone:
    """Any plain timm ViT as a Backbone; what is not given is read from the model's own timm configuration."""
    check_supported(model, name)
    if pooling is None:
        own = Pooling.MAP if model.attn_pool is not None else Pooling.MEAN_PATCHES
        pooling = Pooling.CLS if model.global_pool == "token" else own
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    mean = mean or tuple(config.get("mean", (0.5, 0.5, 0.5)))
    std = std or tuple(config.get("std", (0.5, 0.5, 0.5)))
    model = model.to(device).eval().requires_grad_(False)
    backbone = Backbone(name=name, model=model, pooling=pooling, mean=mean, std=std)
    check_pooling(backbone, pooling)
    return backbone


def check_pooling(backbone: Backbone, pooling: Pooling) -> None:
    """BackboneError `backbone_unsupported` where the backbone has not what this pooling reads."""
    if pooling is Pooling.CLS and not backbone.model.has_class_token:
        raise BackboneError(f"{backbone.name} has no class token to pool", code="backbone_unsupported")
    if pooling is Pooling.MAP and backbone.model.attn_pool is None:
        raise BackboneError(f"{backbone.name} has no attention pool", code="backbone_unsupported")


def check_supported(model: Any, name: str) -> None:
    """BackboneError `backbone_unsupported` unless `model` is a plain ViT: timm `Block`s with `Attention`."""
    if not isinstance(model, VisionTransformer):
        raise BackboneError(
            f"{name} is a {type(model).__name__}; prompts need a plain Vision Transformer",
            code="backbone_unsupported",
        )
    for block in model.blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            kind = f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
            raise BackboneError(
                f"{name} has blocks of the kind {kind}; supported is Block with Attention",
                code="backbone_unsupported",
            )


def _create(name: str, *, pretrained: bool) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub client raises many kinds, from OSError to its own
        raise BackboneError(
            f"the weights of {name} could not be fetched ({type(error).__name__}: {error}); "
            f"give a local file named {name}.safetensors or {name}.pth",
            code="weights_unavailable",
        ) from error


def _load_weights(model: Any, path: Path) -> None:
    if not path.is_file():
        raise BackboneError(f"there is no weights file {path}", code="weights_unavailable")
    state: dict[str, Any]
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and header errors come in many kinds
        raise BackboneError(f"{path.name} could not be read: {error}", code="weights_mismatch") from error
    for wrapper in _WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, dict):
            state = inner
    state = {key: value.float() for key, value in state.items() if not key.startswith(_NOT_ENCODER)}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise BackboneError(f"{path.name} does not fit the model: {error}", code="weights_mismatch") from error
