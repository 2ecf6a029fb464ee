"""Recipes: defaults that fit the backbone, and refusal of what cannot work before any work."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from bpt_core import catalog
from bpt_core.errors import BackboneError, InvalidSetting
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import Recipe, default_recipe

TINY = catalog.find("vit_tiny_patch8_64.mae")
VIT_B = catalog.find("vit_base_patch16_224.mae")


def test_a_large_backbone_gets_the_papers_prompts_and_a_small_one_fewer() -> None:
    large = default_recipe(VIT_B, Method.BPT_BILINEAR)
    assert (large.prompts, large.rank) == (98, 73)
    small = default_recipe(TINY, Method.BPT_BILINEAR)
    assert small.prompts <= 32
    assert small.rank <= small.prompts


def test_backbones_whose_class_token_is_read_get_the_papers_gentler_rates() -> None:
    supervised = default_recipe(catalog.find("vit_base_patch16_224.augreg_in21k"), Method.BPT_BILINEAR)
    assert (supervised.learning_rate, supervised.weight_decay) == (1e-2, 5e-2)
    assert default_recipe(VIT_B, Method.BPT_BILINEAR).learning_rate == 5e-2


def test_what_is_given_is_kept() -> None:
    recipe = default_recipe(TINY, Method.BPT_BILINEAR, prompts=5, rank=9, epochs=3, learning_rate=0.5, seed=4)
    assert (recipe.prompts, recipe.rank, recipe.epochs, recipe.learning_rate, recipe.seed) == (5, 9, 3, 0.5, 4)
    assert recipe.warmup_epochs <= recipe.epochs


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": 0},
        {"prompts": 1001},
        {"rank": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"learning_rate": -1.0},
        {"weight_decay": -0.1},
        {"head_weight_decay": float("nan")},
        {"warmup_epochs": 101},
        {"crop_scale_min": 0.0},
        {"views": -1},
        {"seed": -1},
        {"head_fit_epochs": -1},
        {"head_fit_learning_rate": 0.0},
        {"patience": -1},
        {"label_smoothing": 1.0},
        {"mixup": float("inf")},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(wrong))):
        Recipe(**{"method": Method.BPT_BILINEAR, "prompts": 8, "rank": 4, **wrong})


def test_a_linear_probe_with_prompts_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="linear probe"):
        default_recipe(TINY, Method.LINEAR_PROBE, prompts=4)
    with pytest.raises(InvalidSetting, match="head"):
        default_recipe(TINY, Method.LINEAR_PROBE, head_fit_epochs=4)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"method": Method.LINEAR_PROBE, "depth": Depth.DEEP}, "depth"),
        ({"method": Method.VPT, "rank": 3}, "rank"),
        ({"method": Method.VPT, "start": Start.WHITENED}, "starts"),
        ({"method": Method.BPT_BILINEAR, "start": Start.KMEANS}, "starts"),
        ({"method": Method.BPT_BILINEAR, "start": Start.WHITENED, "rank": 193}, "192"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSetting, match=named):
        default_recipe(TINY, **wrong)


def test_deep_prompts_are_the_papers_and_start_whitened() -> None:
    deep = default_recipe(VIT_B, Method.BPT_BILINEAR, depth=Depth.DEEP)
    assert (deep.prompts, deep.rank, deep.start) == (50, 50, Start.WHITENED)
    assert default_recipe(VIT_B, Method.BPT_BILINEAR).start is Start.RANDOM
    assert default_recipe(VIT_B, Method.VPT, depth=Depth.DEEP).rank == 0
    assert default_recipe(VIT_B, Method.BPT_BILINEAR, depth=Depth.DEEP_TOP4).views == 8


@pytest.mark.parametrize("method", list(Method))
def test_a_recipe_survives_being_stored(method: Method) -> None:
    recipe = default_recipe(TINY, method)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"depth": "abyss"}, {"pooling": "max"}, {"surprise": 1}])
def test_a_stored_recipe_with_unknown_parts_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        Recipe.from_dict({**default_recipe(TINY, Method.BPT_BILINEAR).to_dict(), **wrong})


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackboneError, match=TINY.name):
        catalog.find("vit_unheard_of")


def test_recipes_and_catalogue_need_no_torch() -> None:
    code = "import sys, bpt_core.sweep, bpt_core.cost, bpt_core.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
