"""What a run minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bpt_core.dataset import MULTI_LABEL
from bpt_core.recipe import Recipe


class Objective:
    """Cross-entropy for one label per image, binary cross-entropy per label for several; both in nats.

    With `balance_classes`, a class counts by the inverse of its share among the training targets [N, C]: its loss is
    weighed N / (C n_c) with one label, and its positives (N - n_c) / n_c with several.
    """

    def __init__(self, task: str, recipe: Recipe, targets: Tensor) -> None:
        self.smoothing = recipe.label_smoothing
        self.multi_label = task == MULTI_LABEL
        self.weight: Tensor | None = None
        if recipe.balance_classes:
            total, classes = targets.shape
            count = targets.sum(dim=0).clamp(min=1)
            self.weight = (total - count).clamp(min=1) / count if self.multi_label else total / (classes * count)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits [B, C], targets [B, C] between 0 and 1 -> mean loss."""
        logits = logits.float()
        if self.multi_label:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weight)
        return functional.cross_entropy(logits, targets, self.weight, label_smoothing=self.smoothing)


def mix(tokens: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup: tokens [B, ...] and targets [B, C] of each image mixed with those of another, by Beta(alpha, alpha)."""
    # Of two Gamma(alpha) draws the share of the first is Beta(alpha, alpha).
    first, second = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    share = first / max(first + second, 1e-300)
    other = torch.randperm(len(tokens), generator=generator)
    mixed = tokens.lerp(tokens[other.to(tokens.device)], 1 - share)
    return mixed, targets.lerp(targets[other.to(targets.device)], 1 - share)
