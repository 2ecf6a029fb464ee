"""The comparison of searches: what it draws, and that both sides are judged alike."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from benchmarks.auto import auto, default, random_recipes, random_search
from bpt_core.backbones import freeze
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_core.sweep import RANGES
from tests.core.conftest import write_flowers

BASE = Recipe(method=Method.BPT_BILINEAR, prompts=4, rank=2, epochs=8, batch_size=8, warmup_epochs=1, views=1)


def test_random_recipes_lie_in_the_ranges_of_auto_and_differ() -> None:
    recipes = random_recipes(BASE, 200)
    for name, (low, high) in RANGES.items():
        drawn = [math.log(getattr(recipe, name)) for recipe in recipes]
        assert math.log(low) <= min(drawn) < max(drawn) <= math.log(high)
        middle = sum(drawn) / len(drawn)
        assert abs(middle - math.log(low * high) / 2) < 0.5


def test_both_searches_tell_what_they_found_and_cost(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    backbone, dataset = freeze(model, "tiny"), write_flowers(tmp_path, classes=2, train=6, val=4, test=4)
    found, best, plain = (
        auto(backbone, dataset, BASE),
        random_search(backbone, dataset, BASE, 5),
        default(backbone, dataset, BASE),
    )
    assert (found.runs, best.runs, plain.runs) == (2.5, 5, 1)
    assert all(0 <= share <= 1 for each in (found, best, plain) for share in (each.val, each.test))
    assert best.learning_rate in [recipe.learning_rate for recipe in random_recipes(BASE, 5)]
