"""Prediction: any mix of prompt sets equals each alone, and nothing of one shows in another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from benchmarks.prompt_sets import random_prompt_set
from bpt_core import artifact
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, freeze, load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE, Pooling
from bpt_core.compute import Precision
from bpt_core.dataset import MULTI_LABEL
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import Calibration
from bpt_core.methods import Depth
from bpt_core.predict import Prediction, Predictor
from bpt_core.transforms import evaluation_view
from tests.core import reference
from tests.core.conftest import MakeBackbone

IMAGES = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)) for seed in range(4)]
SHAPES: list[tuple[Depth | None, int, int, Pooling]] = [
    (depth, length, classes, pooling)
    for pooling in (Pooling.MEAN_ALL, Pooling.CLS, Pooling.MEAN_PATCHES)
    for depth, length, classes in (
        (Depth.SHALLOW, 1, 2),
        (Depth.SHALLOW, 9, 3),
        (Depth.DEEP, 4, 11),
        (Depth.DEEP, 7, 2),
        (Depth.DEEP_TOP4, 4, 5),
        (Depth.DEEP_TOP4, 2, 3),
        (None, 0, 4),
    )
]


@cache
def small() -> tuple[Backbone, list[PromptSet]]:
    """Six blocks of random weights, and one prompt set of every shape."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=0)
    for parameter in model.parameters():  # norms that start at 1 and biases at 0 would hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    backbone = freeze(model, "small", pooling=Pooling.MEAN_ALL)
    sets = [
        random_prompt_set(backbone, depth=depth, length=length, classes=classes, pooling=pooling, seed=seed)
        for seed, (depth, length, classes, pooling) in enumerate(SHAPES)
    ]
    return backbone, sets


@cache
def alone(image: int, chosen: int) -> Tensor:
    """Probabilities by the plain reference: one image, one prompt set."""
    backbone, sets = small()
    prompt_set = sets[chosen]
    pixels = torch.from_numpy(np.array(evaluation_view(IMAGES[image], 32))).permute(2, 0, 1)[None]
    prompts = prompt_set.prompts if prompt_set.prompts is not None else torch.empty(1, 0, 32)
    depth, pooling = Depth(prompt_set.method["depth"]), Pooling(prompt_set.pooling)
    with torch.no_grad():
        features = reference.features(backbone, backbone.normalise(pixels), prompts, depth, pooling)
    return (features[0] @ prompt_set.head_weight.T + prompt_set.head_bias).softmax(0)


Row = tuple[int, int]
rows_strategy = st.lists(
    st.tuples(st.integers(0, len(IMAGES) - 1), st.integers(0, len(SHAPES) - 1)), min_size=1, max_size=12
)


def predict(predictor: Predictor, rows: Sequence[Row]) -> list[Prediction]:
    _, sets = small()
    return predictor.predict([IMAGES[image] for image, _ in rows], [sets[chosen] for _, chosen in rows])


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert int(found.argmax()) == int(expected.argmax())


@settings(deadline=None, max_examples=60)
@given(rows_strategy)
def test_a_mixed_batch_equals_each_prompt_set_alone(rows: list[Row]) -> None:
    backbone, sets = small()
    for (image, chosen), prediction in zip(rows, predict(Predictor(backbone), rows), strict=True):
        assert_equal(prediction.probabilities, alone(image, chosen))
        assert prediction.facts.class_names == sets[chosen].class_names


@pytest.mark.parametrize("pooling", [Pooling.MEAN_ALL, Pooling.CLS, Pooling.MEAN_PATCHES, Pooling.MAP])
def test_every_pooling_mixes(make_backbone: MakeBackbone, pooling: Pooling) -> None:
    shape = {"global_pool": "map"} if pooling is Pooling.MAP else {}
    backbone = make_backbone(pooling, depth=6, **shape)
    sets = [
        random_prompt_set(backbone, depth=depth, length=length, seed=length)
        for depth, length in [(None, 0), (Depth.SHALLOW, 3), (Depth.SHALLOW, 5), (Depth.DEEP, 2), (Depth.DEEP_TOP4, 6)]
    ]
    predictor = Predictor(backbone)
    mixed = predictor.predict([IMAGES[0]] * 5, sets)
    for prompt_set, prediction in zip(sets, mixed, strict=True):
        assert_equal(prediction.probabilities, predictor.predict(IMAGES[:1], prompt_set)[0].probabilities)


