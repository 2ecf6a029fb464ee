"""The report of a tuning run: what is judged by whom, what is left out, and that it costs the prompt set nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpt_core import artifact, images, review, samples
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.methods import Method
from bpt_core.predict import Predictor
from bpt_core.recipe import Recipe
from bpt_core.tuning import Tuned, tune
from tests.core.conftest import MakeBackbone, write_flowers

PROBE = Recipe(
    method=Method.LINEAR_PROBE, epochs=30, batch_size=32, warmup_epochs=1, learning_rate=0.1, head_weight_decay=0.0,
    crop_scale_min=1.0, views=1,
)  # fmt: skip
SHADES = (40, 128, 215)


def write_shades(
    directory: Path, *, train: int, wrong: dict[Split, set[int]], task: str = "single-label"
) -> PackedDataset:
    """Grey squares, dark, middle and bright, a little noisy; the images `wrong` of a split bear the next label.

    Some training images in 3 classes; 24 for validation, 24 for tests.
    """
    rng = np.random.default_rng(0)
    with ShardWriter(directory, ("dark", "middle", "bright"), task) as writer:
        for split, count in ((Split.TRAIN, train), (Split.VAL, 24), (Split.TEST, 24)):
            for index in range(count):
                pixels = rng.normal(SHADES[index % 3], 8, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                label = (index + (index in wrong.get(split, ()))) % 3
                picture = images.encode(Image.fromarray(pixels))
                writer.write(Item(picture, f"{split}/{index}.png", (label,), split))
    return PackedDataset(writer.shards)


@pytest.fixture(scope="module")
def wrong() -> dict[Split, set[int]]:
    return {Split.TRAIN: {5, 30}, Split.VAL: {7}, Split.TEST: {20}}


@pytest.fixture
def tuned(backbone: Backbone, tmp_path: Path, wrong: dict[Split, set[int]]) -> Tuned:
    return tune(backbone, write_shades(tmp_path, train=60, wrong=wrong), PROBE)


def test_wrong_labels_of_all_splits_are_found_by_who_has_not_learned_from_them(
    tuned: Tuned, wrong: dict[Split, set[int]]
) -> None:
    assert (tuned.report["error"], tuned.report_failure) == (None, None)
    found = tuned.report["label_errors"]
    assert found["total"] == len(found["items"]) == 4
    assert {(each["split"], each["position"]) for each in found["items"]} == {
        (split, position) for split, positions in wrong.items() for position in positions
    }
    for each in found["items"]:
        assert each["path"] == f"{each['split']}/{each['position']}.png"
        truth = ("dark", "middle", "bright")[each["position"] % 3]
        assert each["suggested"] == [truth] != each["given"]
        assert each["source"] == ("cross-validation" if each["split"] == "train" else "tuned")
        assert 0 < each["confidence"] <= 1
    assert [each["confidence"] for each in found["items"]] == sorted(
        (each["confidence"] for each in found["items"]), reverse=True
    )


def test_the_hardest_images_are_those_of_validation_and_test(tuned: Tuned) -> None:
    hardest = tuned.report["hardest"]
    assert len(hardest) == 48
    assert {(each["split"], each["position"]) for each in hardest[:2]} == {("val", 7), ("test", 20)}
    assert [each["loss"] for each in hardest] == sorted((each["loss"] for each in hardest), reverse=True)
    assert (hardest[0]["given"] == hardest[0]["predicted"]) is False
    assert hardest[-1]["given"] == hardest[-1]["predicted"]


def test_probabilities_are_those_that_predictions_have(backbone: Backbone, tuned: Tuned, tmp_path: Path) -> None:
    worst = tuned.report["hardest"][0]
    items = list(PackedDataset(list(tmp_path.glob("*.parquet"))).items(Split(worst["split"])))
    picture = images.decode(items[worst["position"]].image)
    chances = Predictor(backbone).predict([picture], tuned.prompt_set)[0].probabilities
    given = tuned.prompt_set.class_names.index(worst["given"][0])
    assert tuned.prompt_set.calibration.temperature != 1
    assert worst["loss"] == pytest.approx(-math.log(float(chances[given])), rel=1e-4)


def test_training_images_are_judged_by_features_pooled_as_the_recipe_says(
    make_backbone: MakeBackbone, tmp_path: Path, wrong: dict[Split, set[int]]
) -> None:
    dataset = write_shades(tmp_path, train=60, wrong=wrong)

    def confidences(pooling: Pooling) -> list[float]:
        report = tune(make_backbone(), dataset, replace(PROBE, pooling=pooling)).report
        return [each["confidence"] for each in report["label_errors"]["items"] if each["split"] == "train"]

    assert confidences(Pooling.CLS) != confidences(Pooling.MEAN_ALL)


def test_confused_classes_are_those_of_the_test_split_if_there_is_one(
    tuned: Tuned, backbone: Backbone, tmp_path: Path
) -> None:
    (pair,) = tuned.report["confused_pairs"]
    assert pair == {"split": "test", "true": "dark", "predicted": "bright", "images": 1, "rate": pytest.approx(1 / 9)}
    (more := tmp_path / "more").mkdir()
    alone = tune(backbone, write_flowers(more, classes=2, train=5, val=5, test=0), PROBE).report
    assert {pair["split"] for pair in alone["confused_pairs"]} <= {"val"}
    assert {each["split"] for each in alone["hardest"]} == {"val"}


def test_classes_with_too_few_training_images_are_left_out(backbone: Backbone, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, ("a", "b", "rare")) as writer:
        for split, counts in ((Split.TRAIN, (8, 8, 4)), (Split.VAL, (2, 2, 2))):
            for label, count in enumerate(counts):
                for index in range(count):
                    image = images.encode(samples.draw(label, 10 * label + index))
                    writer.write(Item(image, f"{label}/{index}.png", (label,), split))
    report = tune(backbone, PackedDataset(writer.shards), PROBE).report
    assert report["left_out"] == [{"class": "rare", "images": 4, "reason": "fewer than 5 different training images"}]
    assert report["sampled"] is None


def test_of_a_large_training_split_a_sample_is_judged(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "TRAIN_IMAGES", 36)
    every = {Split.TRAIN: set(range(0, 60, 10))}
    dataset = write_shades(tmp_path, train=60, wrong=every)
    first, again = (tune(backbone, dataset, PROBE).report for _ in range(2))
    assert first == again
    assert first["sampled"] == {"images": 36, "of": 60}
    found = {each["position"] for each in first["label_errors"]["items"] if each["split"] == "train"}
    assert found < every[Split.TRAIN]
    assert len(found) >= 2
    for each in first["label_errors"]["items"]:
        assert each["path"] == f"{each['split']}/{each['position']}.png"


def test_the_lists_are_bounded_and_the_total_is_not(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[Split, set[int]]
) -> None:
    for name, count in (("LABEL_ERRORS", 3), ("HARDEST", 2), ("CONFUSED_PAIRS", 0)):
        monkeypatch.setattr(review, name, count)
    report = tune(backbone, write_shades(tmp_path, train=60, wrong=wrong), PROBE).report
    assert (report["label_errors"]["total"], len(report["label_errors"]["items"])) == (4, 3)
    assert (len(report["hardest"]), report["confused_pairs"]) == (2, [])


def test_several_labels_per_image_are_reported_as_sets(
    backbone: Backbone, tmp_path: Path, wrong: dict[Split, set[int]]
) -> None:
    report = tune(backbone, write_shades(tmp_path, train=60, wrong=wrong, task="multi-label"), PROBE).report
    assert report["error"] is None
    train = [each for each in report["label_errors"]["items"] if each["split"] == "train"]
    assert {each["position"] for each in train} >= wrong[Split.TRAIN]
    assert all(set(each["suggested"]) != set(each["given"]) for each in train)
    assert any(each["true"] != each["predicted"] for each in report["confused_pairs"])


def test_a_report_that_cannot_be_made_does_not_cost_the_prompt_set(
    backbone: Backbone, flowers: PackedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(backbone, flowers, PROBE)

    def fail(*_: object) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(review, "make", fail)
    tuned = tune(backbone, flowers, PROBE)
    assert artifact.to_bytes(tuned.prompt_set) == artifact.to_bytes(whole.prompt_set)
    assert (tuned.val, tuned.test) == (whole.val, whole.test)
    assert tuned.report["error"]["code"] == "report_failed"
    assert "bug" not in tuned.report["error"]["detail"]
    assert tuned.report.keys() == whole.report.keys()
    assert tuned.report_failure is not None
    assert "ZeroDivisionError: a bug" in tuned.report_failure
