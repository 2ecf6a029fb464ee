"""Tuning: what it learns, what it leaves alone, and that an interrupted run ends like an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bpt_core import artifact
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset
from bpt_core.errors import ArtifactError, DatasetError, TuningDiverged
from bpt_core.recipe import Method, Recipe
from bpt_core.train import Epoch, _Run, tune
from tests.core.conftest import MakeBackbone, write_flowers


def recipe(**given: Any) -> Recipe:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 4, "batch_size": 7, "warmup_epochs": 1}
    return Recipe(**{**base, **given})


PROBE = Recipe(method=Method.LINEAR_PROBE, epochs=4, batch_size=7, warmup_epochs=1, views=2, learning_rate=0.05)

HEAD_FIT = recipe(head_fit_epochs=20)
CHOICES = [
    pytest.param(recipe(), id="bpt-bilinear"),
    pytest.param(HEAD_FIT, id="with head fit"),
    pytest.param(PROBE, id="linear-probe"),
]


@pytest.mark.parametrize("chosen", CHOICES)
def test_the_backbone_is_bit_identical_before_and_after(
    backbone: Backbone, flowers: PackedDataset, chosen: Recipe
) -> None:
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    tune(backbone, flowers, chosen)
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_loss_falls(backbone: Backbone, flowers: PackedDataset) -> None:
    reports: list[Epoch] = []
    chosen = recipe(epochs=12, learning_rate=0.05, head_weight_decay=0.0, crop_scale_min=1.0)
    tune(backbone, flowers, chosen, on_epoch=lambda report, _: reports.append(report))
    assert [report.epoch for report in reports] == list(range(1, 13))
    assert reports[-1].train_loss < 0.9 * reports[0].train_loss


def test_prompts_and_head_both_learn(backbone: Backbone, flowers: PackedDataset) -> None:
    short = tune(backbone, flowers, recipe(epochs=1, warmup_epochs=0)).prompt_set
    other = tune(backbone, flowers, recipe(epochs=1, warmup_epochs=0, learning_rate=1e-8)).prompt_set
    assert short.prompts is not None
    assert other.prompts is not None
    assert not torch.equal(short.prompts, other.prompts)
    assert not torch.equal(short.head_weight, other.head_weight)


@pytest.mark.parametrize("chosen", CHOICES)
def test_the_same_seed_gives_the_same_artifact_bytes(
    backbone: Backbone, flowers: PackedDataset, chosen: Recipe
) -> None:
    first, second = (artifact.to_bytes(tune(backbone, flowers, chosen).prompt_set) for _ in range(2))
    assert first == second
    other = Recipe.from_dict({**chosen.to_dict(), "seed": 1})
    assert artifact.to_bytes(tune(backbone, flowers, other).prompt_set) != first


class Interrupted(Exception):
    pass


def interrupt_after(epoch: int, kept: list[bytes]) -> Callable[[Epoch, Callable[[], bytes]], None]:
    def on_epoch(report: Epoch, checkpoint: Callable[[], bytes]) -> None:
        if report.epoch == epoch:
            kept.append(checkpoint())
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize("chosen", CHOICES)
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    backbone: Backbone, flowers: PackedDataset, chosen: Recipe, epoch: int
) -> None:
    whole = tune(backbone, flowers, chosen)
    kept: list[bytes] = []
    with pytest.raises(Interrupted):
        tune(backbone, flowers, chosen, on_epoch=interrupt_after(epoch, kept))
    seen: list[int] = []
    resumed = tune(backbone, flowers, chosen, checkpoint=kept[0], on_epoch=lambda report, _: seen.append(report.epoch))
    assert seen == list(range(epoch + 1, 5))
    assert artifact.to_bytes(resumed.prompt_set) == artifact.to_bytes(whole.prompt_set)
    assert (resumed.best_epoch, resumed.val, resumed.test) == (whole.best_epoch, whole.val, whole.test)


def test_checkpoints_are_small(backbone: Backbone, flowers: PackedDataset) -> None:
    kept: list[bytes] = []
    with pytest.raises(Interrupted):
        tune(backbone, flowers, recipe(), on_epoch=interrupt_after(1, kept))
    trained = (6 + 32) * 4 + 3 * 32 + 3
    assert len(kept[0]) < 4 * 4 * trained + 4096  # now, best and two moments, four bytes each, and a header


@pytest.mark.parametrize("other", ["recipe", "backbone", "garbage"])
def test_a_checkpoint_of_another_run_is_refused(
    make_backbone: MakeBackbone, flowers: PackedDataset, other: str
) -> None:
    kept: list[bytes] = []
    with pytest.raises(Interrupted):
        tune(make_backbone(), flowers, recipe(), on_epoch=interrupt_after(1, kept))
    backbone = make_backbone(seed=1 if other == "backbone" else 0)
    chosen = recipe(learning_rate=0.123) if other == "recipe" else recipe()
    with pytest.raises(ArtifactError):
        tune(backbone, flowers, chosen, checkpoint=b"garbage" if other == "garbage" else kept[0])


def test_the_best_epoch_on_validation_is_what_is_kept(backbone: Backbone, flowers: PackedDataset) -> None:
    reports: list[Epoch] = []
    tuned = tune(backbone, flowers, recipe(epochs=6), on_epoch=lambda report, _: reports.append(report))
    best = max(reports, key=lambda report: (report.val_accuracy, -report.val_loss))
    assert tuned.best_epoch == best.epoch
    assert tuned.val.top1 == best.val_accuracy
    assert tuned.val.loss == pytest.approx(best.val_loss, abs=1e-6)


def test_without_a_test_split_there_are_no_test_metrics(backbone: Backbone, tmp_path: Path) -> None:
    dataset = write_flowers(tmp_path, classes=2, train=3, val=2, test=0)
    assert tune(backbone, dataset, recipe(epochs=1)).test is None


def test_without_validation_images_nothing_is_tuned(backbone: Backbone, tmp_path: Path) -> None:
    dataset = write_flowers(tmp_path, classes=2, train=3, val=0, test=2)
    with pytest.raises(DatasetError):
        tune(backbone, dataset, recipe())


def test_a_loss_that_is_no_number_ends_the_run_with_advice(backbone: Backbone, flowers: PackedDataset) -> None:
    with pytest.raises(TuningDiverged, match="learning rate"):
        tune(backbone, flowers, recipe(learning_rate=1e3, weight_decay=1e3, epochs=10, warmup_epochs=0))


def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    run = _Run(backbone, flowers, recipe(epochs=10, warmup_epochs=2, learning_rate=1.0))
    rates = [run._learning_rate(step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert rates[8] == 1.0
    assert rates[24] == pytest.approx(0.5)
    assert 0 < rates[39] < 0.01
    assert rates[8:] == sorted(rates[8:], reverse=True)


def test_head_matrices_and_vectors_decay_each_in_their_own_way(backbone: Backbone, flowers: PackedDataset) -> None:
    run = _Run(backbone, flowers, recipe(weight_decay=0.1, head_weight_decay=0.2))
    decay = {
        name: group["weight_decay"]
        for group in run.optimizer.param_groups
        for name, parameter in run.trainables.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert decay == {"prompts.A": 0.1, "prompts.B": 0.1, "head.weight": 0.2, "head.bias": 0.0}


def test_fitting_the_head_leaves_the_prompts(backbone: Backbone, flowers: PackedDataset) -> None:
    plain, started = _Run(backbone, flowers, recipe()), _Run(backbone, flowers, HEAD_FIT)
    started.fit_head()
    before, after = plain._state(), started._state()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight", "head.bias"]
    losses = [run._evaluate(run.train, run._evaluation_features(run.train)).loss for run in (plain, started)]
    assert losses[1] < losses[0]


def test_the_first_fit_of_the_head_is_kept_where_nothing_after_it_is_better(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    ruinous = recipe(head_fit_epochs=40, epochs=1, warmup_epochs=0, learning_rate=20.0)
    started = _Run(backbone, flowers, ruinous)
    started.fit_head()
    tuned = tune(backbone, flowers, ruinous)
    assert tuned.best_epoch == 0
    assert tuned.val == started._evaluate_val()


def test_at_the_end_the_head_is_fitted_to_the_final_prompts(backbone: Backbone, flowers: PackedDataset) -> None:
    run = _Run(backbone, flowers, HEAD_FIT)
    run.one_epoch()
    before = {name: value.clone() for name, value in run._state().items()}
    run.best_score = (-1.0, -1.0)  # whatever comes now is the best
    run.finish()
    after = run._state()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["head.weight", "head.bias"]
