"""A trial: its schedule, its weight decays, its moving average."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bpt_core.methods import Method
from bpt_core.prompts import BilinearPrompts
from bpt_core.recipe import Recipe
from bpt_core.trial import Trial, learning_rate


def recipe(**given: Any) -> Recipe:
    return Recipe(**{"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 10, "warmup_epochs": 2, **given})


def trial(chosen: Recipe) -> Trial:
    prompts = BilinearPrompts(torch.randn(1, 6, 4), torch.randn(1, 32, 4), 1)
    generator = torch.Generator().manual_seed(0)
    return Trial(chosen, prompts, embed_dim=32, classes=3, generator=generator, device=torch.device("cpu"))


def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    rates = [learning_rate(recipe(learning_rate=1.0), step, 4) for step in range(40)]
    assert rates[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert rates[8] == 1.0
    assert rates[24] == pytest.approx(0.5)
    assert 0 < rates[39] < 0.01
    assert rates[8:] == sorted(rates[8:], reverse=True)


def test_head_matrices_and_vectors_decay_each_in_their_own_way() -> None:
    run = trial(recipe(weight_decay=0.1, head_weight_decay=0.2))
    decay = {
        name: group["weight_decay"]
        for group in run.optimizer.param_groups
        for name, parameter in run.trainables.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert decay == {"prompts.A": 0.1, "prompts.B": 0.1, "head.weight": 0.2, "head.bias": 0.0}


def test_the_moving_average_follows_the_formula_and_is_what_is_judged() -> None:
    run = trial(recipe(ema=True))
    expected = run.head.weight.detach().clone()
    for step in range(1, 4):
        torch.autograd.backward(run.head.weight.sum() + run.fold().sum())
        run.step(0.1)
        decay = min(0.9999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * run.head.weight.detach()
    now = run.head.weight.detach().clone()
    with run.averaged():
        torch.testing.assert_close(run.head.weight, expected)
    assert torch.equal(run.head.weight, now)
    run.note((0.5, 0.0), 1)
    run.restore_best()
    torch.testing.assert_close(run.head.weight, expected)


def test_only_a_better_score_is_remembered() -> None:
    run = trial(recipe())
    run.note((0.5, -1.0), 1)
    kept = run.best["head.weight"]
    run.head.weight.data.add_(1)
    run.note((0.5, -1.1), 2)
    assert run.best["head.weight"] is kept
    run.note((0.5, -0.9), 3)
    assert run.best_epoch == 3
    assert not torch.equal(run.best["head.weight"], kept)
