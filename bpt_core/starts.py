"""Where prompts of `spt` start: tokens of the customer's own images that enter the block, as they are or clustered."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bpt_core import vit
from bpt_core.backbones import Backbone


@torch.no_grad()
def patch_tokens(backbone: Backbone, batches: Iterable[Tensor], blocks: range) -> Tensor:
    """Batches of normalised images [B, 3, S, S] -> the patch tokens entering each block, [k, N, d]."""
    prefix = backbone.model.num_prefix_tokens
    kept: list[list[Tensor]] = [[] for _ in blocks]
    for batch in batches:
        for at, entering in enumerate(vit.entering(backbone, batch, blocks)):
            kept[at].append(entering[:, prefix:].flatten(0, 1))
    return torch.stack([torch.cat(parts) for parts in kept])


def centres(tokens: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Tokens [N, d] -> k-means centres [count, d] (Lloyd's rounds from a random sample; needs count <= N)."""
    found = sample(tokens, count, generator)
    for _ in range(rounds):
        nearest = torch.cdist(tokens, found).argmin(dim=1)
        sums = torch.zeros_like(found).index_add_(0, nearest, tokens)
        sizes = nearest.bincount(minlength=count).to(tokens.dtype)[:, None]
        found = torch.where(sizes > 0, sums / sizes.clamp(min=1), found)  # an empty centre stays where it is
    return found


def sample(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Tokens [N, d] -> a random choice of them [count, d], none twice while there are enough."""
    order = torch.cat([torch.randperm(len(tokens), generator=generator) for _ in range(-(-count // len(tokens)))])
    return tokens[order[:count].to(tokens.device)]
