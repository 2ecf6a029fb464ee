"""Metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bpt_core.evaluate import evaluate


def test_accuracies_and_loss_are_those_counted_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0], [2.0, 0, 0]])
    labels = torch.tensor([0, 1, 0, 1])
    found = evaluate(logits, labels, ["a", "b", "c"])
    assert (found.images, found.top1, found.top5) == (4, 0.5, 1.0)
    assert found.per_class == {"a": 0.5, "b": 0.5, "c": None}
    right, wrong = (-math.log(math.exp(z) / (math.exp(2) + 2)) for z in (2, 0))
    assert found.loss == pytest.approx((2 * right + 2 * wrong) / 4)


def test_top5_is_more_than_top1_when_there_are_more_classes() -> None:
    logits = torch.arange(8.0).repeat(2, 1)
    found = evaluate(logits, torch.tensor([3, 2]), [str(label) for label in range(8)])
    assert (found.top1, found.top5) == (0.0, 0.5)
