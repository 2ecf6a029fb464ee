"""Artifacts: exact round trips, equal content in equal bytes, and refusal of what is not one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load, save

from bpt_core import artifact, images
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import Calibration
from bpt_core.methods import Method
from bpt_core.predict import Predictor
from bpt_core.recipe import Recipe
from bpt_core.tuning import tune
from tests.core.conftest import MakeBackbone


def probe() -> Recipe:
    return Recipe(method=Method.LINEAR_PROBE, epochs=2, warmup_epochs=0, views=1)


def bilinear() -> Recipe:
    return Recipe(method=Method.BPT_BILINEAR, prompts=6, rank=4, epochs=2, warmup_epochs=0)


@pytest.fixture
def tuned(backbone: Backbone, flowers: PackedDataset) -> PromptSet:
    return tune(backbone, flowers, bilinear()).prompt_set


@pytest.mark.parametrize("recipe", [bilinear(), probe()], ids=["bpt-bilinear", "linear-probe"])
def test_a_prompt_set_predicts_exactly_the_same_after_the_round_trip(
    backbone: Backbone, flowers: PackedDataset, recipe: Recipe
) -> None:
    tuned = tune(backbone, flowers, recipe).prompt_set
    again = artifact.from_bytes(artifact.to_bytes(tuned))
    pictures = [images.decode(item.image) for item in flowers.items(Split.TEST)]
    predictor = Predictor(backbone)
    for before, after in zip(predictor.predict(pictures, tuned), predictor.predict(pictures, again), strict=True):
        assert torch.equal(before.probabilities, after.probabilities)
    assert again.class_names == tuned.class_names
    assert again.method == tuned.method
    assert again.calibration == tuned.calibration


def test_the_bytes_of_an_artifact_that_was_taken_in_again_are_the_same(tuned: PromptSet) -> None:
    assert artifact.to_bytes(artifact.from_bytes(artifact.to_bytes(tuned))) == artifact.to_bytes(tuned)


def test_the_accuracy_reported_by_tuning_is_that_of_the_served_artifact(
    backbone: Backbone, flowers: PackedDataset
) -> None:
    result = tune(backbone, flowers, bilinear())
    served = artifact.from_bytes(artifact.to_bytes(result.prompt_set))
    items = list(flowers.items(Split.TEST))
    predictions = Predictor(backbone).predict([images.decode(item.image) for item in items], served)
    hits = sum(int(row.logits.argmax()) == item.labels[0] for row, item in zip(predictions, items, strict=True))
    assert result.test is not None
    assert result.test.score == pytest.approx(hits / len(items))


def test_equal_content_is_equal_bytes(tuned: PromptSet) -> None:
    shuffled = dataclasses.replace(
        tuned,
        method=dict(reversed(list(tuned.method.items()))),
        factors=dict(reversed(list(tuned.factors.items()))),
    )
    assert artifact.to_bytes(shuffled) == artifact.to_bytes(tuned)


def test_folded_prompts_are_the_product_of_the_factors(tuned: PromptSet) -> None:
    assert tuned.prompts is not None
    torch.testing.assert_close(tuned.prompts, tuned.factors["A"] @ tuned.factors["B"].mT)


def test_the_metadata_is_one_key_of_sorted_json_without_times_or_ids(tuned: PromptSet) -> None:
    data = artifact.to_bytes(tuned)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["bpt"]
    metadata = json.loads(header["__metadata__"]["bpt"])
    assert list(metadata) == sorted(metadata)
    assert set(metadata) == {
        *("backbone", "backbone_fingerprint", "calibration", "class_names", "format", "method", "pooling"),
        *("preprocessing", "task"),
    }


def test_an_artifact_of_the_first_format_is_still_read(tuned: PromptSet) -> None:
    data = artifact.to_bytes(tuned)
    metadata = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["bpt"])
    del metadata["calibration"]
    old = {name: value if name.startswith("head.") else value[0].contiguous() for name, value in load(data).items()}
    again = artifact.from_bytes(save(old, {"bpt": json.dumps({**metadata, "format": 1})}))
    assert again.prompts is not None
    assert tuned.prompts is not None
    assert torch.equal(again.prompts, tuned.prompts)
    assert again.calibration.temperature == 1


def test_prompts_learned_on_other_weights_are_refused(
    make_backbone: MakeBackbone, flowers: PackedDataset, tuned: PromptSet
) -> None:
    picture = images.decode(next(flowers.items(Split.TEST)).image)
    with pytest.raises(ArtifactError, match="other weights"):
        Predictor(make_backbone(seed=1)).predict([picture], tuned)


def test_prompts_for_more_blocks_than_the_backbone_has_are_refused(
    backbone: Backbone, flowers: PackedDataset, tuned: PromptSet
) -> None:
    assert tuned.prompts is not None
    picture = images.decode(next(flowers.items(Split.TEST)).image)
    deeper = dataclasses.replace(tuned, prompts=tuned.prompts.repeat(3, 1, 1), method={**tuned.method, "depth": "deep"})
    with pytest.raises(ArtifactError, match="3 blocks"):
        Predictor(backbone).predict([picture], deeper)


def test_probabilities_are_those_at_the_fitted_temperature(
    backbone: Backbone, flowers: PackedDataset, tuned: PromptSet
) -> None:
    picture = images.decode(next(flowers.items(Split.TEST)).image)
    predictor = Predictor(backbone)
    plain, hot = (
        predictor.predict([picture], dataclasses.replace(tuned, calibration=Calibration(temperature)))[0].probabilities
        for temperature in (1.0, 4.0)
    )
    torch.testing.assert_close(hot, (plain.log() / 4).softmax(dim=0))


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_bytes_are_corrupt(tuned: PromptSet, cut: int) -> None:
    with pytest.raises(ArtifactError) as caught:
        artifact.from_bytes(artifact.to_bytes(tuned)[:cut])
    assert caught.value.code == "artifact_corrupt"


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tuned: PromptSet, poison: float) -> None:
    bad = tuned.head_bias.clone()
    bad[0] = poison
    with pytest.raises(ArtifactError) as caught:
        artifact.from_bytes(artifact.to_bytes(dataclasses.replace(tuned, head_bias=bad)))
    assert caught.value.code == "artifact_non_finite"


@pytest.mark.parametrize("change", ["shape", "dtype", "missing", "extra", "metadata", "temperature"])
def test_tensors_and_metadata_that_do_not_belong_are_refused(tuned: PromptSet, change: str) -> None:
    data = artifact.to_bytes(tuned)
    tensors = load(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if change == "shape":
        tensors["head.weight"] = tensors["head.weight"][:, :-1].contiguous()
    elif change == "dtype":
        tensors["head.bias"] = tensors["head.bias"].half()
    elif change == "missing":
        del tensors["prompts.folded"]
    elif change == "extra":
        tensors["stowaway"] = torch.zeros(1)
    elif change == "temperature":
        facts = json.loads(metadata["bpt"])
        metadata = {"bpt": json.dumps({**facts, "calibration": {**facts["calibration"], "temperature": 0.0}})}
    else:
        metadata = {"bpt": json.dumps({**json.loads(metadata["bpt"]), "surprise": 1})}
    with pytest.raises(ArtifactError) as caught:
        artifact.from_bytes(save(tensors, metadata))
    assert caught.value.code == "artifact_schema"
