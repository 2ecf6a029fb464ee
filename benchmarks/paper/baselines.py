"""What the service does not have: full fine-tuning, GateVPT, LoRA (HF PEFT) and SSF.

Each trains a copy of the backbone, or numbers that act on it, in the place of prompts; images, views, order, schedule,
objective, head and validation are those of `Group`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paper.plan import Baseline
from bpt_core import vit
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.compute import Compute
from bpt_core.prompts import Prompts
from bpt_core.recipe import Recipe
from bpt_core.train import Group, Images
from bpt_core.trial import Trial

LORA_RANK = 8
GATE_START = -5.0  # before the sigmoid: prompts begin by passing the blocks nearly unchanged
TEMPERATURES = (0.01, 10.0)


class Adapted(Prompts):
    """A copy of the backbone of which something is trained. Frozen weights are no state of it."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__()
        assert pooling in (Pooling.CLS, Pooling.MEAN_ALL, Pooling.MEAN_PATCHES)
        # In a tuple, so that the model is no submodule.
        self._model = (copy.deepcopy(backbone.model),)
        self._pooling = pooling
        self.trained = nn.ParameterList()

    @property
    def model(self) -> Any:
        return self._model[0]

    def fold(self) -> Tensor:
        """There are no plain prompts."""
        return torch.empty(0)

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> [B, d], with a gradient to what is trained."""
        tokens = vit.embed(replace(backbone, model=self.model), images)
        return self._pooled(self._through(tokens))

    def _through(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model.blocks(tokens)
        return found

    def _pooled(self, tokens: Tensor) -> Tensor:
        pooled = tokens[:, 0] if self._pooling is Pooling.CLS else tokens[:, self.model.num_prefix_tokens :].mean(dim=1)
        features: Tensor = self.model.fc_norm(self.model.norm(pooled))
        return features


class Full(Adapted):
    """Everything is trained."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__(backbone, pooling)
        self.model.requires_grad_(True)
        self.trained.extend(self.model.parameters())


class Lora(Adapted):
    """Low-rank additions to the projections of attention, as HF PEFT makes them."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # imports transformers: seconds that only this one pays

        super().__init__(backbone, pooling)
        config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["qkv"], lora_dropout=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT has remarks on models that are not from its hub
            inject_adapter_in_model(config, self.model)
        self.trained.extend(parameter for parameter in self.model.parameters() if parameter.requires_grad)


class Ssf(Adapted):
    """A scale and a shift after every operation (arXiv 2210.08823); they begin as 1 and 0."""

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__(backbone, pooling)
        model, d = self.model, backbone.embed_dim
        last = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
        operations = [(model.patch_embed, d), (last, d)]
        for block in model.blocks:
            linear = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
            operations += [(block.norm1, d), (block.norm2, d), *((each, each.out_features) for each in linear)]
        for module, width in operations:
            scale = nn.Parameter(torch.ones(width, device=backbone.device))
            shift = nn.Parameter(torch.zeros(width, device=backbone.device))
            self.trained.extend([scale, shift])
            module.register_forward_hook(
                lambda _module, _inputs, output, scale=scale, shift=shift: output * scale + shift
            )


class GateVpt(Adapted):
    """Shallow prompts that each block but the last mixes with what they were before it, by a learned gate, and a
    learned temperature of every block's attention.
    """

    def __init__(self, backbone: Backbone, pooling: Pooling, prompts: int, generator: torch.Generator) -> None:
        super().__init__(backbone, pooling)
        bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.embed_dim))
        start = (torch.rand(1, prompts, backbone.embed_dim, generator=generator) * 2 - 1) * bound
        self.P = nn.Parameter(start.to(backbone.device))
        self.gates = nn.Parameter(torch.full((backbone.depth - 1,), GATE_START, device=backbone.device))
        self.temperatures = nn.Parameter(torch.ones(backbone.depth, device=backbone.device))
        for index, block in enumerate(self.model.blocks):
            block.attn.q_norm.register_forward_hook(
                lambda _module, _inputs, query, index=index: query / self.temperatures[index]
            )

    def _through(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            self.temperatures.clamp_(*TEMPERATURES)
        prefix, count = self.model.num_prefix_tokens, self.P.shape[1]
        tokens = vit.insert(tokens, self.P, prefix)
        own = slice(prefix, prefix + count)
        for index, block in enumerate(self.model.blocks):
            before, tokens = tokens[:, own], block(tokens)
            if index < len(self.gates):
                mixed = before.lerp(tokens[:, own], self.gates[index].sigmoid())
                tokens = torch.cat([tokens[:, :prefix], mixed, tokens[:, own.stop :]], dim=1)
        if self._pooling is Pooling.MEAN_PATCHES:
            tokens = torch.cat([tokens[:, :prefix], tokens[:, own.stop :]], dim=1)
        return tokens


class BaselineGroup(Group):
    """One trial of a baseline. Its recipe is one for `vpt`, of which only GateVPT has the prompts."""

    def __init__(
        self, baseline: Baseline, backbone: Backbone, images: Images, recipes: Sequence[Recipe], compute: Compute
    ) -> None:
        assert len(recipes) == 1
        self._baseline = baseline
        super().__init__(backbone, images, recipes, compute)

    def _trial(self, recipe: Recipe) -> Trial:
        generator = torch.Generator().manual_seed(recipe.seed)
        backbone = self.backbone
        self._adapted = adapt(self._baseline, backbone, self.pooling, recipe.prompts, generator)
        return Trial(
            recipe,
            self._adapted,
            embed_dim=backbone.embed_dim,
            classes=len(self.images.class_names),
            generator=generator,
            device=backbone.device,
        )

    @torch.no_grad()
    def _below(self, pixels: Tensor) -> Tensor:
        return self.backbone.normalise(pixels)

    def _features(self, tokens: Tensor, _trials: Sequence[Trial]) -> Tensor:
        with self.compute.autocast(self.backbone.device):
            return self._adapted.features(self.backbone, tokens).float()[None]

    def _row_bytes(self) -> int:
        return 3 * self.backbone.image_size**2 * 4


def adapt(
    baseline: Baseline, backbone: Backbone, pooling: Pooling, prompts: int, generator: torch.Generator
) -> Adapted:
    if baseline is Baseline.GATE_VPT:
        return GateVpt(backbone, pooling, prompts, generator)
    kinds = {Baseline.FULL: Full, Baseline.LORA: Lora, Baseline.SSF: Ssf}
    return kinds[baseline](backbone, pooling)
