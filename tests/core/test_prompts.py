"""Prompt parameterisations and the paper's parameter counts."""

from __future__ import annotations

import pytest
import torch

from bpt_core.backbones import Backbone
from bpt_core.catalog import CATALOG
from bpt_core.prompts import BilinearPrompts, build_prompts
from bpt_core.recipe import Method, Recipe, parameter_count

VIT_B = CATALOG["vit_base_patch16_224.mae"]


@pytest.mark.parametrize(
    ("prompts", "rank", "count", "printed"),
    [
        (64, 75, 62_400, "6.24"),
        (81, 75, 63_675, "6.37"),
        (100, 75, 65_100, "6.51"),
        (144, 75, 68_400, "6.84"),
        (196, 75, 72_300, "7.23"),
        (100, 25, 21_700, "2.17"),
        (100, 50, 43_400, "4.34"),
        (100, 100, 86_800, "8.68"),
    ],
)
def test_parameter_counts_are_those_of_the_papers_tables(prompts: int, rank: int, count: int, printed: str) -> None:
    recipe = Recipe(method=Method.BPT_BILINEAR, prompts=prompts, rank=rank)
    assert parameter_count(recipe, VIT_B) == count
    assert f"{count / 1e4:.2f}" == printed  # the paper prints units of 1e-2 million
    module = BilinearPrompts(prompts, rank, VIT_B.embed_dim, torch.Generator())
    assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_fold_is_a_times_b_transposed() -> None:
    module = BilinearPrompts(7, 3, 16, torch.Generator().manual_seed(0))
    expected = torch.einsum("mp,dp->md", module.A, module.B)
    torch.testing.assert_close(module.fold(), expected)
    assert module.fold().shape == (7, 16)


def test_factors_start_as_the_paper_says() -> None:
    module = BilinearPrompts(400, 300, 500, torch.Generator().manual_seed(0))
    assert module.A.std().item() == pytest.approx(0.02, rel=0.02)
    bound = (6 / (500 + 300)) ** 0.5
    assert module.B.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert module.B.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_linear_probe_has_no_prompts(backbone: Backbone) -> None:
    recipe = Recipe(method=Method.LINEAR_PROBE)
    assert build_prompts(recipe, backbone, torch.Generator()) is None
    assert parameter_count(recipe, VIT_B) == 0
