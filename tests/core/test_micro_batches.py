"""A batch in parts is the same batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bpt_core.backbones import Backbone
from bpt_core.compute import Compute, is_out_of_memory
from bpt_core.dataset import PackedDataset
from bpt_core.methods import Depth, Method
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch
from bpt_core.tuning import Standing, tune

RECIPE = Recipe(Method.BPT_BILINEAR, prompts=6, rank=4, epochs=3, batch_size=12, warmup_epochs=1)


def epochs(backbone: Backbone, dataset: PackedDataset, recipe: Recipe, parts: int, **options: Any) -> list[Epoch]:
    seen: list[Epoch] = []

    def note(epoch: Epoch, _standing: Standing) -> None:
        seen.append(replace(epoch, seconds=0.0))

    tune(backbone, dataset, recipe, compute=Compute(micro_batches=parts), on_epoch=note, **options)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": Depth.DEEP},
        {"mixup": 0.4},
        {"balance_classes": True, "label_smoothing": 0.1},
        {"method": Method.LINEAR_PROBE, "prompts": 0, "rank": 0},
    ],
    ids=lambda changes: " ".join(map(str, changes)) or "as it is",
)
@pytest.mark.parametrize("parts", [2, 5])
def test_training_in_parts_gives_what_training_in_one_gives(
    backbone: Backbone, flowers: PackedDataset, changes: dict[str, Any], parts: int
) -> None:
    recipe = replace(RECIPE, **changes)
    whole, divided = epochs(backbone, flowers, recipe, 1), epochs(backbone, flowers, recipe, parts)
    for one, other in zip(whole, divided, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-5)
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-5)


def test_several_trials_in_parts_too(backbone: Backbone, flowers: PackedDataset) -> None:
    search = Search(("learning_rate",), 3)
    whole = epochs(backbone, flowers, RECIPE, 1, search=search)
    divided = epochs(backbone, flowers, RECIPE, 2, search=search)
    assert [each.val_loss for each in divided] == pytest.approx([each.val_loss for each in whole], abs=1e-4)


def test_what_is_out_of_memory_and_what_is_not() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(caught.value)
