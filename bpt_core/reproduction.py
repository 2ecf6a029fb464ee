"""A prompt set that was learned once more, held against what was learned the first time.

On the same machine with the same software a run gives the same bytes again. Other processors, numbers of threads and
releases of libraries round differently, and what is rounded early grows in training: so numbers may differ that mean
the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bpt_core import images
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.compute import Precision
from bpt_core.dataset import SINGLE_LABEL, PackedDataset, Split
from bpt_core.predict import Prediction, Predictor

LARGEST_RELATIVE_DIFFERENCE = 0.01
LEAST_AGREEMENT = 0.99
_CHUNK_IMAGES = 64


class Verdict(StrEnum):
    IDENTICAL = "identical"  # bit for bit, calibration included
    EQUIVALENT = "equivalent"  # within both tolerances above
    DIFFERENT = "different"


@dataclass(frozen=True)
class Difference:
    """Of a tensor. `largest` is that between two numbers, `relative` the norm of all of them as a share of the norm of
    what was; both None where it is there only once, or in another shape.
    """

    is_equal: bool
    largest: float | None
    relative: float | None

    @classmethod
    def of(cls, was: Tensor | None, now: Tensor | None) -> Difference:
        if was is None or now is None or was.shape != now.shape:
            return cls(False, None, None)
        was, now = was.detach().cpu().double(), now.detach().cpu().double()
        apart, size = float((now - was).norm()), float(was.norm())
        largest = float((now - was).abs().max()) if was.numel() else 0.0
        return cls(torch.equal(was, now), largest, apart / size if size else float(apart > 0))


@dataclass(frozen=True)
class Reproduction:
    """`agreement` is the share of the images of `split` that both answer the same."""

    verdict: Verdict
    tensors: Mapping[str, Difference]
    split: Split
    images: int
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(was: PromptSet, now: PromptSet, backbone: Backbone, dataset: PackedDataset) -> Reproduction:
    """On the test split, or on the validation split where there is no test split.

    Both must be of this backbone: ArtifactError `artifact_schema`.
    """
    tensors = {name: Difference.of(*pair) for name, pair in _served(was, now)}
    split = Split.TEST if dataset.images(Split.TEST) else Split.VAL
    same = [_answer(first) == _answer(second) for first, second in _predictions(was, now, backbone, dataset, split)]
    agreement = sum(same) / len(same)
    return Reproduction(_verdict(was, now, tensors.values(), agreement), tensors, split, len(same), agreement)


def _served(was: PromptSet, now: PromptSet) -> Iterator[tuple[str, tuple[Tensor | None, Tensor | None]]]:
    """What predictions are made of: factors may differ where their product does not."""
    if was.prompts is not None or now.prompts is not None:
        yield "prompts", (was.prompts, now.prompts)
    yield "head.weight", (was.head_weight, now.head_weight)
    yield "head.bias", (was.head_bias, now.head_bias)


def _verdict(was: PromptSet, now: PromptSet, tensors: Collection[Difference], agreement: float) -> Verdict:
    if was.sha256 == now.sha256:
        return Verdict.IDENTICAL
    near = all(each.relative is not None and each.relative <= LARGEST_RELATIVE_DIFFERENCE for each in tensors)
    return Verdict.EQUIVALENT if near and agreement >= LEAST_AGREEMENT else Verdict.DIFFERENT


def _predictions(
    was: PromptSet, now: PromptSet, backbone: Backbone, dataset: PackedDataset, split: Split
) -> Iterator[tuple[Prediction, Prediction]]:
    predictor = Predictor(backbone, precision=Precision.FLOAT32)
    items = dataset.items(split)
    while pictures := [images.decode(item.image) for item in islice(items, _CHUNK_IMAGES)]:
        yield from zip(predictor.predict(pictures, was), predictor.predict(pictures, now), strict=True)


def _answer(prediction: Prediction) -> frozenset[str]:
    """The class that comes first, whether or not it was rejected; of several labels those that apply."""
    if prediction.facts.task != SINGLE_LABEL:
        return frozenset(prediction.labels())
    return frozenset(name for name, _ in prediction.top(1))
