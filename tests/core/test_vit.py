"""The prompted forward against timm's own forward and against the plain reference."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from bpt_core import vit
from bpt_core.backbones import Backbone, freeze, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE, Pooling
from bpt_core.methods import Depth, prompted_blocks
from tests.core import reference
from tests.core.conftest import MakeBackbone

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no class token, registers": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
    "layer scale": {"init_values": 0.1},
    "qk-norm": {"qk_norm": True},
    "scale norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "gated": {"gated": True},  # attention layers that have a gate: put in by hand
    "pre-norm": {"pre_norm": True},
    "fc_norm": {"global_pool": "avg", "fc_norm": True},
    "no final norm": {"final_norm": False},
    "dynamic size": {"dynamic_img_size": True},
    "no embedded class": {"no_embed_class": True, "reg_tokens": 1},
    "patch 16, two heads more": {"patch_size": 16, "num_heads": 4},
    "one head": {"num_heads": 1},
    "map": {"global_pool": "map"},
    "map with prefix": {"global_pool": "map", "pool_include_prefix": True, "reg_tokens": 1},
}


def random_prompts(backbone: Backbone, depth: Depth, count: int, *sets: int) -> Tensor:
    blocks = len(prompted_blocks(depth, backbone.depth))
    kind = next(backbone.model.parameters()).dtype
    return 3 * torch.randn(*sets, blocks, count, backbone.embed_dim, dtype=kind)


def poolings(variant: str) -> list[Pooling]:
    if variant.startswith("map"):
        return [Pooling.MAP]
    return [each for each in Pooling if each is not Pooling.MAP and (each, variant[:8]) != (Pooling.CLS, "no class")]


CASES = [
    pytest.param(variant, pooling, depth, blocks, id=f"{variant}, {pooling}, {depth}, {blocks} blocks")
    for variant in VARIANTS
    for pooling in poolings(variant)
    for depth in Depth
    for blocks in ((2, 6) if variant == "plain" else (6,))
]


@pytest.mark.parametrize(("variant", "pooling", "depth", "blocks"), CASES)
def test_the_prompted_forward_equals_the_reference_in_value_and_gradient(
    make_backbone: MakeBackbone, variant: str, pooling: Pooling, depth: Depth, blocks: int
) -> None:
    shape = VARIANTS[variant] | {"depth": blocks}
    gated = shape.pop("gated", False)
    backbone = make_backbone(Pooling.MEAN_PATCHES, **shape)
    for block in backbone.model.blocks if gated else ():
        block.attn = Attention(32, num_heads=2, qkv_bias=True, gated=True).eval().requires_grad_(False)
    for parameter in backbone.model.parameters():  # norms and biases that start at 1 and 0 would hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    backbone.model.double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    for count in (1, 5):
        prompts = random_prompts(backbone, depth, count).requires_grad_()
        ours = vit.features(backbone, images, prompts, depth, pooling)
        theirs = reference.features(backbone, images, prompts, depth, pooling)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        weights = torch.randn_like(ours)
        (gradient,) = torch.autograd.grad((ours * weights).sum(), prompts)
        (expected,) = torch.autograd.grad((theirs * weights).sum(), prompts)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)
        assert expected.abs().max() > 1e-6


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.MEAN_ALL, Pooling.MEAN_PATCHES])
def test_in_float32_they_agree_to_a_hundred_thousandth(pooling: Pooling, depth: Depth) -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    images, prompts = torch.randn(2, 3, 64, 64), random_prompts(backbone, depth, 50)
    with torch.no_grad():
        ours = vit.features(backbone, images, prompts, depth, pooling)
        theirs = reference.features(backbone, images, prompts, depth, pooling)
    scale = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("global_pool", ["avg", "token", "map"])
def test_without_prompts_it_is_timms_own_forward(global_pool: Literal["avg", "token", "map"]) -> None:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool=global_pool
    )
    backbone = freeze(model, "tiny")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.features(backbone, images), model(images))


@pytest.mark.parametrize("depth", list(Depth))
def test_each_row_may_bring_its_own_prompts(make_backbone: MakeBackbone, depth: Depth) -> None:
    backbone = make_backbone(depth=6)
    images, prompts = torch.randn(4, 3, 32, 32), random_prompts(backbone, depth, 6, 4)
    mixed = vit.features(backbone, images, prompts, depth)
    alone = torch.cat([vit.features(backbone, images[row : row + 1], prompts[row], depth) for row in range(4)])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", list(Depth))
def test_several_sets_over_the_same_images_are_each_what_they_are_alone(
    make_backbone: MakeBackbone, depth: Depth
) -> None:
    backbone = make_backbone(depth=6)
    images, prompts = torch.randn(4, 3, 32, 32), random_prompts(backbone, depth, 6, 3)
    tokens = vit.below(backbone, images, depth)
    compiled = vit.compile_prompts(backbone, prompts, depth, Pooling.MEAN_ALL)
    fused = vit.above(backbone, tokens.repeat(3, 1, 1), compiled, Pooling.MEAN_ALL)
    alone = torch.cat([vit.features(backbone, images, each, depth, Pooling.MEAN_ALL) for each in prompts])
    torch.testing.assert_close(fused, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch8_224",
        "vit_base_patch16_clip_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_so150m_patch16_reg4_gap_256",
        "deit3_small_patch16_224",
        "vit_large_patch16_224",
        "vit_giant_patch14_clip_224",
    ],
)
def test_timms_plain_transformers_from_tiny_to_giant_take_prompts(name: str) -> None:
    with torch.device("meta"):
        backbone = freeze(timm.create_model(name, num_classes=0), name, device="meta")
        images = torch.empty(2, 3, backbone.image_size, backbone.image_size)
        for depth in Depth:
            prompts = torch.empty(len(prompted_blocks(depth, backbone.depth)), 7, backbone.embed_dim)
            assert vit.features(backbone, images, prompts, depth).shape == (2, backbone.embed_dim)


def test_tokens_entering_each_block_are_those_of_the_plain_backbone(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(depth=6)
    images = torch.randn(2, 3, 32, 32)
    seen = list(vit.entering(backbone, images, range(2, 6)))
    assert len(seen) == 4
    torch.testing.assert_close(seen[0], vit.below(backbone, images, Depth.DEEP_TOP4))
    torch.testing.assert_close(seen[3], backbone.model.blocks[:5](vit.embed(backbone, images)))


def test_deep_prompts_outside_the_last_block_never_become_tokens(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(depth=6)
    widths: list[int] = []
    for block in backbone.model.blocks:
        block.mlp.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    prompts = random_prompts(backbone, Depth.DEEP, 5)
    for pooling, last in ((Pooling.CLS, 1), (Pooling.MEAN_PATCHES, 16), (Pooling.MEAN_ALL, 16 + 5)):
        widths.clear()
        vit.features(backbone, torch.randn(1, 3, 32, 32), prompts, Depth.DEEP, pooling)
        assert widths == [17] * 5 + [last]


def test_prompts_stand_after_the_class_token_and_change_the_features() -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    tokens = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 192)
    prompts = torch.full((1, 2, 192), 9.0)
    assert vit.insert(tokens, prompts, 1)[0, :, 0].tolist() == [0, 9, 9, 1, 2, 3, 4, 5]
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(vit.features(backbone, images), vit.features(backbone, images, prompts))
