"""How good predictions are, and what makes their probabilities honest.

Logits [N, C] meet targets [N, C]: one-hot where the task is "single-label", multi-hot where it is "multi-label".
Everything is computed in float64 on the logits' device. Logits that are not finite give a loss that is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL

TEMPERATURE_BOUNDS = (1 / 20, 20.0)
KEPT_CORRECT = 0.95  # the share of correct validation answers that rejection must leave alone
DEFAULT_LABEL_THRESHOLD = 0.5
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """How logits become answers; fitted on the validation split.

    Probabilities are softmax(logits / temperature), for several labels sigmoid(logits / temperature). Single-label:
    an image whose greatest probability is below `rejection_threshold` shows none of the classes; None rejects
    nothing. Multi-label: a label counts from its entry of `label_thresholds`; None is 0.5 for every label.
    """

    temperature: float = 1.0
    rejection_threshold: float | None = None
    label_thresholds: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        thresholds = self.label_thresholds
        return {**asdict(self), "label_thresholds": None if thresholds is None else list(thresholds)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        thresholds = document["label_thresholds"]
        return cls(
            temperature=document["temperature"],
            rejection_threshold=document["rejection_threshold"],
            label_thresholds=None if thresholds is None else tuple(thresholds),
        )


NO_CALIBRATION = Calibration()


@dataclass(frozen=True)
class SingleLabelEvaluation:
    """Metrics of one split with one class per image; accuracies are shares between 0 and 1.

    `loss` is mean cross-entropy in nats at temperature 1. With fewer than five classes top-5 is top-C; of equal
    logits the first class wins. `per_class` is recall, None for a class without images. `confusion` counts images:
    row = true class, column = predicted. `calibration_error` is the expected calibration error of the greatest
    probability. `coverage` is the share of images not rejected, `accepted_accuracy` the accuracy among them.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: dict[str, float | None]
    confusion: list[list[int]]
    calibration_error: float
    coverage: float
    accepted_accuracy: float | None

    @property
    def score(self) -> float:
        """What model selection maximises."""
        return self.top1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """Metrics of one split with any number of labels per image; shares between 0 and 1.

    `loss` is binary cross-entropy in nats at temperature 1, mean over images and labels. `per_class` is average
    precision, None for a label without positives; its mean and `f1_macro` are over the labels that have positives,
    None if no label has. F1 is at the label thresholds; `f1_micro` pools all decisions and is None where nothing
    was to be found and nothing was. `exact_match` is the share of images with every label right.
    `calibration_error` is the expected calibration error of the labels' probabilities, all decisions pooled.
    """

    images: int
    loss: float
    mean_average_precision: float | None
    per_class: dict[str, float | None]
    f1_micro: float | None
    f1_macro: float | None
    exact_match: float
    calibration_error: float

    @property
    def score(self) -> float:
        """What model selection maximises."""
        return self.mean_average_precision or 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Evaluation = SingleLabelEvaluation | MultiLabelEvaluation


def probabilities(logits: Tensor, task: str, temperature: float = 1.0) -> Tensor:
    """logits [..., C] -> probabilities [..., C]: of the classes, or of each label on its own."""
    scaled = logits / temperature
    return scaled.softmax(dim=-1) if task == SINGLE_LABEL else scaled.sigmoid()


def evaluate(
    logits: Tensor,
    targets: Tensor,
    class_names: Sequence[str],
    task: str,
    calibration: Calibration = NO_CALIBRATION,
) -> Evaluation:
    """logits [N, C], targets [N, C], C class names; N >= 1."""
    logits, targets = _checked(logits, targets, task)
    assert logits.shape[1] == len(class_names)
    if task == SINGLE_LABEL:
        return _evaluate_single(logits, targets, class_names, calibration)
    return _evaluate_multi(logits, targets, class_names, calibration)


