"""The backbones this software knows by name: facts only, so that a process without torch can read them.

`backbones.load_backbone` also takes the name of any other plain timm Vision Transformer; what is
listed here is what a service offers and what has been given defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bpt_core.errors import BackboneError

WEIGHTS_DIRECTORY = Path(__file__).parent / "weights"


class Pooling(StrEnum):
    """How the tokens that leave the last block become one feature vector."""

    CLS = "cls"
    MEAN_PATCHES = "mean-patches"
    MEAN_ALL = "mean-all"  # prompts and patches, as the paper does on masked-autoencoder backbones
    MAP = "map"  # the frozen attention pool of a backbone that has one, over what timm gives it


@dataclass(frozen=True)
class BackboneSpec:
    """What is known of a backbone before its weights are touched.

    Sizes are in pixels (`image_size`, `patch_size`) and channels (`embed_dim`).
    `architecture` holds arguments of timm's VisionTransformer for a backbone timm has no name for.
    `fingerprint` is that of the `bundled` weights.
    """

    name: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    pooling: Pooling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    non_commercial: bool = False
    architecture: Mapping[str, Any] = field(default_factory=dict)
    bundled: str | None = None
    fingerprint: str | None = None


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_SPECS = (
    BackboneSpec(
        name="vit_tiny_patch8_64.mae",
        image_size=64,
        patch_size=8,
        embed_dim=192,
        depth=12,
        pooling=Pooling.MEAN_ALL,
        licence="bundled; trained on Tiny ImageNet photographs: research and evaluation only",
        architecture=MappingProxyType(
            {
                "img_size": 64,
                "patch_size": 8,
                "embed_dim": 192,
                "depth": 12,
                "num_heads": 3,
                "class_token": True,
                "global_pool": "avg",
                "num_classes": 0,
            }
        ),
        bundled="vit_tiny_patch8_64.mae.safetensors",
        fingerprint="6ef03ac75a4ee99ddf3638b5908062249affec213cdc515bfd014e31a4c20b77",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    ),
    BackboneSpec(
        name="vit_base_patch16_224.mae",
        image_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        pooling=Pooling.MEAN_ALL,
        licence="CC BY-NC 4.0",
        non_commercial=True,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    ),
    BackboneSpec(
        name="vit_base_patch16_224.augreg_in21k",
        image_size=224,
        patch_size=16,
        embed_dim=768,
        depth=12,
        pooling=Pooling.CLS,
        licence="Apache-2.0",
        mean=_HALF,
        std=_HALF,
    ),
    BackboneSpec(
        name="vit_small_patch16_224.augreg_in21k",
        image_size=224,
        patch_size=16,
        embed_dim=384,
        depth=12,
        pooling=Pooling.CLS,
        licence="Apache-2.0",
        mean=_HALF,
        std=_HALF,
    ),
)

CATALOG: Mapping[str, BackboneSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
DEFAULT_BACKBONE = "vit_tiny_patch8_64.mae"


def find(name: str) -> BackboneSpec:
    """The catalogue's entry for `name`; BackboneError `backbone_unknown` if there is none."""
    try:
        return CATALOG[name]
    except KeyError:
        raise BackboneError(
            f"no backbone is named {name!r}; known are {', '.join(CATALOG)}", code="backbone_unknown"
        ) from None


def known_fingerprint(directory: Path | None, spec: BackboneSpec) -> str | None:
    """Of the weights that are loaded for a backbone; None where only those that load them can know."""
    return spec.fingerprint if local_weights(directory, spec.name) is None else None


def local_weights(directory: Path | None, name: str) -> Path | None:
    """`<directory>/<name>.safetensors`, or `.pth`, if one is there: weights an operator put beside the service."""
    if directory is not None:
        for suffix in (".safetensors", ".pth"):
            if (path := directory / f"{name}{suffix}").is_file():
                return path
    return None
