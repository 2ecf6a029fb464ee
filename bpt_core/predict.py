"""Prediction: a chosen prompt set applied to the shared frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bpt_core import vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import probabilities
from bpt_core.methods import Depth, prompted_blocks
from bpt_core.transforms import evaluation_view


class Predictor:
    """A frozen backbone that answers for any prompt set learned on it.

    predictor = Predictor(load_backbone("vit_tiny_patch8_64.mae"))
    probabilities = predictor.predict(images, artifact.from_bytes(data))
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def check(self, prompt_set: PromptSet) -> None:
        """ArtifactError `artifact_schema` unless the prompt set was learned on exactly this backbone."""
        if prompt_set.backbone_fingerprint != self.backbone.fingerprint:
            raise ArtifactError(
                f"the prompt set was learned on other weights of {prompt_set.backbone} "
                f"({prompt_set.backbone_fingerprint[:12]}) than are loaded ({self.backbone.fingerprint[:12]})",
                code="artifact_schema",
            )

        blocks = len(prompted_blocks(Depth(prompt_set.method["depth"]), self.backbone.depth))
        if prompt_set.prompts is not None and len(prompt_set.prompts) != blocks:
            raise ArtifactError(
                f"{len(prompt_set.prompts)} blocks have prompts where {blocks} should", code="artifact_schema"
            )

    @torch.inference_mode()
    def predict(self, images: Sequence[Image.Image], prompt_set: PromptSet) -> Tensor:
        """Upright RGB images -> calibrated probabilities, float32 [B, C] on the CPU."""
        self.check(prompt_set)
        device = self.backbone.device
        pixels = np.stack([evaluation_view(image, self.backbone.image_size) for image in images])
        normalised = self.backbone.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        prompts = None if prompt_set.prompts is None else prompt_set.prompts.to(device)
        depth, pooling = Depth(prompt_set.method["depth"]), Pooling(prompt_set.pooling)
        features = vit.features(self.backbone, normalised, prompts, depth, pooling)
        logits = features @ prompt_set.head_weight.to(device).T + prompt_set.head_bias.to(device)
        return probabilities(logits, prompt_set.task, prompt_set.calibration.temperature).float().cpu()
