"""A backbone of two small blocks and a dataset of drawn flowers: enough to see every formula at work in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from bpt_core import images, samples
from bpt_core.backbones import Backbone, freeze
from bpt_core.catalog import Pooling
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split

MakeBackbone = Callable[..., Backbone]


@pytest.fixture
def make_backbone() -> MakeBackbone:
    """make_backbone(pooling=..., seed=..., **timm arguments): two blocks, 32 px, patch 8, width 32, random weights."""

    def make(pooling: Pooling = Pooling.MEAN_ALL, seed: int = 0, **arguments: Any) -> Backbone:
        torch.manual_seed(seed)
        shape: dict[str, Any] = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 0,
        }
        return freeze(VisionTransformer(**{**shape, **arguments}), "tiny", pooling=pooling)

    return make


@pytest.fixture
def backbone(make_backbone: MakeBackbone) -> Backbone:
    return make_backbone()


def write_flowers(directory: Path, *, classes: int, train: int, val: int, test: int) -> PackedDataset:
    """Drawn flowers, packed; the numbers are images per class."""
    counts = {Split.TRAIN: train, Split.VAL: val, Split.TEST: test}
    with ShardWriter(directory, samples.CLASS_NAMES[:classes]) as writer:
        seed = 0
        for split, count in counts.items():
            for _ in range(count):
                for label in range(classes):
                    seed += 1
                    image = images.encode(samples.draw(label, seed))
                    writer.write(Item(image, f"{split}/{label}/{seed}.png", (label,), split))
    return PackedDataset(writer.shards)


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Three classes; 8 training, 4 validation and 4 test images of each."""
    return write_flowers(tmp_path_factory.mktemp("flowers"), classes=3, train=8, val=4, test=4)
