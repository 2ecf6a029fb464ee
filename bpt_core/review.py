"""What a tuning run tells about single images: probable label errors, the hardest images, confused classes.

Validation and test images are judged by the tuned prompt set, at its calibrated probabilities. It has not learned from
their labels; the validation split has chosen its epoch and fitted its calibration, a few numbers, which is little
beside the images it judges. Training images are judged by cross-validation on features of the frozen backbone without
prompts, for the prompts have seen their labels. `label_errors` draws on both, each told by its `source`; the hardest
images and the confused classes are those of the tuned prompt set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpt_core import label_errors, vit
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.compute import Compute
from bpt_core.cross_validation import CrossValidation, cross_validate
from bpt_core.dataset import SINGLE_LABEL, Split
from bpt_core.evaluate import DEFAULT_LABEL_THRESHOLD, Calibration, probabilities
from bpt_core.kept import FORWARD_BATCH
from bpt_core.views import SplitImages

TRAIN_IMAGES = 20_000  # of a larger training split a sample is judged
LABEL_ERRORS, HARDEST, CONFUSED_PAIRS = 200, 50, 20
TUNED, CROSS_VALIDATION = "tuned", "cross-validation"


@dataclass(frozen=True)
class Unprompted:
    """The frozen backbone without prompts."""

    backbone: Backbone
    pooling: Pooling
    compute: Compute


@dataclass(frozen=True)
class Answers:
    """What the tuned prompt set said of one split: logits [N, C] for its images, in stored order."""

    split: Split
    images: SplitImages
    logits: Tensor


@dataclass(frozen=True)
class _Judged:
    """Out-of-sample probabilities [N, C] of some images; `where` [N] are their splits and positions."""

    source: str
    where: Sequence[tuple[Split, int]]
    paths: Sequence[str]
    targets: Tensor
    chances: Tensor


def make(
    unprompted: Unprompted,
    train: SplitImages,
    answers: Sequence[Answers],
    class_names: Sequence[str],
    task: str,
    calibration: Calibration,
    seed: int,
) -> dict[str, Any]:
    """The report, as JSON; `answers` are those for the validation split, and for the test split where there is one.

    A `position` is an image's index within PackedDataset.items(split). `given`, `suggested` and `predicted` are lists
    of class names. `confidence` is LabelError.score; `total` counts all label errors where `items` has the worst
    only. `sampled` says how many of the training images were judged where that is not all, and `left_out` which
    classes could not be judged among them. The same run gives the same report.
    """
    tuned = _tuned(answers, task, calibration)
    trained, left_out, sampled = _cross_validated(unprompted, train, task, seed)
    predicted = _predicted(tuned.chances, task, calibration)
    last = torch.tensor([split is answers[-1].split for split, _ in tuned.where])
    names = _Names(class_names)
    return {
        "error": None,
        "label_errors": _label_errors([tuned, trained], task, names),
        "hardest": [
            {
                **_place(tuned, index),
                "given": names.where(tuned.targets[index]),
                "predicted": names.where(predicted[index]),
                "loss": loss,
            }
            for index, loss in label_errors.hardest(tuned.chances, tuned.targets, task, HARDEST)
        ],
        "confused_pairs": [
            {
                "split": answers[-1].split.value,
                "true": names.of(pair.true),
                "predicted": names.of(pair.predicted),
                "images": pair.images,
                "rate": pair.rate,
            }
            for pair in label_errors.confused_pairs(predicted[last], tuned.targets[last], CONFUSED_PAIRS)
        ],
        "sampled": sampled,
        "left_out": [
            {"class": names.of(label), "images": int(trained.targets[:, label].sum()), "reason": reason}
            for label, reason in sorted(left_out.items())
        ],
    }


def unavailable() -> dict[str, Any]:
    """The report of a run whose report could not be made."""
    return {
        "error": {"code": "report_failed", "detail": "the report could not be made; the prompt set is as it should be"},
        "label_errors": {"total": 0, "items": []},
        "hardest": [],
        "confused_pairs": [],
        "sampled": None,
        "left_out": [],
    }


class _Names:
    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = class_names

    def of(self, label: int) -> str:
        return self._names[label]

    def where(self, row: Tensor) -> list[str]:
        return [self._names[label] for label in row.nonzero()[:, 0].tolist()]


def _tuned(answers: Sequence[Answers], task: str, calibration: Calibration) -> _Judged:
    """All splits as one: classes have more images that way, and what is normal of them is better known."""
    logits = torch.cat([each.logits for each in answers]).double()
    return _Judged(
        TUNED,
        [(each.split, position) for each in answers for position in range(len(each.images))],
        [path for each in answers for path in each.images.paths],
        torch.cat([each.images.targets for each in answers]),
        probabilities(logits, task, calibration.temperature),
    )


def _cross_validated(
    unprompted: Unprompted, train: SplitImages, task: str, seed: int
) -> tuple[_Judged, dict[int, str], dict[str, int] | None]:
    """The training images, judged; classes that were left out, and why; what was sampled, or None."""
    rows = list(range(len(train)))
    if len(train) > TRAIN_IMAGES:
        rows = sorted(np.random.default_rng((seed, 4)).choice(len(train), TRAIN_IMAGES, replace=False).tolist())
    features, pictures = _features(unprompted, train, rows)
    targets = train.targets[rows]
    validated: CrossValidation = cross_validate(features, targets, pictures, task)
    judged = _Judged(
        CROSS_VALIDATION,
        [(Split.TRAIN, row) for row in rows],
        [train.paths[row] for row in rows],
        targets,
        validated.probabilities,
    )
    sampled = {"images": len(rows), "of": len(train)} if len(rows) < len(train) else None
    return judged, validated.left_out, sampled


@torch.no_grad()
def _features(unprompted: Unprompted, train: SplitImages, rows: Sequence[int]) -> tuple[Tensor, list[bytes]]:
    """Features [N, d] of these training images as they are evaluated, and what tells equal pictures."""
    backbone = unprompted.backbone
    parts, pictures = [], []
    for pixels in train.evaluation_batches(FORWARD_BATCH, rows):
        pictures += [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pixels]
        with unprompted.compute.autocast(backbone.device):
            parts.append(vit.features(backbone, backbone.normalise(pixels), pooling=unprompted.pooling).float())
    return torch.cat(parts), pictures


def _predicted(chances: Tensor, task: str, calibration: Calibration) -> Tensor:
    """[N, C] -> [N, C]: 1 for each label that is predicted, none being rejected."""
    if task == SINGLE_LABEL:
        return torch.zeros_like(chances).scatter_(1, chances.argmax(dim=1, keepdim=True), 1.0)
    least = calibration.label_thresholds or (DEFAULT_LABEL_THRESHOLD,) * chances.shape[1]
    return (chances >= torch.tensor(least, dtype=chances.dtype)).to(chances.dtype)


def _label_errors(judged: Sequence[_Judged], task: str, names: _Names) -> dict[str, Any]:
    found = [(each, error) for each in judged for error in label_errors.find(each.chances, each.targets, task)]
    found.sort(key=lambda pair: -pair[1].score)
    return {
        "total": len(found),
        "items": [
            {
                **_place(each, error.index),
                "given": [names.of(label) for label in error.given],
                "suggested": [names.of(label) for label in error.suggested],
                "confidence": error.score,
                "source": each.source,
            }
            for each, error in found[:LABEL_ERRORS]
        ],
    }


def _place(judged: _Judged, index: int) -> dict[str, Any]:
    split, position = judged.where[index]
    return {"split": split.value, "position": position, "path": judged.paths[index]}
