"""The whitening matrix of a block, from the customer's own images.

Over the patch tokens X [N, d] that enter the block (before norm1, prefix tokens left out, no prompts anywhere):

    X~ = Wq Wk^T X^T        S = X~ X~^T / N        S = U diag(s) U^T        W = U diag((s + eps)^(-1/2)) U^T

with eps = 1e-6 trace(S) / d (arXiv 2506.22908; S is a second moment: no mean is subtracted). As X~ is linear in X,
S = M (X^T X / N) M^T with M = Wq Wk^T: one pass over the images adds up X^T X in float64 and holds no X~.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpt_core import vit
from bpt_core.backbones import Backbone

EPS_SHARE = 1e-6  # eps as a share of the mean eigenvalue of S


@dataclass(frozen=True)
class Whitening:
    """`matrix` W [d, d] float64 of one block, and what it was made from."""

    block: int
    matrix: Tensor
    images: int
    tokens: int
    eigenvalues: tuple[float, float]  # smallest and largest of S
    eps: float

    def report(self) -> dict[str, Any]:
        return {
            "block": self.block,
            "images": self.images,
            "tokens": self.tokens,
            "smallest_eigenvalue": self.eigenvalues[0],
            "largest_eigenvalue": self.eigenvalues[1],
            "eps": self.eps,
        }


@torch.no_grad()
def whiten(
    backbone: Backbone, batches: Iterable[Tensor], blocks: range, *, after_norm: bool = False
) -> list[Whitening]:
    """One pass over batches of normalised images [B, 3, S, S] -> the whitening of each block.

    `after_norm` takes X after the block's norm1 instead of before it.
    """
    d, prefix = backbone.embed_dim, backbone.model.num_prefix_tokens
    moments = torch.zeros(len(blocks), d, d, dtype=torch.float64, device=backbone.device)
    images = tokens = 0
    for batch in batches:
        for at, entering in enumerate(vit.entering(backbone, batch, blocks)):
            x = backbone.model.blocks[blocks[at]].norm1(entering) if after_norm else entering
            x = x[:, prefix:].flatten(0, 1).double()
            moments[at] += x.T @ x
        images += len(batch)
        tokens += len(x)
    return [
        _whitening(backbone, block, moment / tokens, images, tokens)
        for block, moment in zip(blocks, moments, strict=True)
    ]


def query_key_product(block: Any) -> Tensor:
    """M = Wq Wk^T [d, d] in float64, all heads side by side; timm keeps qkv as [3 a, d], applied as x @ weight.T."""
    width = block.attn.attn_dim
    weight: Tensor = block.attn.qkv.weight.detach().double()
    return weight[:width].T @ weight[width : 2 * width]


def _whitening(backbone: Backbone, block: int, moment: Tensor, images: int, tokens: int) -> Whitening:
    product = query_key_product(backbone.model.blocks[block])
    second = product @ moment @ product.T
    second = (second + second.T) / 2
    eps = EPS_SHARE * second.trace().item() / len(second)
    values, vectors = torch.linalg.eigh(second)
    # Rounding leaves eigenvalues of a singular S a little below 0.
    matrix = vectors @ torch.diag((values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    spread = (values.min().item(), values.max().item())
    return Whitening(block, matrix, images, tokens, spread, eps)