@settings(deadline=None, max_examples=40)
@given(rows_strategy, rows_strategy, st.integers(0, 2**32 - 1))
def test_neighbours_and_their_order_change_nothing(mine: list[Row], others: list[Row], seed: int) -> None:
    """Whatever stands beside a customer's rows, and whatever lay on the device before, his answers are his own."""
    backbone, _ = small()
    predictor = Predictor(backbone, device_bytes=100 * 1024)  # 800 pages: the sets do not all fit at once
    predict(predictor, others)
    everything = [*mine, *others]
    order = np.random.default_rng(seed).permutation(len(everything))
    found = predict(predictor, [everything[place] for place in order])
    for place, prediction in zip(order, found, strict=True):
        image, chosen = everything[place]
        assert_equal(prediction.probabilities, alone(image, chosen))
        # The names begin with the number of the set: another's would show.
        assert {label.split("-")[0] for label, _ in prediction.top(100)} == {str(chosen)}


@settings(deadline=None, max_examples=40)
@given(st.lists(rows_strategy, min_size=1, max_size=6), st.sampled_from([0, 60_000, 10**6]))
def test_eviction_and_reload_are_invisible(batches: list[list[Row]], host_bytes: int) -> None:
    backbone, _ = small()
    predictor = Predictor(backbone, device_bytes=25 * 1024, host_bytes=host_bytes)  # a few sets at a time
    for rows in batches:
        for (image, chosen), prediction in zip(rows, predict(predictor, rows), strict=True):
            assert_equal(prediction.probabilities, alone(image, chosen))


def test_prompts_of_different_lengths_take_one_forward() -> None:
    backbone, _ = small()
    calls: list[int] = []
    hook = backbone.model.blocks[0].mlp.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    deep = [chosen for chosen, (depth, _, _, pooling) in enumerate(SHAPES) if (depth, pooling) == ("deep", "cls")]
    probe = SHAPES.index((None, 0, 4, Pooling.CLS))
    predict(Predictor(backbone), [(0, deep[0]), (1, deep[1]), (2, probe)])
    hook.remove()
    assert calls == [3]


def test_below_the_prompts_an_image_is_computed_once_for_all_its_prompt_sets() -> None:
    backbone, _ = small()
    calls: dict[int, int] = {}
    hooks = [
        block.mlp.register_forward_hook(lambda _m, inputs, _o, at=at: calls.update({at: len(inputs[0])}))
        for at, block in enumerate(backbone.model.blocks)
    ]
    top4 = [chosen for chosen, (depth, _, _, pooling) in enumerate(SHAPES) if (depth, pooling) == ("deep-top4", "cls")]
    found = predict(Predictor(backbone), [(0, top4[0]), (0, top4[1]), (1, top4[0])])
    for hook in hooks:
        hook.remove()
    assert calls == {0: 2, 1: 2, 2: 3, 3: 3, 4: 3, 5: 3}
    assert_equal(found[1].probabilities, alone(0, top4[1]))
    assert_equal(found[2].probabilities, alone(1, top4[0]))


def test_a_normalised_picture_is_taken_as_it_is_beside_others() -> None:
    backbone, sets = small()
    predictor = Predictor(backbone)
    resident = predictor.residency.load(sets[0].sha256, sets[0])
    assert resident is not None
    drawn = evaluation_view(IMAGES[0], 32)
    ready = backbone.normalise(torch.from_numpy(np.array(drawn)).permute(2, 0, 1)[None])[0].numpy()
    other = evaluation_view(IMAGES[1], 32)
    rows = [(0, resident), (1, resident), (2, resident)]
    first, second, third = predictor.launch([drawn, ready, other], rows).predictions()
    torch.testing.assert_close(first.logits, second.logits)
    assert_equal(third.probabilities, alone(1, 0))


