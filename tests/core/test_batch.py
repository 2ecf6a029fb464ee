"""Batch prediction over stored images: the same answers as one by one, in the order of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bpt_core import images, samples
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.batch import CHUNK_IMAGES, Batch
from bpt_core.dataset import Item, PackedDataset, ShardWriter, Split
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import Calibration
from bpt_core.predict import Prediction, Predictor

NAMES = ("daisy", "lily", "rose")


def prompt_set_for(backbone: Backbone, seed: int, threshold: float | None) -> PromptSet:
    generator = torch.Generator().manual_seed(seed)
    return PromptSet(
        prompts=None,
        head_weight=torch.randn(3, backbone.embed_dim, generator=generator),
        head_bias=torch.zeros(3),
        class_names=tuple(f"{name} {seed}" for name in NAMES),
        method={"type": "linear-probe", "depth": "shallow", "prompts": 0, "rank": 0},
        backbone=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        pooling=backbone.pooling,
        preprocessing=backbone.preprocessing,
        calibration=Calibration(rejection_threshold=threshold),
    )


@pytest.fixture
def prompt_sets(backbone: Backbone) -> dict[str, PromptSet]:
    return {"one:1": prompt_set_for(backbone, 1, None), "two:7": prompt_set_for(backbone, 2, 1.1)}


def item(seed: int) -> Item:
    picture = samples.draw(seed % 3, seed).resize((40, 40))
    return Item(images.encode(picture), f"{seed}.png", (seed % 3,), Split.TEST)


def test_rows_are_what_the_predictor_says_of_each_image_alone(
    backbone: Backbone, prompt_sets: dict[str, PromptSet]
) -> None:
    items = [item(seed) for seed in range(CHUNK_IMAGES + 3)]
    predictor = Predictor(backbone)
    with Batch({backbone.name: predictor}, prompt_sets, NAMES, top_k=2) as batch:
        chunks = list(batch.chunks(iter(items)))
        assert batch.score_columns == 2
    assert [len(chunk) for chunk in chunks] == [2 * CHUNK_IMAGES, 6]
    rows = [row for chunk in chunks for row in chunk]
    assert [(row["image"], row["prompt_set"]) for row in rows] == [
        (each.path, reference) for each in items for reference in prompt_sets
    ]
    for index in (0, 1, 2, 2 * CHUNK_IMAGES + 5):
        row, place = rows[index], index // 2
        [alone] = predictor.predict([images.decode(items[place].image)], prompt_sets[row["prompt_set"]])
        assert [score["label"] for score in row["scores"]] == [label for label, _ in alone.top(2)]
        assert [score["score"] for score in row["scores"]] == pytest.approx(
            [score for _, score in alone.top(2)], abs=1e-5
        )
        assert row["labels"] == [NAMES[place % 3]]
    assert {(row["prompt_set"], row["unknown"], bool(row["predicted"])) for row in rows} == {
        ("one:1", False, True),
        ("two:7", True, False),
    }


def test_prompt_sets_may_be_of_different_backbones(backbone: Backbone, make_backbone: Callable[..., Backbone]) -> None:
    wide = replace(make_backbone(embed_dim=48, seed=1), name="wide")
    predictors = {each.name: Predictor(each) for each in (backbone, wide)}
    sets = {"one:1": prompt_set_for(backbone, 1, None), "other:1": prompt_set_for(wide, 2, None)}
    with Batch(predictors, sets, NAMES, top_k=1) as batch:
        [rows] = batch.chunks(item(seed) for seed in range(3))
    for row in rows:
        prompt_set, picture = sets[row["prompt_set"]], images.decode(item(int(row["image"][0])).image)
        [alone] = predictors[prompt_set.backbone].predict([picture], prompt_set)
        assert row["scores"][0]["score"] == pytest.approx(alone.top(1)[0][1], abs=1e-5)


def test_an_image_that_cannot_be_read_has_an_error_in_its_rows_and_spoils_no_other(
    backbone: Backbone, prompt_sets: dict[str, PromptSet]
) -> None:
    items = [item(0), Item(b"no image", "bad.png", (), Split.TEST), item(1)]
    with Batch({backbone.name: Predictor(backbone)}, prompt_sets, NAMES, top_k=1) as batch:
        [rows] = batch.chunks(iter(items))
        [alone] = batch.chunks(iter([item(1)]))
    assert [(row["image"], row["error"] and row["error"]["code"]) for row in rows] == [
        *[("0.png", None)] * 2,
        *[("bad.png", "image_corrupt")] * 2,
        *[("1.png", None)] * 2,
    ]
    assert (rows[2]["scores"], rows[2]["predicted"], rows[2]["unknown"]) == ([], [], None)
    for found, expected in zip(rows[4:], alone, strict=True):
        assert found["scores"][0]["label"] == expected["scores"][0]["label"]
        assert found["scores"][0]["score"] == pytest.approx(expected["scores"][0]["score"], abs=1e-5)


def test_where_memory_is_short_a_chunk_is_halved(
    backbone: Backbone, prompt_sets: dict[str, PromptSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Predictor.predict

    def predict(
        self: Predictor, pictures: Sequence[Image.Image], sets: PromptSet | str | Sequence[PromptSet | str]
    ) -> list[Prediction]:
        if len(pictures) > most:
            raise torch.OutOfMemoryError("no room")
        return plain(self, pictures, sets)

    monkeypatch.setattr(Predictor, "predict", predict)
    most = 3
    with Batch({backbone.name: Predictor(backbone)}, prompt_sets, NAMES, top_k=1) as batch:
        [rows] = batch.chunks(item(seed) for seed in range(10))
        assert [row["image"] for row in rows[::2]] == [f"{seed}.png" for seed in range(10)]
        most = 0
        with pytest.raises(torch.OutOfMemoryError):
            list(batch.chunks(iter([item(0)])))


def test_a_prompt_set_of_other_weights_is_refused_before_any_image(
    backbone: Backbone, prompt_sets: dict[str, PromptSet]
) -> None:
    foreign = replace(prompt_sets["one:1"], backbone_fingerprint="00")
    with pytest.raises(ArtifactError):
        Batch({backbone.name: Predictor(backbone)}, {"foreign:1": foreign}, NAMES, top_k=1)


def test_items_go_on_behind_those_to_skip(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, NAMES, shard_bytes=2_000, row_group_rows=3) as writer:
        for number in range(20):
            split = Split.TRAIN if number % 2 else Split.TEST
            writer.write(Item(bytes(300), f"{number}.png", (0,), split))
    assert len(writer.shards) > 1
    dataset = PackedDataset(writer.shards)
    for split in (None, *Split):
        paths = [each.path for each in dataset.items(split)]
        assert dataset.images(split) == len(paths)
        for skip in range(len(paths) + 2):
            assert [each.path for each in dataset.items(split, skip=skip)] == paths[skip:]
