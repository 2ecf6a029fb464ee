"""The prompt parameterisations: modules that hold what is trained and fold it into plain prompts P~ [k, m, d]."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from bpt_core import starts
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.errors import InvalidSetting
from bpt_core.methods import Method, Start, prompted_blocks, trained_mixing
from bpt_core.recipe import Recipe, WhiteningInput
from bpt_core.whitening import Whitening, whiten

WHITENING_IMAGES = 128  # the paper's 100 and a little more; W hardly changes with more
TOKEN_IMAGES = 32  # whose tokens `spt` chooses from

SampleImages = Callable[[int], Iterable[Tensor]]
"""Asked for so many training images, gives batches of them, normalised [B, 3, S, S]."""


class Prompts(nn.Module):
    """Parameters are trained; buffers are what stays fixed and can be made again from the images."""

    @abstractmethod
    def fold(self) -> Tensor:
        """-> P~ [k, m, d]: the plain prompts that are served. A gradient passes."""

    def factors(self) -> dict[str, Tensor]:
        """What an artifact keeps beside P~, so that tuning can go on from it."""
        return {}


class PlainPrompts(Prompts):
    """`vpt` and `spt`: P~ = P."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.P = nn.Parameter(start)

    def fold(self) -> Tensor:
        return self.P


class WhitenedPrompts(Prompts):
    """`bpt-fwhiten` (trained = 0) and `bpt-twhiten`: P~ = P W^T; W [k, d, d] is trained in the last blocks."""

    fixed: Tensor

    def __init__(self, start: Tensor, matrices: Tensor, trained: int) -> None:
        super().__init__()
        fixed = len(matrices) - trained
        self.P = nn.Parameter(start)
        self.W = nn.Parameter(matrices[fixed:]) if trained else None
        self.register_buffer("fixed", matrices[:fixed], persistent=False)

    def fold(self) -> Tensor:
        return self.P @ _joined(self.fixed, self.W).mT


class BilinearPrompts(Prompts):
    """`bpt-bilinear`: P~ = A B^T with A [k, m, p] and B [k, d, p]; B is trained in the last `trained` blocks."""

    fixed: Tensor

    def __init__(self, a: Tensor, b: Tensor, trained: int) -> None:
        super().__init__()
        fixed = len(b) - trained
        self.A = nn.Parameter(a)
        self.B = nn.Parameter(b[fixed:])
        self.register_buffer("fixed", b[:fixed], persistent=False)

    def fold(self) -> Tensor:
        return self.A @ _joined(self.fixed, self.B).mT

    def factors(self) -> dict[str, Tensor]:
        return {"A": self.A.detach(), "B": _joined(self.fixed, self.B).detach()}


def build_prompts(
    recipe: Recipe,
    backbone: Backbone,
    images: SampleImages,
    generator: torch.Generator,
    known: Sequence[Whitening] = (),
    going_on_from: PromptSet | None = None,
) -> tuple[Prompts | None, Sequence[Whitening]]:
    """The prompts that `recipe` asks for as they start, on the CPU (None for the linear probe), and the whitening
    of the blocks where there is one; it is computed unless it is `known`. Going on from a prompt set that fits they
    fold to that one's prompts.

    Raises InvalidSetting where the rank exceeds what the whitening matrix has columns.
    """
    if not recipe.method.has_prompts:
        return None, []
    blocks = prompted_blocks(recipe.depth, backbone.depth)
    k, m, d, p = len(blocks), recipe.prompts, backbone.embed_dim, recipe.rank
    trained = trained_mixing(recipe.depth, backbone.depth)

    def whitenings() -> Sequence[Whitening]:
        after_norm = recipe.whitening_input is WhiteningInput.NORMED
        return known or whiten(backbone, images(WHITENING_IMAGES), blocks, after_norm=after_norm)

    if going_on_from is not None:
        return _continued(recipe, going_on_from, trained, whitenings)
    if recipe.method is Method.SPT:
        return PlainPrompts(_token_start(recipe, backbone, images, blocks, generator)), []
    if recipe.method is Method.BPT_BILINEAR:
        a = torch.randn(k, m, p, generator=generator) * 0.02
        if recipe.start is Start.RANDOM:
            bound = math.sqrt(6 / (d + p))  # Xavier
            return BilinearPrompts(a, (torch.rand(k, d, p, generator=generator) * 2 - 1) * bound, trained), []
        if p > d:
            raise InvalidSetting(f"a whitening matrix of {d} columns cannot start a factor of rank {p}")
        found = whitenings()
        columns = [torch.randperm(d, generator=generator)[:p] for _ in found]
        b = torch.stack(
            [each.matrix[:, chosen.to(each.matrix.device)] for each, chosen in zip(found, columns, strict=True)]
        )
        return BilinearPrompts(a, b.float().cpu(), trained), found
    bound = math.sqrt(6 / (3 * backbone.patch_size**2 + d))
    start = (torch.rand(k, m, d, generator=generator) * 2 - 1) * bound
    if recipe.method is Method.VPT:
        return PlainPrompts(start), []
    found = whitenings()
    matrices = torch.stack([each.matrix for each in found]).float().cpu()
    return WhitenedPrompts(start, matrices, trained if recipe.method is Method.BPT_TWHITEN else 0), found


def _continued(
    recipe: Recipe, start: PromptSet, trained: int, whitenings: Callable[[], Sequence[Whitening]]
) -> tuple[Prompts, Sequence[Whitening]]:
    """Prompts of the recipe's method that fold to those of `start`."""
    assert start.prompts is not None
    if recipe.method is Method.BPT_BILINEAR:
        return BilinearPrompts(start.factors["A"].clone(), start.factors["B"].clone(), trained), []
    if recipe.method in (Method.VPT, Method.SPT):
        return PlainPrompts(start.prompts.clone()), []
    # No artifact holds W, which is many times as large as what it whitens: it is that of the images at hand, and P is
    # what gives the same P~ = P W^T with it.
    found = whitenings()
    matrices = torch.stack([each.matrix for each in found]).double().cpu()
    plain = torch.linalg.solve(matrices, start.prompts.double().mT).mT.float()
    return WhitenedPrompts(plain, matrices.float(), trained if recipe.method is Method.BPT_TWHITEN else 0), found


def _token_start(
    recipe: Recipe, backbone: Backbone, images: SampleImages, blocks: range, generator: torch.Generator
) -> Tensor:
    choose = starts.centres if recipe.start is Start.KMEANS else starts.sample
    tokens = starts.patch_tokens(backbone, images(TOKEN_IMAGES), blocks).float().cpu()
    return torch.stack([choose(each, recipe.prompts, generator) for each in tokens])


def _joined(fixed: Tensor, trained: Tensor | None) -> Tensor:
    if trained is None or not len(fixed):
        return fixed if trained is None else trained
    return torch.cat([fixed, trained])
