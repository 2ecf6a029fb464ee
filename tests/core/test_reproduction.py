"""A prompt set that was learned again, against the first one: what is called identical, equivalent and different."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bpt_core import artifact
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_core.reproduction import Difference, Verdict, compare
from bpt_core.tuning import tune
from tests.core.conftest import MakeBackbone


def learned(backbone: Backbone, flowers: PackedDataset, **given: Any) -> PromptSet:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 2, "batch_size": 12, "warmup_epochs": 1}
    return tune(backbone, flowers, Recipe(**{**base, **given})).prompt_set


@pytest.fixture
def first(backbone: Backbone, flowers: PackedDataset) -> PromptSet:
    """As it comes back from where it is kept."""
    return artifact.from_bytes(artifact.to_bytes(learned(backbone, flowers)))


def test_the_same_run_again_is_identical(backbone: Backbone, flowers: PackedDataset, first: PromptSet) -> None:
    found = compare(first, learned(backbone, flowers), backbone, flowers)
    assert (found.verdict, found.split, found.images, found.agreement) == (Verdict.IDENTICAL, Split.TEST, 12, 1.0)
    assert found.tensors == {name: Difference(True, 0.0, 0.0) for name in ("prompts", "head.weight", "head.bias")}


def test_another_seed_is_different(backbone: Backbone, flowers: PackedDataset, first: PromptSet) -> None:
    found = compare(first, learned(backbone, flowers, seed=1), backbone, flowers)
    assert found.verdict is Verdict.DIFFERENT
    assert not any(each.is_equal for each in found.tensors.values())


def test_what_is_only_rounded_otherwise_is_equivalent_and_says_how_far_apart_it_is(
    backbone: Backbone, flowers: PackedDataset, first: PromptSet
) -> None:
    weight = first.head_weight.clone()
    weight[0, 0] += 1e-4
    found = compare(first, replace(first, head_weight=weight), backbone, flowers)
    assert found.verdict is Verdict.EQUIVALENT
    assert found.tensors["prompts"].is_equal
    apart = found.tensors["head.weight"]
    assert apart.largest == pytest.approx(1e-4, rel=1e-2)
    assert apart.relative == pytest.approx(1e-4 / float(first.head_weight.norm()), rel=1e-2)


def test_numbers_that_are_near_and_answers_that_are_not_are_different(
    backbone: Backbone, flowers: PackedDataset, first: PromptSet
) -> None:
    level = replace(first, head_weight=torch.zeros_like(first.head_weight), head_bias=torch.tensor([1.0, 1.001, 1.0]))
    found = compare(level, replace(level, head_bias=torch.tensor([1.001, 1.0, 1.0])), backbone, flowers)
    assert found.tensors["head.bias"].relative == pytest.approx(0.001 * 2**0.5 / 3**0.5, rel=0.01)
    assert (found.agreement, found.verdict) == (0.0, Verdict.DIFFERENT)


def test_answers_that_agree_and_numbers_that_do_not_are_different(
    backbone: Backbone, flowers: PackedDataset, first: PromptSet
) -> None:
    twice = replace(first, head_weight=first.head_weight * 2, head_bias=first.head_bias * 2)
    found = compare(first, twice, backbone, flowers)
    assert (found.agreement, found.verdict) == (1.0, Verdict.DIFFERENT)


def test_another_calibration_is_not_identical(backbone: Backbone, flowers: PackedDataset, first: PromptSet) -> None:
    other = replace(first, calibration=replace(first.calibration, temperature=first.calibration.temperature * 2))
    assert compare(first, other, backbone, flowers).verdict is Verdict.EQUIVALENT


def test_other_classes_are_different_and_have_no_difference_in_numbers(
    backbone: Backbone, flowers: PackedDataset, first: PromptSet
) -> None:
    fewer = replace(
        first, head_weight=first.head_weight[:2], head_bias=first.head_bias[:2], class_names=first.class_names[:2]
    )
    found = compare(first, fewer, backbone, flowers)
    assert found.verdict is Verdict.DIFFERENT
    assert found.tensors["head.bias"] == Difference(False, None, None)


def test_what_was_learned_on_other_weights_cannot_be_compared(
    make_backbone: MakeBackbone, flowers: PackedDataset, first: PromptSet
) -> None:
    with pytest.raises(ArtifactError, match="other weights"):
        compare(first, first, make_backbone(seed=1), flowers)
