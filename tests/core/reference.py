"""The plain prompted forward that judges the fast one: prompts as tokens through whole timm blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.methods import Depth


def features(backbone: Backbone, images: Tensor, prompts: Tensor, depth: Depth, pooling: Pooling) -> Tensor:
    """One image at a time, one block at a time, written as the paper says it; prompts [k, m, d]."""
    return torch.stack([_one(backbone, image, prompts, depth, pooling) for image in images])


def _one(backbone: Backbone, image: Tensor, prompts: Tensor, depth: Depth, pooling: Pooling) -> Tensor:
    model, t, m = backbone.model, backbone.model.num_prefix_tokens, prompts.shape[1]
    x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    blocks = list(model.blocks)
    if depth is Depth.SHALLOW:
        x = torch.cat([x[:t], prompts[0], x[t:]])
        for block in blocks:
            x = block(x[None])[0]
    else:
        bare = len(blocks) - len(prompts)
        assert bare == (0 if depth is Depth.DEEP else max(0, len(blocks) - 4))
        for block in blocks[:bare]:
            x = block(x[None])[0]
        for at, block in enumerate(blocks[bare:]):
            if at:
                x = torch.cat([x[:t], x[t + m :]])  # what the block before made of its prompts is thrown away
            x = torch.cat([x[:t], prompts[at], x[t:]])
            x = block(x[None])[0]
    if pooling is Pooling.CLS:
        pooled = x[0]
    elif pooling is Pooling.MEAN_ALL:
        pooled = torch.stack(list(x[t:])).mean(0)
    elif pooling is Pooling.MEAN_PATCHES:
        pooled = x[t + m :].mean(0)
    else:
        y = model.norm(torch.cat([x[:t], x[t + m :]])[None])
        return model.fc_norm(model.attn_pool(y if model.pool_include_prefix else y[:, t:]))[0]  # type: ignore[no-any-return]
    return model.fc_norm(model.norm(pooled[None]))[0]  # type: ignore[no-any-return]
