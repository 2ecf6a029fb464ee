"""Random prompt sets: what prediction is measured and tested with needs no tuning."""

from __future__ import annotations

import torch

from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.dataset import SINGLE_LABEL
from bpt_core.evaluate import NO_CALIBRATION, Calibration
from bpt_core.methods import Depth, prompted_blocks


def random_prompt_set(
    backbone: Backbone,
    *,
    depth: Depth | None = Depth.SHALLOW,
    length: int = 4,
    classes: int = 3,
    pooling: Pooling | None = None,
    task: str = SINGLE_LABEL,
    calibration: Calibration = NO_CALIBRATION,
    seed: int = 0,
) -> PromptSet:
    """Without a depth a linear probe. The classes are named after the seed, so that they tell whose they are."""
    generator = torch.Generator().manual_seed(seed)
    prompts = None
    if depth is not None:
        blocks = len(prompted_blocks(depth, backbone.depth))
        prompts = 2 * torch.randn(blocks, length, backbone.embed_dim, generator=generator)
    return PromptSet(
        prompts=prompts,
        head_weight=torch.randn(classes, backbone.embed_dim, generator=generator),
        head_bias=torch.randn(classes, generator=generator),
        class_names=tuple(f"{seed}-{index}" for index in range(classes)),
        method={
            "type": "vpt" if depth else "linear-probe",
            "depth": str(depth or Depth.SHALLOW),
            "prompts": length if depth else 0,
            "rank": 0,
        },
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        pooling=str(pooling or backbone.pooling),
        preprocessing=backbone.preprocessing,
        task=task,
        calibration=calibration,
    )
