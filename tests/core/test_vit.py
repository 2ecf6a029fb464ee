"""The prompted forward against timm's own forward and against a plain reference."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bpt_core import vit
from bpt_core.backbones import Backbone, freeze, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE, Pooling
from tests.core.conftest import MakeBackbone

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "layer scale": {"init_values": 0.1},
    "qk-norm": {"qk_norm": True},
    "pre-norm": {"pre_norm": True},
    "fc_norm": {"global_pool": "avg", "fc_norm": True},
    "dynamic size": {"dynamic_img_size": True},
}


def reference(backbone: Backbone, images: Tensor, prompts: Tensor) -> Tensor:
    """One image at a time, one block at a time, written as the paper says it."""
    model, prefix = backbone.model, backbone.model.num_prefix_tokens
    rows = []
    for image in images:
        x = model.patch_embed(image[None])
        x = model.norm_pre(model._pos_embed(x))[0]
        x = torch.cat([x[:prefix], prompts, x[prefix:]])
        for block in model.blocks:
            x = block(x[None])[0]
        if backbone.pooling is Pooling.CLS:
            pooled = x[0]
        elif backbone.pooling is Pooling.MEAN_ALL:
            pooled = torch.stack(list(x[prefix:])).mean(0)
        else:
            pooled = x[prefix + len(prompts) :].mean(0)
        rows.append(model.fc_norm(model.norm(pooled[None]))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prompted_forward_equals_the_reference_in_value_and_gradient(
    make_backbone: MakeBackbone, variant: str, pooling: Pooling
) -> None:
    if variant == "no class token" and pooling is Pooling.CLS:
        pytest.skip("refused: see test_backbones")
    backbone = make_backbone(pooling, **VARIANTS[variant])
    backbone.model.double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    prompts = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    ours, theirs = vit.features(backbone, images, prompts), reference(backbone, images, prompts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    weights = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), prompts)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), prompts)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_without_prompts_it_is_timms_own_forward(global_pool: Literal["avg", "token"]) -> None:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool=global_pool
    )
    backbone = freeze(model, "tiny")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.features(backbone, images), model(images))


def test_each_row_may_bring_its_own_prompts(backbone: Backbone) -> None:
    images, prompts = torch.randn(4, 3, 32, 32), torch.randn(4, 6, 32)
    mixed = vit.features(backbone, images, prompts)
    alone = torch.cat([vit.features(backbone, images[row : row + 1], prompts[row]) for row in range(4)])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)


def test_prompts_stand_after_the_class_token_and_change_the_features() -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    tokens = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 192)
    prompts = torch.full((2, 192), 9.0)
    assert vit.insert(tokens, prompts, 1)[0, :, 0].tolist() == [0, 9, 9, 1, 2, 3, 4, 5]
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(vit.features(backbone, images), vit.features(backbone, images, prompts))
