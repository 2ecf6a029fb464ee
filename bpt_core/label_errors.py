"""Which labels are probably wrong, which images are hardest, which classes are taken for each other.

Probabilities [N, C] must be out of sample: from a model that has not learned from the labels it is to judge. Targets
[N, C] are one-hot where the task is "single-label", multi-hot where it is "multi-label". Rows with a number that is
not finite are left out: they are not counted, and nothing is said about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL

TRUSTED_SHARE = 0.75  # of the images that surely look like a class, so many must bear its label
LEAST_CHANCE = 1e-12  # what a probability of 0 counts as, so that a loss is a number


@dataclass(frozen=True)
class LabelError:
    """One image whose label is probably wrong; classes are indices into the class names.

    `score` is the probability of what is suggested less that of what is given, in (0, 1]; with several labels that of
    the worst among those that `suggested` changes.
    """

    index: int
    given: tuple[int, ...]
    suggested: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class ConfusedPair:
    """So many images of the class `true` were taken for `predicted`; `rate` is their share of the images of `true`."""

    true: int
    predicted: int
    images: int
    rate: float


def find(probabilities: Tensor, targets: Tensor, task: str) -> list[LabelError]:
    """probabilities, targets [N, C] -> the images whose label is probably wrong, worst first.

    Confident learning (Northcutt, Jiang, Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
    2021), pruning by class and by noise rate at once (the paper's C+NR, its most cautious choice); see `_doubts`. Two
    conditions are ours, because a report is read by people and a weak model must not accuse: what is suggested is more
    probable than what is given, and it is a class that the model can be trusted with (TRUSTED_SHARE).

    Several labels are one binary problem each, the label against its absence; an image is one entry, whose
    `suggested` has all labels in question turned round.
    """
    rows, chances, wanted = _finite(probabilities, targets)
    found = []
    if task == SINGLE_LABEL:
        labels = wanted.argmax(dim=1)
        for row, suggested, score in _doubts(chances, labels):
            found.append(LabelError(rows[row], (int(labels[row]),), (suggested,), score))
    else:
        assert task == MULTI_LABEL
        turned: dict[int, dict[int, float]] = {}
        for label in range(chances.shape[1]):
            own = chances[:, label]
            for row, _, score in _doubts(torch.stack([1 - own, own], dim=1), wanted[:, label].long()):
                turned.setdefault(row, {})[label] = score
        for row, scores in turned.items():
            given = set(wanted[row].nonzero()[:, 0].tolist())
            better = given ^ set(scores)
            found.append(LabelError(rows[row], tuple(sorted(given)), tuple(sorted(better)), max(scores.values())))
    return sorted(found, key=lambda error: (-error.score, error.index))


def hardest(probabilities: Tensor, targets: Tensor, task: str, count: int) -> list[tuple[int, float]]:
    """probabilities, targets [N, C] -> (index, loss) of the `count` images of greatest loss, worst first.

    The loss is cross-entropy in nats; with several labels binary cross-entropy, mean over the labels.
    """
    rows, chances, wanted = _finite(probabilities, targets)
    if task == SINGLE_LABEL:
        losses = -(chances * wanted).sum(dim=1).clamp(min=LEAST_CHANCE).log()
    else:
        assert task == MULTI_LABEL
        losses = -torch.where(wanted > 0, chances, 1 - chances).clamp(min=LEAST_CHANCE).log().mean(dim=1)
    order = losses.argsort(descending=True, stable=True)[:count].tolist()
    return [(rows[at], float(losses[at])) for at in order]


def confused_pairs(predicted: Tensor, targets: Tensor, count: int) -> list[ConfusedPair]:
    """predicted, targets [N, C], both one-hot or both multi-hot -> the `count` pairs with most images, worst first.

    With several labels an image counts where it has `true`, which was missed, and has not `predicted`, which was
    found.
    """
    targets, predicted = targets.double(), predicted.double()
    missed, invented = targets * (1 - predicted), predicted * (1 - targets)
    images = (missed.T @ invented).round().long()
    rates = images / targets.sum(dim=0)[:, None]
    pairs = [
        ConfusedPair(true, other, int(images[true, other]), float(rates[true, other]))
        for true, other in images.nonzero().tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair.images, -pair.rate, pair.true, pair.predicted))[:count]


def _finite(probabilities: Tensor, targets: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """The rows that are finite, and their probabilities and targets, float64 on the CPU."""
    assert probabilities.shape == targets.shape
    chances = probabilities.detach().double().cpu()
    sound = chances.isfinite().all(dim=1)
    return sound.nonzero()[:, 0].tolist(), chances[sound], targets.double().cpu()[sound]


def _doubts(chances: Tensor, labels: Tensor) -> Iterator[tuple[int, int, float]]:
    """chances [N, C] of labels [N] -> (row, class that is suggested, score) of each probably wrong label.

    t_j is the mean probability of class j over the images labelled j. An image surely looks like the class of
    greatest probability among those that reach their t_j. The confident joint J counts images by label i and the
    class j they surely look like; its rows, scaled to the number of images of each label, estimate how many images
    labelled i are j in truth. Wrong are, by noise rate, so many of greatest p_j - p_i for each pair (i, j), as far as
    they are, by class, among the least p_i: as many in all as the row of i has beside i.

    A class without images has no threshold that could be reached, so it is never suggested.
    """
    classes = chances.shape[1]
    own = chances.gather(1, labels[:, None])[:, 0]
    counts = torch.bincount(labels, minlength=classes).double()
    thresholds = torch.bincount(labels, weights=own, minlength=classes) / counts
    reached, like = torch.where(chances >= thresholds, chances, -1.0).max(dim=1)
    sure = reached >= 0
    joint = torch.bincount(labels[sure] * classes + like[sure], minlength=classes**2).view(classes, classes).double()
    trusted = joint.diagonal() >= TRUSTED_SHARE * joint.sum(dim=0)
    expected = joint / joint.sum(dim=1, keepdim=True).clamp(min=1) * counts[:, None]
    expected.fill_diagonal_(0)

    best: dict[int, tuple[float, int]] = {}
    members = torch.split(labels.argsort(stable=True), counts.long().tolist())
    for label in expected.sum(dim=1).nonzero()[:, 0].tolist():
        mine = members[label]
        least = set(mine[own[mine].argsort(stable=True)][: round(float(expected[label].sum()))].tolist())
        for other in (expected[label] * trusted).nonzero()[:, 0].tolist():
            margins = chances[mine, other] - own[mine]
            for at in margins.argsort(descending=True, stable=True)[: round(float(expected[label, other]))].tolist():
                row, margin = int(mine[at]), float(margins[at])
                if row in least and margin > best.get(row, (0.0, 0))[0]:
                    best[row] = margin, other
    for row, (margin, other) in best.items():
        yield row, other, margin
