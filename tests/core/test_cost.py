"""The estimate of what a run costs, against the figures of ViT-B/16 and against its own parts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bpt_core.catalog import CATALOG
from bpt_core.cost import tuning_flops
from bpt_core.methods import Depth, Method
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search

VIT_B = CATALOG["vit_base_patch16_224.mae"]


def recipe(depth: Depth, prompts: int, **given: object) -> Recipe:
    return Recipe(**{"method": Method.VPT, "depth": depth, "prompts": prompts, "epochs": 10, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "prompts", "gigaflops"), [(Depth.SHALLOW, 100, 53.94), (Depth.DEEP, 50, 35.49)])
def test_a_validation_image_costs_a_forward_pass_of_the_known_size(
    depth: Depth, prompts: int, gigaflops: float
) -> None:
    flops = tuning_flops(recipe(depth, prompts, epochs=1, warmup_epochs=0), VIT_B, train_images=0, val_images=1)
    assert flops / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_a_linear_probe_costs_one_plain_forward_for_each_view() -> None:
    probe = Recipe(method=Method.LINEAR_PROBE, epochs=100, views=6)
    assert tuning_flops(probe, VIT_B, train_images=10, val_images=5) / 65e9 == pytest.approx(35.13, rel=0.01)


def test_a_training_step_costs_a_forward_and_a_backward_pass() -> None:
    # 20 epochs over 3 images, without validation images and without fits of the head.
    flops = tuning_flops(recipe(Depth.SHALLOW, 100, epochs=20), VIT_B, train_images=3, val_images=0)
    assert flops / 1e9 == pytest.approx(2 * 60 * 53.94, rel=0.01)


def test_what_is_kept_below_the_prompts_is_not_paid_again() -> None:
    kept, fresh = (recipe(Depth.DEEP_TOP4, 50, views=views, epochs=80) for views in (8, 0))
    few, many = (tuning_flops(each, VIT_B, train_images=100, val_images=10) for each in (kept, fresh))
    assert few < 0.7 * many


def test_a_search_of_eight_trials_costs_under_three_runs() -> None:
    once = recipe(Depth.DEEP, 50, epochs=80)
    search = Search(("learning_rate",))
    alone, searched = (
        tuning_flops(replace(once), VIT_B, train_images=100, val_images=10, search=each) for each in (None, search)
    )
    assert 2 < searched / alone < 3
