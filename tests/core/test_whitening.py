"""Whitening: its defining properties, and that one pass in any batches gives it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bpt_core import starts, vit
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.samples import CLASS_NAMES, draw
from bpt_core.transforms import evaluation_view
from bpt_core.whitening import EPS_SHARE, whiten
from tests.core.conftest import MakeBackbone

FIRST = range(1)


@pytest.fixture(scope="module")
def trained() -> Backbone:
    return load_backbone(DEFAULT_BACKBONE)


def pictures(backbone: Backbone, count: int, first: int = 0) -> Tensor:
    views = [
        torch.from_numpy(evaluation_view(draw(seed % len(CLASS_NAMES), seed), backbone.image_size).copy())
        for seed in range(first, first + count)
    ]
    return backbone.normalise(torch.stack(views).permute(0, 3, 1, 2))


def second_moment(backbone: Backbone, images: Tensor, block: int) -> Tensor:
    """S as the paper writes it: X~ = Wq Wk^T X^T held whole."""
    attn = backbone.model.blocks[block].attn
    d = backbone.embed_dim
    wq, wk = attn.qkv.weight[:d].T.double(), attn.qkv.weight[d : 2 * d].T.double()
    (entering,) = vit.entering(backbone, images, range(block, block + 1))
    x = entering[:, backbone.model.num_prefix_tokens :].reshape(-1, d).double()
    whitened = wq @ wk.T @ x.T
    moment: Tensor = whitened @ whitened.T / x.shape[0]
    return moment


@pytest.mark.parametrize("block", [0, 11])
def test_the_product_is_white_where_there_is_variance(trained: Backbone, block: int) -> None:
    images = pictures(trained, 40)
    (found,) = whiten(trained, [images], range(block, block + 1))
    moment = second_moment(trained, images, block)
    values, vectors = torch.linalg.eigh(moment)
    assert found.eps == pytest.approx(EPS_SHARE * moment.trace().item() / 192)
    assert found.eigenvalues[1] == pytest.approx(values[-1].item())
    white = vectors.T @ found.matrix @ moment @ found.matrix @ vectors
    expected = torch.diag(values.clamp(min=0) / (values.clamp(min=0) + found.eps))
    torch.testing.assert_close(white, expected, rtol=0, atol=1e-6)
    strong = values > 1e4 * found.eps
    assert strong.sum() > 20
    torch.testing.assert_close(white[strong][:, strong], torch.eye(int(strong.sum())).double(), rtol=0, atol=1e-3)


def test_the_matrix_is_symmetric(trained: Backbone) -> None:
    for found in whiten(trained, [pictures(trained, 10)], range(12)):
        torch.testing.assert_close(found.matrix, found.matrix.T, rtol=0, atol=1e-9 * found.matrix.abs().max().item())


def test_batching_does_not_change_it(trained: Backbone) -> None:
    images = pictures(trained, 24)
    (whole,) = whiten(trained, [images], FIRST)
    (parts,) = whiten(trained, images.split((1, 7, 16)), FIRST)  # type: ignore[no-untyped-call]
    assert (parts.images, parts.tokens) == (whole.images, whole.tokens) == (24, 24 * 64)
    torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-4 * whole.matrix.abs().max().item())


def test_a_hundred_and_two_hundred_images_give_nearly_the_same(trained: Backbone) -> None:
    few, many = (whiten(trained, [pictures(trained, count)], FIRST)[0].matrix for count in (100, 200))
    assert ((few - many).norm() / many.norm()).item() < 0.1


def test_after_the_norm_is_another_matrix(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    images = torch.randn(6, 3, 32, 32)
    (plain,), (normed,) = (whiten(backbone, [images], FIRST, after_norm=on) for on in (False, True))
    entering = vit.embed(backbone, images)[:, 1:].reshape(-1, 32)
    product = backbone.model.blocks[0].attn.qkv.weight[:32].T @ backbone.model.blocks[0].attn.qkv.weight[32:64]
    x = product @ backbone.model.blocks[0].norm1(entering).T
    assert normed.eigenvalues[1] == pytest.approx(torch.linalg.eigvalsh(x @ x.T / len(entering))[-1].item(), rel=1e-4)
    assert plain.eigenvalues != normed.eigenvalues


def test_prefix_tokens_are_left_out(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(reg_tokens=2)
    images = torch.randn(4, 3, 32, 32)
    (before,) = whiten(backbone, [images], FIRST)
    backbone.model.cls_token.data.add_(100)
    (after,) = whiten(backbone, [images], FIRST)
    torch.testing.assert_close(before.matrix, after.matrix)


def test_tokens_are_sampled_from_the_images_and_clustered(backbone: Backbone) -> None:
    images = torch.randn(4, 3, 32, 32)
    (tokens,) = starts.patch_tokens(backbone, [images[:1], images[1:]], FIRST)
    torch.testing.assert_close(tokens, vit.embed(backbone, images)[:, 1:].reshape(-1, 32))
    generator = torch.Generator().manual_seed(0)
    chosen = starts.sample(tokens, 10, generator)
    assert all((tokens == row).all(dim=1).any() for row in chosen)
    assert len(set(map(tuple, chosen.tolist()))) == 10
    assert starts.sample(tokens, 100, generator).shape == (100, 32)


def test_centres_find_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(3, 8, generator=generator) * 20
    tokens = (true[:, None] + torch.randn(3, 50, 8, generator=generator)).reshape(-1, 8)
    found = [starts.centres(tokens, 3, torch.Generator().manual_seed(seed)) for seed in range(5)]
    best = min(found, key=lambda each: torch.cdist(tokens, each).min(dim=1).values.sum().item())
    assert torch.cdist(true, best).min(dim=1).values.max() < 1
    again = starts.centres(tokens, 3, torch.Generator().manual_seed(0))
    assert torch.equal(again, found[0])
