"""Tuning that goes on from a prompt set, and the prompt set that every epoch leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bpt_core import artifact, continuing, images
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError, InvalidSetting
from bpt_core.evaluate import NO_CALIBRATION, evaluate
from bpt_core.headers import describe
from bpt_core.methods import Depth, Method, Start
from bpt_core.predict import Predictor
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch
from bpt_core.tuning import Leader, Standing, tune
from bpt_core.views import SplitImages
from tests.core.conftest import MakeBackbone, write_flowers


def recipe(**given: Any) -> Recipe:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 4, "batch_size": 7, "warmup_epochs": 1}
    return Recipe(**{**base, **given})


PLAIN = {"method": Method.VPT, "rank": 0}
METHODS = [
    pytest.param(recipe(learning_rate=0.02), 1e-5, id="bpt-bilinear"),
    pytest.param(recipe(depth=Depth.DEEP, start=Start.WHITENED, head_fit_epochs=4), 1e-5, id="deep, with head fit"),
    pytest.param(recipe(**PLAIN, ema=True), 1e-5, id="vpt, averaged"),
    pytest.param(recipe(method=Method.SPT, rank=0), 1e-5, id="spt"),
    pytest.param(recipe(method=Method.BPT_FWHITEN, rank=0), 1e-4, id="bpt-fwhiten"),
    pytest.param(recipe(method=Method.BPT_TWHITEN, rank=0, depth=Depth.DEEP), 1e-4, id="bpt-twhiten"),
    pytest.param(Recipe(method=Method.LINEAR_PROBE, epochs=4, warmup_epochs=1, views=2), 1e-5, id="linear-probe"),
]


def first_epoch(*arguments: Any, **more: Any) -> Epoch:
    seen: list[Epoch] = []
    tune(*arguments, **more, on_epoch=lambda report, _: seen.append(report))
    return seen[0]


def still(chosen: Recipe) -> Recipe:
    """As good as no learning."""
    return replace(chosen, epochs=1, warmup_epochs=0, learning_rate=1e-8, seed=9)


@pytest.mark.parametrize(("chosen", "tolerance"), METHODS)
def test_a_run_that_goes_on_begins_where_the_version_ended(
    backbone: Backbone, flowers: PackedDataset, chosen: Recipe, tolerance: float
) -> None:
    tuned = tune(backbone, flowers, chosen)
    version = artifact.from_bytes(artifact.to_bytes(tuned.prompt_set))
    begun = first_epoch(backbone, flowers, still(chosen), start=version)
    assert begun.val_accuracy == tuned.val.score
    assert begun.val_loss == pytest.approx(tuned.val.loss, abs=tolerance)
    fresh = first_epoch(backbone, flowers, still(chosen))
    assert abs(fresh.val_loss - tuned.val.loss) > 10 * tolerance  # or beginning anywhere would do as well


@pytest.mark.parametrize("head_fit_epochs", [0, 8])
def test_with_other_classes_the_prompts_are_carried_and_the_head_is_new(
    backbone: Backbone, flowers: PackedDataset, tmp_path: Path, head_fit_epochs: int
) -> None:
    version = tune(backbone, flowers, recipe()).prompt_set
    others = write_flowers(tmp_path, classes=2, train=4, val=3, test=0)
    chosen = still(recipe(head_fit_epochs=head_fit_epochs))
    tuned = tune(backbone, others, chosen, start=version).prompt_set
    assert tuned.prompts is not None
    assert version.prompts is not None
    torch.testing.assert_close(tuned.prompts, version.prompts)
    assert tuned.head_weight.shape == (2, 32)
    assert tuned.class_names == version.class_names[:2]


def test_a_run_that_only_gets_worse_gives_back_what_it_began_with(backbone: Backbone, flowers: PackedDataset) -> None:
    version = tune(backbone, flowers, recipe()).prompt_set
    ruinous = recipe(learning_rate=20.0, epochs=1, warmup_epochs=0)
    again = tune(backbone, flowers, ruinous, start=version)
    assert again.best_epoch == 0
    assert again.prompt_set.sha256 == version.sha256


def test_every_trial_of_a_search_begins_there(backbone: Backbone, flowers: PackedDataset) -> None:
    tuned = tune(backbone, flowers, recipe())
    search = Search(("weight_decay", "head_weight_decay"), trials=4)
    chosen = replace(still(recipe()), epochs=8)
    found = tune(backbone, flowers, chosen, search=search, start=tuned.prompt_set)
    assert [row["score"] for row in found.trials] == [tuned.val.score] * 4
    assert found.val.loss == pytest.approx(tuned.val.loss, abs=1e-5)


def test_what_it_begins_with_belongs_to_a_checkpoint(backbone: Backbone, flowers: PackedDataset) -> None:
    one, other = (tune(backbone, flowers, recipe(seed=seed)).prompt_set for seed in (0, 1))
    kept: list[bytes] = []
    whole = tune(backbone, flowers, recipe(), start=one, on_epoch=lambda _, now: kept.append(now.checkpoint()))
    resumed = tune(backbone, flowers, recipe(), start=one, checkpoint=kept[1])
    assert resumed.prompt_set.sha256 == whole.prompt_set.sha256
    for start in (other, None):
        with pytest.raises(ArtifactError) as refused:
            tune(backbone, flowers, recipe(), start=start, checkpoint=kept[1])
        assert refused.value.code == "checkpoint_mismatch"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rank": 3}, "rank"),
        ({"prompts": 5}, "prompts"),
        ({"depth": Depth.DEEP}, "depth"),
        ({**PLAIN}, "method"),
        ({"pooling": Pooling.MEAN_PATCHES}, "pooling"),
    ],
)
def test_what_differs_from_the_version_is_named(
    backbone: Backbone, flowers: PackedDataset, given: dict[str, Any], named: str
) -> None:
    version = tune(backbone, flowers, recipe(epochs=1, warmup_epochs=0)).prompt_set
    with pytest.raises(InvalidSetting, match=f"{named} is") as refused:
        tune(backbone, flowers, recipe(**given), start=version)
    assert refused.value.code == "continue_mismatch"


def test_shapes_cannot_be_searched_and_other_weights_do_not_fit(
    backbone: Backbone, make_backbone: MakeBackbone, flowers: PackedDataset
) -> None:
    version = tune(backbone, flowers, recipe(epochs=1, warmup_epochs=0)).prompt_set
    with pytest.raises(InvalidSetting, match="rank") as refused:
        tune(backbone, flowers, recipe(), search=Search(("learning_rate", "rank")), start=version)
    assert refused.value.code == "continue_mismatch"
    with pytest.raises(InvalidSetting, match="fingerprint") as refused:
        tune(make_backbone(seed=1), flowers, recipe(), start=version)
    assert refused.value.code == "continue_mismatch"


def test_settings_come_from_the_header_of_an_artifact(backbone: Backbone, flowers: PackedDataset) -> None:
    header = describe(artifact.to_bytes(tune(backbone, flowers, recipe(epochs=1, warmup_epochs=0)).prompt_set))
    assert tuple(header["class_names"]) == flowers.class_names
    settings = continuing.settings_of(header["method"], header["pooling"])
    assert settings == {"method": "bpt-bilinear", "depth": "shallow", "prompts": 6, "rank": 4, "pooling": "mean-all"}
    for garbage in (b"", b"artifact", b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"):
        with pytest.raises(ArtifactError):
            describe(garbage)


# --- the prompt set of an epoch ---


def judged(backbone: Backbone, dataset: PackedDataset, prompt_set: PromptSet) -> float:
    """The loss on the validation split, through what serves predictions."""
    targets = SplitImages(dataset, Split.VAL, backbone.image_size).targets
    pictures = [images.decode(item.image) for item in dataset.items(Split.VAL)]
    found = Predictor(backbone).predict(pictures, prompt_set)
    logits = torch.stack([each.probabilities for each in found]).log()  # but for a number that all classes share
    return evaluate(logits, targets, dataset.class_names, dataset.task).loss


@pytest.mark.parametrize("given", [{}, {"ema": True, "learning_rate": 1.0}, {**PLAIN, "ema": True}])
def test_every_epoch_leaves_what_was_judged(backbone: Backbone, flowers: PackedDataset, given: dict[str, Any]) -> None:
    seen: list[tuple[Epoch, Leader]] = []

    def on_epoch(report: Epoch, standing: Standing) -> None:
        seen.append((report, standing.leader()))

    tuned = tune(backbone, flowers, recipe(**given), on_epoch=on_epoch)
    sets = [artifact.from_bytes(leader.artifact) for _, leader in seen]
    assert len({each.sha256 for each in sets}) == 4
    for (report, leader), prompt_set in zip(seen, sets, strict=True):
        assert prompt_set.calibration == NO_CALIBRATION
        assert (leader.val.score, leader.val.loss) == (report.val_accuracy, report.val_loss)
        assert judged(backbone, flowers, prompt_set) == pytest.approx(report.val_loss, abs=1e-5)
    best = replace(sets[tuned.best_epoch - 1], calibration=tuned.prompt_set.calibration)
    assert best.sha256 == tuned.prompt_set.sha256


def test_asking_for_it_changes_nothing(backbone: Backbone, flowers: PackedDataset) -> None:
    def ask(_: Epoch, standing: Standing) -> None:
        standing.leader()

    chosen = recipe(ema=True)
    asked = tune(backbone, flowers, chosen, on_epoch=ask)
    assert asked.prompt_set.sha256 == tune(backbone, flowers, chosen).prompt_set.sha256


def test_in_a_search_it_is_the_leaders(backbone: Backbone, flowers: PackedDataset) -> None:
    seen: list[tuple[Epoch, Leader]] = []
    search = Search(("rank", "learning_rate"), trials=4)

    def on_epoch(report: Epoch, standing: Standing) -> None:
        seen.append((report, standing.leader()))

    tune(backbone, flowers, recipe(epochs=8), search=search, on_epoch=on_epoch)
    for report, leader in seen:
        assert (leader.val.score, leader.val.loss) == (report.val_accuracy, report.val_loss)
        assert artifact.from_bytes(leader.artifact).method["rank"] == leader.recipe.rank


# --- checkpoints that cannot be gone on from ---


def test_a_checkpoint_of_other_software_is_refused_and_no_crash(backbone: Backbone, flowers: PackedDataset) -> None:
    from safetensors.torch import load, save

    kept: list[bytes] = []
    tune(backbone, flowers, recipe(), on_epoch=lambda _, standing: kept.append(standing.checkpoint()))
    tensors = load(kept[0])
    spoilt = {
        "another name": {name.replace("prompts.A", "prompts.C"): value for name, value in tensors.items()},
        "another shape": {
            name: value[..., :1] if "now.head.weight" in name else value for name, value in tensors.items()
        },
        "no moments": {name: value for name, value in tensors.items() if "adamw" not in name},
        "facts of something else": {**tensors, "facts": torch.tensor(list(b"[]"), dtype=torch.uint8)},
        "no facts": {name: value for name, value in tensors.items() if name != "facts"},
    }
    for what, changed in spoilt.items():
        ready = {name: value.contiguous() for name, value in changed.items()}
        with pytest.raises(ArtifactError) as refused:
            tune(backbone, flowers, recipe(), checkpoint=save(ready))
        assert refused.value.code == "checkpoint_corrupt", what