def test_in_bf16_the_best_class_is_the_same_wherever_the_margin_is_clear() -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    sets = [
        random_prompt_set(backbone, depth=depth, length=8, classes=7, seed=seed)
        for seed, depth in enumerate([Depth.SHALLOW, Depth.DEEP, Depth.DEEP_TOP4, None] * 4)
    ]
    images = [IMAGES[seed % 4] for seed in range(len(sets))]
    exact = Predictor(backbone).predict(images, sets)
    fast = Predictor(backbone, precision=Precision.BF16).predict(images, sets)
    assert next(backbone.model.parameters()).dtype == torch.float32
    clear = 0
    for one, other in zip(exact, fast, strict=True):
        best, second = one.logits.topk(2).values.tolist()
        if best - second > 0.02 * float(one.logits.abs().max()):
            clear += 1
            assert int(one.logits.argmax()) == int(other.logits.argmax())
        torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=0.05 * float(one.logits.abs().max()))
    assert clear > 10


def test_artifacts_alone_make_a_predictor(tmp_path: Path) -> None:
    backbone = load_backbone(DEFAULT_BACKBONE)
    sets = [random_prompt_set(backbone, depth=depth, seed=seed) for seed, depth in enumerate([Depth.SHALLOW, None])]
    paths = [tmp_path / "birds.safetensors", tmp_path / "quality.safetensors"]
    for path, prompt_set in zip(paths, sets, strict=True):
        path.write_bytes(artifact.to_bytes(prompt_set))
    predictor = Predictor.from_artifacts(*paths)
    assert predictor.names == ("birds", "quality")
    found = predictor.predict(IMAGES[:2], ["quality", "birds"])
    assert [prediction.facts.class_names[0] for prediction in found] == ["1-0", "0-0"]
    assert_equal(found[0].probabilities, predictor.predict(IMAGES[:1], sets[1])[0].probabilities)


def test_artifacts_of_different_backbones_make_none(tmp_path: Path, backbone: Backbone) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(artifact.to_bytes(random_prompt_set(load_backbone(DEFAULT_BACKBONE))))
    second.write_bytes(artifact.to_bytes(random_prompt_set(backbone)))
    with pytest.raises(ArtifactError, match="one backbone"):
        Predictor.from_artifacts(first, second)


def answer(task: str, calibration: Calibration, *scores: float) -> Prediction:
    backbone, _ = small()
    prompt_set = random_prompt_set(backbone, depth=None, classes=len(scores), task=task, calibration=calibration)
    predictor = Predictor(backbone)
    predictor.add("only", prompt_set)
    facts = predictor.predict(IMAGES[:1], "only")[0].facts
    odds = torch.tensor(scores)
    return Prediction(facts, odds.log() if task != MULTI_LABEL else odds.logit(), torch.empty(0))


def test_an_image_of_none_of_the_classes_is_unknown_by_the_fitted_threshold() -> None:
    sure = answer("single-label", Calibration(rejection_threshold=0.5), 0.2, 0.7, 0.1)
    unsure = answer("single-label", Calibration(rejection_threshold=0.5), 0.45, 0.4, 0.15)
    assert (sure.labels(), sure.is_unknown()) == (("0-1",), False)
    assert (unsure.labels(), unsure.is_unknown()) == ((), True)
    assert (unsure.labels(0.4), sure.labels(0.8)) == (("0-0",), ())
    assert answer("single-label", Calibration(), 0.4, 0.35, 0.25).labels() == ("0-0",)
    assert [label for label, _ in unsure.top(2)] == ["0-0", "0-1"]


def test_several_labels_apply_each_from_its_own_threshold() -> None:
    fitted = Calibration(label_thresholds=(0.9, 0.2, 0.5))
    assert answer(MULTI_LABEL, fitted, 0.8, 0.3, 0.6).labels() == ("0-2", "0-1")
    assert answer(MULTI_LABEL, fitted, 0.8, 0.3, 0.6).labels(0.7) == ("0-0",)
    assert answer(MULTI_LABEL, Calibration(), 0.6, 0.3, 0.5).labels() == ("0-0", "0-2")
    assert answer(MULTI_LABEL, fitted, 0.8, 0.1, 0.4).is_unknown()
