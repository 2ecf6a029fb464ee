"""The family of methods: what is trained, in which blocks, and how many numbers that is. Needs no torch.

    method        P~        trained    starts from
    linear-probe  none      head
    vpt           P         P          uniform
    spt           P         P          tokens of the customer's own images that enter the block
    bpt-fwhiten   P W^T     P          uniform; W is the whitening matrix and stays
    bpt-twhiten   P W^T     P, W       uniform; W from the whitening matrix
    bpt-bilinear  A B^T     A, B       A normal; B Xavier-uniform, or columns of the whitening matrix

W and B mix the width of a block's prompts: they are its mixing factor.
"""

from __future__ import annotations

from enum import StrEnum

TOP_BLOCKS = 4  # blocks whose mixing factor is trained (deep), or that have prompts at all (deep-top4)


class Method(StrEnum):
    LINEAR_PROBE = "linear-probe"
    VPT = "vpt"
    SPT = "spt"
    BPT_FWHITEN = "bpt-fwhiten"
    BPT_TWHITEN = "bpt-twhiten"
    BPT_BILINEAR = "bpt-bilinear"

    @property
    def has_prompts(self) -> bool:
        return self is not Method.LINEAR_PROBE

    @property
    def has_rank(self) -> bool:
        return self is Method.BPT_BILINEAR


class Depth(StrEnum):
    """Where prompts enter: once before the first block, or fresh ones at every block, or at the top four only."""

    SHALLOW = "shallow"
    DEEP = "deep"
    DEEP_TOP4 = "deep-top4"


class Start(StrEnum):
    """Where trained numbers start when the method leaves a choice (the first of `STARTS` is the default)."""

    RANDOM = "random"
    KMEANS = "kmeans"
    WHITENED = "whitened"


STARTS: dict[Method, tuple[Start, ...]] = {
    Method.LINEAR_PROBE: (Start.RANDOM,),
    Method.VPT: (Start.RANDOM,),
    Method.SPT: (Start.RANDOM, Start.KMEANS),
    Method.BPT_FWHITEN: (Start.RANDOM,),
    Method.BPT_TWHITEN: (Start.RANDOM,),
    Method.BPT_BILINEAR: (Start.RANDOM, Start.WHITENED),
}


def prompted_blocks(depth: Depth, blocks: int) -> range:
    """Indices of the blocks that prompts enter, of a backbone with so many blocks."""
    if depth is Depth.SHALLOW:
        return range(1)
    return range(blocks) if depth is Depth.DEEP else range(max(0, blocks - TOP_BLOCKS), blocks)


def trained_mixing(depth: Depth, blocks: int) -> int:
    """In how many of the prompted blocks (the last ones) the mixing factor is trained."""
    return 1 if depth is Depth.SHALLOW else min(TOP_BLOCKS, blocks)


def parameter_count(method: Method, depth: Depth, prompts: int, rank: int, embed_dim: int, blocks: int) -> int:
    """Trained numbers without the head, as the paper counts.

    With k prompted blocks, t of them with a trained mixing factor: k m d for P, t d^2 for W, k m p + t d p for A, B.
    """
    k, t = len(prompted_blocks(depth, blocks)), trained_mixing(depth, blocks)
    if method is Method.LINEAR_PROBE:
        return 0
    if method is Method.BPT_BILINEAR:
        return k * prompts * rank + t * embed_dim * rank
    mixing = t * embed_dim**2 if method is Method.BPT_TWHITEN else 0
    return k * prompts * embed_dim + mixing
