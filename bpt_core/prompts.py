"""The prompt parameterisations: modules that hold what is trained and fold it into plain prompts P~ [m, d]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bpt_core.backbones import Backbone
from bpt_core.recipe import Method, Recipe


class BilinearPrompts(nn.Module):
    """`bpt-bilinear`: P~ = A B^T with A [m, p] ~ N(0, 0.02^2) and B [d, p] Xavier-uniform; (m + d) p numbers."""

    def __init__(self, prompts: int, rank: int, embed_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(6 / (embed_dim + rank))
        self.A = nn.Parameter(torch.randn(prompts, rank, generator=generator) * 0.02)
        self.B = nn.Parameter((torch.rand(embed_dim, rank, generator=generator) * 2 - 1) * bound)

    def fold(self) -> Tensor:
        """-> P~ [m, d]: the plain prompts that are served."""
        return self.A @ self.B.T


def build_prompts(recipe: Recipe, backbone: Backbone, generator: torch.Generator) -> BilinearPrompts | None:
    """The prompts that `recipe` asks for, freshly initialised; None for the linear probe."""
    if recipe.method is Method.LINEAR_PROBE:
        return None
    return BilinearPrompts(recipe.prompts, recipe.rank, backbone.embed_dim, generator)
