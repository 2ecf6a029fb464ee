"""Tuning: what it learns, what it leaves alone, and that an interrupted run ends like an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bpt_core import artifact, images, samples
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.errors import ArtifactError, BackboneError, DatasetError, TuningDiverged
from bpt_core.evaluate import MultiLabelEvaluation
from bpt_core.methods import Depth, Method, Start
from bpt_core.predict import Predictor
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch
from bpt_core.tuning import OnEpoch, Standing, tune
from tests.core.conftest import MakeBackbone, write_flowers


def recipe(**given: Any) -> Recipe:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 4, "batch_size": 7, "warmup_epochs": 1}
    return Recipe(**{**base, **given})


PROBE = Recipe(method=Method.LINEAR_PROBE, epochs=4, batch_size=7, warmup_epochs=1, views=2, learning_rate=0.05)

HEAD_FIT = recipe(head_fit_epochs=20)
RICH = recipe(depth=Depth.DEEP, start=Start.WHITENED, ema=True, mixup=0.4, label_smoothing=0.1, balance_classes=True)
CHOICES = [
    pytest.param(recipe(), id="bpt-bilinear"),
    pytest.param(HEAD_FIT, id="with head fit"),
    pytest.param(PROBE, id="linear-probe"),
    pytest.param(RICH, id="deep, whitened, averaged, mixed up"),
    pytest.param(recipe(method=Method.BPT_TWHITEN, rank=0, depth=Depth.DEEP_TOP4, views=2), id="bpt-twhiten"),
    pytest.param(recipe(method=Method.SPT, rank=0, start=Start.KMEANS, depth=Depth.DEEP), id="spt, k-means"),
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


def interrupt_after(epoch: int, kept: list[bytes]) -> OnEpoch:
    def on_epoch(report: Epoch, standing: Standing) -> None:
        if report.epoch == epoch:
            kept.append(standing.checkpoint())
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
    assert resumed.report == whole.report
    assert (whole.report["error"], whole.report_failure) == (None, None)


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


@pytest.mark.parametrize("given", [{}, {"ema": True, "learning_rate": 1.0}], ids=["plain", "averaged"])
def test_the_best_epoch_on_validation_is_what_is_kept(
    backbone: Backbone, flowers: PackedDataset, given: dict[str, Any]
) -> None:
    reports: list[Epoch] = []
    tuned = tune(backbone, flowers, recipe(epochs=6, **given), on_epoch=lambda report, _: reports.append(report))
    assert tuned.best_epoch < 6  # or the last state would do as well
    best = max(reports, key=lambda report: (report.val_accuracy, -report.val_loss))
    assert tuned.best_epoch == best.epoch
    assert tuned.val.score == best.val_accuracy
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


def test_the_first_fit_of_the_head_is_kept_where_nothing_after_it_is_better(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    ruinous = recipe(head_fit_epochs=40, epochs=1, warmup_epochs=0, learning_rate=20.0)
    assert tune(backbone, flowers, ruinous).best_epoch == 0


def test_patience_ends_a_run_that_no_longer_gets_better(backbone: Backbone, flowers: PackedDataset) -> None:
    hopeless = recipe(epochs=30, patience=3, learning_rate=20.0, warmup_epochs=0, head_fit_epochs=40)
    seen: list[int] = []
    tuned = tune(backbone, flowers, hopeless, on_epoch=lambda report, _: seen.append(report.epoch))
    assert seen[-1] == tuned.best_epoch + 3 < 30


def test_what_is_fitted_on_the_validation_split_is_in_the_artifact(backbone: Backbone, flowers: PackedDataset) -> None:
    tuned = tune(backbone, flowers, recipe())
    calibration = artifact.from_bytes(artifact.to_bytes(tuned.prompt_set)).calibration
    assert calibration.temperature != 1
    assert calibration.rejection_threshold is not None


def test_whitening_and_burstiness_are_reported(backbone: Backbone, flowers: PackedDataset) -> None:
    tuned = tune(backbone, flowers, RICH)
    assert [each["block"] for each in tuned.whitening] == [0, 1]
    assert tuned.whitening[0]["images"] == 24
    assert tuned.whitening[0]["tokens"] == 24 * 16
    assert set(tuned.burstiness) == {"WqWkX", "WqWk", "X", "prompts"}
    probe = tune(backbone, flowers, PROBE)
    assert (probe.whitening, probe.burstiness) == ([], {})


def test_a_pooling_that_the_backbone_has_not_is_refused_before_any_work(
    make_backbone: MakeBackbone, flowers: PackedDataset
) -> None:
    headless = make_backbone(class_token=False, global_pool="avg")
    with pytest.raises(BackboneError, match="class token"):
        tune(headless, flowers, recipe(pooling=Pooling.CLS))


def test_several_labels_per_image(backbone: Backbone, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, samples.CLASS_NAMES[:3], task="multi-label") as writer:
        for split, count in ((Split.TRAIN, 8), (Split.VAL, 5), (Split.TEST, 5)):
            for index in range(count):
                labels = tuple(sorted({index % 3, (index * 2 + 1) % 3}))
                image = images.encode(samples.draw(labels[0], index))
                writer.write(Item(image, f"{split}/{index}.png", labels, split))
    tuned = tune(backbone, PackedDataset(writer.shards), recipe())
    assert isinstance(tuned.val, MultiLabelEvaluation)
    assert tuned.prompt_set.task == "multi-label"
    assert tuned.prompt_set.calibration.label_thresholds is not None
    assert tuned.report_failure is None


SEARCH = Search(("head_weight_decay", "learning_rate", "rank"), trials=4)


def test_a_search_halves_its_trials_and_trains_the_winner_to_the_end(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    trials: list[int] = []
    tuned = tune(
        backbone,
        flowers,
        recipe(epochs=8),
        search=SEARCH,
        on_epoch=lambda report, _: trials.append(report.trials),
    )
    assert trials == [4, 2, 1, 1, 1, 1, 1, 1]
    assert sorted(row["epochs"] for row in tuned.trials) == [1, 1, 2, 8]
    after_one = [row["score"] for row in tuned.trials if row["epochs"] == 1]
    winner = next(row for row in tuned.trials if row["epochs"] == 8)
    assert {"learning_rate": tuned.recipe.learning_rate, "rank": tuned.recipe.rank}.items() <= winner.items()
    assert len(after_one) == 2
    assert tuned.prompt_set.method["rank"] == tuned.recipe.rank


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_a_resumed_search_ends_with_the_bytes_of_an_uninterrupted_one(
    backbone: Backbone, flowers: PackedDataset, epoch: int
) -> None:
    chosen = recipe(epochs=8, head_fit_epochs=4)
    whole = tune(backbone, flowers, chosen, search=SEARCH)
    kept: list[bytes] = []
    with pytest.raises(Interrupted):
        tune(backbone, flowers, chosen, search=SEARCH, on_epoch=interrupt_after(epoch, kept))
    resumed = tune(backbone, flowers, chosen, search=SEARCH, checkpoint=kept[0])
    assert artifact.to_bytes(resumed.prompt_set) == artifact.to_bytes(whole.prompt_set)
    assert resumed.trials == whole.trials
    with pytest.raises(ArtifactError):
        tune(backbone, flowers, chosen, checkpoint=kept[0])


def test_trials_of_several_depths_and_methods_compete(backbone: Backbone, flowers: PackedDataset) -> None:
    search = Search(("depth", "method"), trials=6)
    tuned = tune(backbone, flowers, recipe(epochs=4), search=search)
    assert len({(row["method"], row["depth"]) for row in tuned.trials}) > 3
    assert tuned.prompt_set.method["type"] == tuned.recipe.method
    again = artifact.from_bytes(artifact.to_bytes(tuned.prompt_set))
    picture = images.decode(next(flowers.items(Split.TEST)).image)
    assert Predictor(backbone).predict([picture], again)[0].probabilities.shape == (3,)


def test_a_trial_that_diverges_loses_and_does_not_end_the_search(backbone: Backbone, flowers: PackedDataset) -> None:
    ruinous = recipe(learning_rate=1e3, weight_decay=1e3, epochs=8, warmup_epochs=0)
    with pytest.raises(TuningDiverged):
        tune(backbone, flowers, ruinous)
    tuned = tune(backbone, flowers, ruinous, search=Search(("learning_rate", "weight_decay"), trials=4))
    assert tuned.recipe.learning_rate <= 1
