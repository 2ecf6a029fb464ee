"""What a linear head says of images it has not learned from: k-fold cross-validation on features.

Meant for features of the frozen backbone alone: prompts that were tuned have seen the labels, and what they make of
the same images is no opinion of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bpt_core.dataset import SINGLE_LABEL
from bpt_core.evaluate import probabilities

FOLDS = 5
STEPS = 30
PRIOR_VARIANCE = 10.0  # of a logit, by the penalty; measured on features of drawn flowers with and without noise

FEW_IMAGES = f"fewer than {FOLDS} different training images"
FEW_WITHOUT = f"fewer than {FOLDS} different training images without it"
ALONE = "no other class to tell it from"


@dataclass(frozen=True)
class CrossValidation:
    """`probabilities` [N, C], on the CPU; what could not be judged agrees there with what is given.

    `left_out` are classes that could not be judged, and why.
    """

    probabilities: Tensor
    left_out: dict[int, str]


def cross_validate(features: Tensor, targets: Tensor, pictures: Sequence[bytes], task: str) -> CrossValidation:
    """features [N, d] on any device, targets [N, C]; equal `pictures` [N] are the same picture and share a fold.

    A class with too few pictures for the folds is left out, with one label per image its images too. The outcome
    depends on the arguments alone, not on their order beyond rounding.
    """
    left_out = _left_out(targets, pictures, task)
    judged = [label for label in range(targets.shape[1]) if label not in left_out]
    chances = targets.cpu().double()
    if not judged:
        return CrossValidation(chances, left_out)
    rows = torch.arange(len(targets))
    if task == SINGLE_LABEL:
        rows = rows[targets[:, judged].any(dim=1)]
    wanted = targets[rows][:, judged].to(features.device)
    fold_of = folds(targets[rows][:, judged], [pictures[row] for row in rows.tolist()])
    for fold in range(FOLDS):
        held_out = fold_of == fold
        learn = (~held_out).to(features.device)
        head = fit_head(features[rows[~held_out]], wanted[learn], task)
        logits = head(features[rows[held_out]]).double().cpu()
        chances[rows[held_out][:, None], torch.tensor(judged)] = probabilities(logits, task)
    return CrossValidation(chances, left_out)


def folds(targets: Tensor, pictures: Sequence[bytes]) -> Tensor:
    """targets [N, C] -> fold of each image [N]. Equal pictures share a fold; every class is spread over the folds.

    Pictures are sorted by the rarest class they have, then by themselves, and dealt out in turn.
    """
    rarity = targets.sum(dim=0)
    rarest = torch.where(targets > 0, rarity, torch.inf).argmin(dim=1).tolist()
    class_of: dict[bytes, int] = {}
    for picture, label in zip(pictures, rarest, strict=True):
        class_of[picture] = min(label, class_of.get(picture, label))
    dealt = {
        picture: at % FOLDS for at, picture in enumerate(sorted(class_of, key=lambda each: (class_of[each], each)))
    }
    return torch.tensor([dealt[picture] for picture in pictures])


def fit_head(features: Tensor, targets: Tensor, task: str) -> Callable[[Tensor], Tensor]:
    """features [N, d], targets [N, C] -> a function from features [M, d] to logits [M, C].

    Logistic regression on standardised features, softmax or one sigmoid per label, with an L2 penalty that gives
    logits the variance PRIOR_VARIANCE a priori. The curvature of the loss never exceeds Z^T Z / 2 (softmax) or
    Z^T Z / 4 (sigmoid), whatever the weights: Boehning 1992, "Multinomial logistic regression algorithm". So each step
    solves with one matrix that was factored once, needs no line search, and with Nesterov's momentum STEPS of them do.
    """
    count, width = features.shape
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)

    def standardised(rows: Tensor) -> Tensor:
        return functional.pad((rows - mean) / deviation, (0, 1), value=1.0)  # the last column is the bias's

    known = standardised(features)
    penalty = features.new_full((width + 1, 1), width / (PRIOR_VARIANCE * count))
    penalty[-1] = 0
    curvature = known.T @ known / (count * (2 if task == SINGLE_LABEL else 4))
    factor = torch.linalg.cholesky(curvature + penalty.diagflat())
    weights = before = features.new_zeros(width + 1, targets.shape[1])
    for step in range(STEPS):
        at = weights + step / (step + 3) * (weights - before)
        slope = known.T @ (probabilities(known @ at, task) - targets) / count + penalty * at
        before, weights = weights, at - torch.cholesky_solve(slope, factor)
    return lambda rows: standardised(rows) @ weights


def _left_out(targets: Tensor, pictures: Sequence[bytes], task: str) -> dict[int, str]:
    with_it: list[int] = [len({pictures[at] for at in column.nonzero()[:, 0].tolist()}) for column in targets.T]
    left_out = {label: FEW_IMAGES for label, count in enumerate(with_it) if count < FOLDS}
    if task == SINGLE_LABEL:
        if len(with_it) - len(left_out) == 1:
            left_out |= {label: ALONE for label in range(len(with_it)) if label not in left_out}
    else:
        total = len(set(pictures))
        left_out |= {
            label: FEW_WITHOUT for label, count in enumerate(with_it) if label not in left_out and total - count < FOLDS
        }
    return left_out
