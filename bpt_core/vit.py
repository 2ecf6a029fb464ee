"""The prompted forward pass: the one place that knows the inside of timm's Vision Transformer.

Tensor letters, used everywhere:
    B images in a batch      n patch tokens      t prefix tokens (class, registers)
    m prompts                d width             C classes         S image side in pixels
Prompts are an argument, never state of the model, so one frozen backbone serves every customer at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling


def embed(backbone: Backbone, images: Tensor) -> Tensor:
    """[B, 3, S, S] normalised -> [B, t + n, d]: the tokens that enter the first block."""
    model = backbone.model
    tokens: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    return tokens


def insert(tokens: Tensor, prompts: Tensor, prefix: int) -> Tensor:
    """[B, t + n, d], prompts [m, d] or one set per row [B, m, d] -> [B, t + m + n, d], prompts after the prefix."""
    prompts = prompts.expand(tokens.shape[0], -1, -1)
    return torch.cat([tokens[:, :prefix], prompts.to(tokens.dtype), tokens[:, prefix:]], dim=1)


def pool(backbone: Backbone, tokens: Tensor, prompt_count: int) -> Tensor:
    """[B, t + m + n, d] leaving the last block -> features [B, d], through the backbone's own final norm."""
    model = backbone.model
    prefix = model.num_prefix_tokens
    if backbone.pooling is Pooling.CLS:
        pooled = tokens[:, 0]
    elif backbone.pooling is Pooling.MEAN_ALL:
        pooled = tokens[:, prefix:].mean(dim=1)
    else:
        pooled = tokens[:, prefix + prompt_count :].mean(dim=1)
    # One of the two is the identity in timm: `norm` where the class token is pooled, `fc_norm` with means.
    features: Tensor = model.fc_norm(model.norm(pooled))
    return features


def features(backbone: Backbone, images: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Shallow prompting: images [B, 3, S, S] normalised, prompts [m, d] or [B, m, d] -> features [B, d].

    The prompts enter once, after positional embedding and pre-norm, and travel through every block.
    Without prompts this is the plain backbone.
    """
    tokens = embed(backbone, images)
    if prompts is not None:
        tokens = insert(tokens, prompts, backbone.model.num_prefix_tokens)
    tokens = backbone.model.blocks(tokens)
    return pool(backbone, tokens, 0 if prompts is None else prompts.shape[-2])
