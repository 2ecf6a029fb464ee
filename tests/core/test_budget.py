"""Tuning with too little time: what there is by then is what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bpt_core import artifact
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset
from bpt_core.errors import BudgetExhausted
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch
from bpt_core.tuning import Standing, Tuned, tune


def recipe(**given: Any) -> Recipe:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 6, "batch_size": 7, "warmup_epochs": 1}
    return Recipe(**{**base, **given})


def stop_after(seen: list[Epoch], epochs: int) -> Callable[[], bool]:
    return lambda: len(seen) >= epochs


def run(
    backbone: Backbone, flowers: PackedDataset, chosen: Recipe, epochs: int, **given: Any
) -> tuple[Tuned, list[Epoch]]:
    seen: list[Epoch] = []
    tuned = tune(
        *(backbone, flowers, chosen),
        on_epoch=lambda report, _: seen.append(report),
        is_time_up=stop_after(seen, epochs),
        **given,
    )
    return tuned, seen


def test_training_stops_when_time_is_up_and_the_best_so_far_is_kept(backbone: Backbone, flowers: PackedDataset) -> None:
    tuned, seen = run(backbone, flowers, recipe(), 2)
    assert [report.epoch for report in seen] == [1, 2]
    best = max(seen, key=lambda report: (report.val_accuracy, -report.val_loss))
    assert (tuned.stopped_by, tuned.best_epoch) == ("budget", best.epoch)
    assert tuned.val.score == pytest.approx(best.val_accuracy)
    assert tuned.test is not None


def test_a_run_that_comes_to_its_own_end_was_stopped_by_nothing(backbone: Backbone, flowers: PackedDataset) -> None:
    assert run(backbone, flowers, recipe(), 6)[0].stopped_by is None  # time is up behind the last epoch
    assert tune(backbone, flowers, recipe(epochs=1)).stopped_by is None


def test_without_time_for_a_single_epoch_the_run_fails_with_advice(backbone: Backbone, flowers: PackedDataset) -> None:
    with pytest.raises(BudgetExhausted, match="larger budget") as caught:
        run(backbone, flowers, recipe(), 0)
    assert caught.value.code == "budget_exhausted"


def test_a_resumed_run_without_time_ends_with_what_the_checkpoint_has(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    checkpoints: list[bytes] = []

    def keep(_: Epoch, standing: Standing) -> None:
        checkpoints.append(standing.checkpoint())

    stopped = tune(backbone, flowers, recipe(), on_epoch=keep, is_time_up=lambda: len(checkpoints) == 3)
    resumed, seen = run(backbone, flowers, recipe(), 0, checkpoint=checkpoints[-1])
    assert (seen, resumed.stopped_by) == ([], "budget")
    assert artifact.to_bytes(resumed.prompt_set) == artifact.to_bytes(stopped.prompt_set)


def test_of_a_search_the_leader_of_the_moment_wins(backbone: Backbone, flowers: PackedDataset) -> None:
    rates = Search(("learning_rate",), trials=4)
    chosen = recipe(epochs=16, learning_rate=0.1)  # halved after 2, 4 and 8 epochs
    tuned, seen = run(backbone, flowers, chosen, 3, search=rates)
    assert [report.trials for report in seen] == [4, 4, 2]
    assert tuned.stopped_by == "budget"
    assert [trial["epochs"] for trial in tuned.trials].count(3) == 2
    assert tuned.recipe.learning_rate in [trial["learning_rate"] for trial in tuned.trials if trial["epochs"] == 3]
    assert tuned.best_epoch <= 3
