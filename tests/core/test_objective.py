"""The losses, with their options, against sums written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bpt_core.methods import Method
from bpt_core.objective import Objective, mix
from bpt_core.recipe import Recipe

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
ONE_HOT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
SEVERAL = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
TRAIN = torch.tensor([[1.0, 0, 0]] * 6 + [[0, 1.0, 0]] * 3 + [[0, 0, 1.0]])


def objective(task: str, **given: Any) -> Objective:
    return Objective(task, Recipe(method=Method.LINEAR_PROBE, **given), TRAIN)


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    logs = LOGITS.log_softmax(1)
    expected = -(logs[0, 0] + logs[1, 2]) / 2
    torch.testing.assert_close(objective("single-label")(LOGITS, ONE_HOT), expected)


def test_label_smoothing_gives_all_classes_a_share() -> None:
    logs, soft = LOGITS.log_softmax(1), ONE_HOT * 0.7 + 0.1
    torch.testing.assert_close(
        objective("single-label", label_smoothing=0.3)(LOGITS, ONE_HOT), -(logs * soft).sum(1).mean()
    )


def test_balanced_classes_weigh_as_if_all_were_equally_many() -> None:
    logs, weight = LOGITS.log_softmax(1), torch.tensor([10 / 18, 10 / 9, 10 / 3])
    expected = -(logs[0, 0] * weight[0] + logs[1, 2] * weight[2]) / 2
    torch.testing.assert_close(objective("single-label", balance_classes=True)(LOGITS, ONE_HOT), expected)


def test_several_labels_are_as_many_yes_or_no_questions() -> None:
    total = 0.0
    for logit, target in zip(LOGITS.flatten().tolist(), SEVERAL.flatten().tolist(), strict=True):
        yes = 1 / (1 + math.exp(-logit))
        total -= math.log(yes if target else 1 - yes)
    assert objective("multi-label")(LOGITS, SEVERAL).item() == pytest.approx(total / 6, abs=1e-6)


def test_positives_of_rare_labels_weigh_more() -> None:
    # 10 images, label 2 on one of them: its positives weigh 9 negatives.
    rare = torch.tensor([[0.0, 0.0, 1.0]])
    plain, balanced = (
        objective("multi-label", balance_classes=on)(torch.zeros(1, 3), rare).item() for on in (False, True)
    )
    assert plain == pytest.approx(math.log(2))
    assert balanced == pytest.approx((2 + 9) * math.log(2) / 3)


def test_mixing_mixes_tokens_and_targets_by_the_same_share() -> None:
    tokens, targets = torch.randn(5, 4, 2), torch.eye(5)
    mixed, soft = mix(tokens, targets, 0.8, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, torch.einsum("bi,ind->bnd", soft, tokens))
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert ((soft > 0.01) & (soft < 0.99)).any()


def test_shares_are_beta_distributed() -> None:
    shares = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        _, soft = mix(torch.zeros(8, 1), torch.eye(8), 0.4, generator)
        shares += [soft[row, row].item() for row in range(8) if soft[row].max() < 1][:1]
    values = torch.tensor(shares)
    assert values.mean().item() == pytest.approx(0.5, abs=0.06)
    assert values.var().item() == pytest.approx(0.25 / (2 * 0.4 + 1), abs=0.02)  # of Beta(a, a)