def fit_calibration(logits: Tensor, targets: Tensor, task: str) -> Calibration:
    """logits [N, C], targets [N, C] of the validation split; N >= 1.

    The temperature minimises the negative log-likelihood (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). The rejection threshold is the 5 % quantile of the greatest probability of correctly classified
    images, so that 95 % of them (KEPT_CORRECT) or more are kept; None if no image was classified correctly. A label's
    threshold gives it the best F1.
    """
    logits, targets = _checked(logits, targets, task)
    temperature = _fit_temperature(logits, targets, task)
    chances = probabilities(logits, task, temperature)
    if task != SINGLE_LABEL:
        return Calibration(temperature, label_thresholds=tuple(_best_f1_thresholds(chances, targets).tolist()))
    confidence = chances.amax(dim=1)[logits.argmax(dim=1) == targets.argmax(dim=1)]
    if len(confidence) == 0:
        return Calibration(temperature)
    return Calibration(temperature, torch.quantile(confidence, 1 - KEPT_CORRECT, interpolation="lower").item())


def _checked(logits: Tensor, targets: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """Both [N, C], float64, on the logits' device."""
    assert task in (SINGLE_LABEL, MULTI_LABEL)
    assert logits.shape == targets.shape
    assert len(logits) >= 1
    return logits.detach().double(), targets.to(logits.device).double()


def _evaluate_single(
    logits: Tensor, targets: Tensor, class_names: Sequence[str], calibration: Calibration
) -> SingleLabelEvaluation:
    images, classes = logits.shape
    labels, predicted = targets.argmax(dim=1), logits.argmax(dim=1)
    correct = predicted == labels
    # topk may pick any of equal logits; counting the classes ahead of the true one agrees with argmax.
    own = logits.gather(1, labels[:, None])
    first = torch.arange(classes, device=logits.device) < labels[:, None]
    ahead = ((logits > own) | ((logits == own) & first)).sum(dim=1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    recall = confusion.diagonal().double() / confusion.sum(dim=1)
    confidence = probabilities(logits, SINGLE_LABEL, calibration.temperature).amax(dim=1)
    threshold = calibration.rejection_threshold
    accepted = torch.ones_like(correct) if threshold is None else confidence >= threshold
    return SingleLabelEvaluation(
        images=images,
        loss=_loss(logits, targets, SINGLE_LABEL),
        top1=_mean(correct),
        top5=_mean(ahead < 5),
        per_class=_by_name(class_names, recall, targets),
        confusion=confusion.tolist(),
        calibration_error=_calibration_error(confidence, correct),
        coverage=_mean(accepted),
        accepted_accuracy=_mean(correct[accepted]) if accepted.any() else None,
    )


def _evaluate_multi(
    logits: Tensor, targets: Tensor, class_names: Sequence[str], calibration: Calibration
) -> MultiLabelEvaluation:
    chances = probabilities(logits, MULTI_LABEL, calibration.temperature)
    thresholds = calibration.label_thresholds or (DEFAULT_LABEL_THRESHOLD,) * len(class_names)
    counts = chances >= torch.tensor(thresholds, dtype=torch.float64, device=logits.device)
    found = (targets * counts).sum(dim=0)
    mentioned = targets.sum(dim=0) + counts.sum(dim=0)  # F1 = 2 TP / (positives + predicted positives)
    known = targets.any(dim=0)
    average_precision = _average_precision(logits, targets)
    return MultiLabelEvaluation(
        images=len(logits),
        loss=_loss(logits, targets, MULTI_LABEL),
        mean_average_precision=_mean(average_precision[known]) if known.any() else None,
        per_class=_by_name(class_names, average_precision, targets),
        f1_micro=float(2 * found.sum() / mentioned.sum()) if mentioned.any() else None,
        f1_macro=_mean(2 * found[known] / mentioned[known]) if known.any() else None,
        exact_match=_mean((counts == targets.bool()).all(dim=1)),
        calibration_error=_calibration_error(chances.flatten(), targets.flatten()),
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _by_name(class_names: Sequence[str], values: Tensor, targets: Tensor) -> dict[str, float | None]:
    """values [C] by class name, None for a class that targets [N, C] never has."""
    entries = zip(class_names, values.tolist(), targets.any(dim=0).tolist(), strict=True)
    return {name: value if known else None for name, value, known in entries}


def _loss(logits: Tensor, targets: Tensor, task: str) -> float:
    """logits, targets [N, C] -> mean negative log-likelihood in nats."""
    if task == SINGLE_LABEL:
        return float(functional.cross_entropy(logits, targets))
    return float(functional.binary_cross_entropy_with_logits(logits, targets))


def _calibration_error(confidence: Tensor, outcome: Tensor) -> float:
    """confidence, outcome [M] -> sum over bins of (bin's share of M) |mean outcome - mean confidence|.

    Expected calibration error with the bins (0, 1/15], ..., (14/15, 1] of Guo et al. 2017.
    """
    bins = ((confidence * CALIBRATION_BINS).ceil().long() - 1).clamp(0, CALIBRATION_BINS - 1)
    gaps = torch.bincount(bins, weights=confidence - outcome.double(), minlength=CALIBRATION_BINS)
    return float(gaps.abs().sum() / len(confidence))


def _average_precision(logits: Tensor, targets: Tensor) -> Tensor:
    """logits, targets [N, C] -> [C]: sum over ranks of (recall gained) x precision; NaN without positives.

    Images of equal score share the rank of the last of them, so that their order does not matter.
    """
    scores, order = logits.T.sort(dim=1, descending=True)
    found = targets.T.gather(1, order).cumsum(dim=1)
    ranks = torch.arange(1, len(logits) + 1, device=logits.device)
    last_of_equals = torch.ones_like(scores, dtype=torch.bool)
    last_of_equals[:, :-1] = scores[:, 1:] != scores[:, :-1]
    credited = torch.where(last_of_equals, found, 0).cummax(dim=1).values
    gained = credited.diff(dim=1, prepend=torch.zeros_like(found[:, :1]))
    return (gained * found / ranks).sum(dim=1) / found[:, -1]


def _best_f1_thresholds(chances: Tensor, targets: Tensor) -> Tensor:
    """chances, targets [N, C] -> [C]; 0.5 for a label without positives.

    The cut lies midway between the two neighbouring probabilities (zero is the lowest one's neighbour). Of equally
    good cuts the lowest: a user sees a label too many, but nobody sees the one that is missing.
    """
    scores, order = chances.T.sort(dim=1)
    found = targets.T.gather(1, order).flip(1).cumsum(dim=1).flip(1)  # among this score and all above
    counted = torch.arange(len(chances), 0, -1, device=chances.device)
    f1 = 2 * found / (found[:, :1] + counted)
    below = functional.pad(scores[:, :-1], (1, 0), value=-1.0)
    best = torch.where(scores > below, f1, -1.0).argmax(dim=1, keepdim=True)  # no cut parts equal scores
    lower, upper = below.gather(1, best), scores.gather(1, best)
    middle = (lower.clamp(min=0) + upper) / 2
    middle = torch.where(middle > lower, middle, upper)  # between adjacent floats there is no middle
    return torch.where(targets.any(dim=0), middle[:, 0], DEFAULT_LABEL_THRESHOLD)


def _fit_temperature(logits: Tensor, targets: Tensor, task: str) -> float:
    """logits, targets [N, C] -> the temperature of the least loss, to 0.01 %; 1 where no other is better.

    The loss is convex in 1/T, its derivative the sum of (probability - target) logit; bisection on log T finds where
    that changes sign, or the bound it runs to (perfectly separated data want T = 0).
    """
    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    while high - low > 1e-4:
        middle = (low + high) / 2
        slope = ((probabilities(logits, task, math.exp(middle)) - targets) * logits).sum()
        low, high = (low, middle) if slope < 0 else (middle, high)
    best = math.exp((low + high) / 2)
    return best if _loss(logits / best, targets, task) < _loss(logits, targets, task) else 1.0
