"""Groups of trials: fused equals solo, kept equals recomputed, and who learns what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from bpt_core import vit
from bpt_core.backbones import Backbone
from bpt_core.compute import Compute, Precision
from bpt_core.dataset import PackedDataset, Split
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import Recipe
from bpt_core.train import Group, Images
from bpt_core.views import SplitImages
from tests.core.conftest import MakeBackbone


def recipe(**given: Any) -> Recipe:
    base = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4, "epochs": 6, "batch_size": 7, "warmup_epochs": 1}
    return Recipe(**{**base, **given})


PROBE = Recipe(method=Method.LINEAR_PROBE, epochs=6, batch_size=7, warmup_epochs=1, views=2)


def group(backbone: Backbone, dataset: PackedDataset, recipes: Sequence[Recipe], **compute: Any) -> Group:
    train, val = (SplitImages(dataset, split, backbone.image_size) for split in (Split.TRAIN, Split.VAL))
    return Group(backbone, Images(train, val, dataset.class_names, dataset.task), recipes, Compute(**compute))


def losses_of_steps(run: Group, epochs: int) -> list[list[float]]:
    """The loss of every step, for each trial."""
    curves: list[list[float]] = [[] for _ in run.trials]
    original, turn = run.objective, iter(range(10**9))

    def record(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = original(logits, targets)
        curves[next(turn) % len(curves)].append(loss.item())
        return loss

    run.objective = record  # type: ignore[assignment]
    for _ in range(epochs):
        run.one_epoch()
    return curves


FUSED = [
    pytest.param({"depth": Depth.SHALLOW}, id="shallow"),
    pytest.param({"depth": Depth.DEEP, "start": Start.WHITENED}, id="deep"),
    pytest.param({"depth": Depth.DEEP_TOP4, "views": 2}, id="deep-top4"),
    pytest.param({"method": Method.VPT, "rank": 0, "mixup": 0.5, "ema": True}, id="vpt, mixed up"),
]


@pytest.mark.parametrize("given", FUSED)
def test_the_first_twenty_steps_of_fused_trials_are_those_of_solo_runs(
    make_backbone: MakeBackbone, flowers: PackedDataset, given: dict[str, Any]
) -> None:
    backbone = make_backbone(depth=5)
    base = recipe(**given)
    rates = (0.05, 0.2, 0.01)
    recipes = [replace(base, learning_rate=rate, weight_decay=rate / 10, head_weight_decay=rate) for rate in rates]
    if base.rank:
        recipes[2] = replace(recipes[2], rank=2)
    fused = losses_of_steps(group(backbone, flowers, recipes), epochs=6)
    for alone, together in zip(recipes, fused, strict=True):
        (solo,) = losses_of_steps(group(backbone, flowers, [alone]), epochs=6)
        assert len(solo) == 24
        assert together[:20] == pytest.approx(solo[:20], abs=1e-4)
    assert fused[0] != pytest.approx(fused[1], abs=1e-2)


@pytest.mark.parametrize("depth", list(Depth))
def test_kept_views_give_the_losses_of_recomputed_ones(
    make_backbone: MakeBackbone, flowers: PackedDataset, depth: Depth
) -> None:
    backbone = make_backbone(depth=6)
    chosen = recipe(depth=depth, views=2)
    row = (16 + 1) * 32 * 4
    val_rows = 12
    curves = {
        rows: losses_of_steps(group(backbone, flowers, [chosen], token_bytes=rows * row), epochs=5)[0]
        for rows in (0, 5, val_rows, val_rows + 10, val_rows + 24, val_rows + 24 + 10, 10_000)
    }
    for rows, curve in curves.items():
        assert curve == pytest.approx(curves[0], abs=1e-5), rows


@pytest.mark.parametrize(
    ("rows_kept", "rows_computed"),
    [
        (10_000, 12 + 24 + 24),  # the validation images, and two views of the training images
        (12 + 24 + 10, 12 + 24 + 10 + 3 * 14),  # 14 of the second view again in each of its three epochs
        (12 + 10, 12 + 10 + 3 * 14 + 3 * 24),
        (0, 6 * (12 + 24)),
    ],
)
def test_what_is_below_the_prompts_is_computed_once_for_each_view_within_the_budget(
    make_backbone: MakeBackbone, flowers: PackedDataset, rows_kept: int, rows_computed: int
) -> None:
    backbone = make_backbone(depth=6)
    rows: list[int] = []
    backbone.model.blocks[0].register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    budget = rows_kept * (16 + 1) * 32 * 4
    run = group(backbone, flowers, [recipe(depth=Depth.DEEP_TOP4, views=2)], token_bytes=budget)
    for _ in range(6):
        run.one_epoch()
    assert sum(rows) == rows_computed


def test_a_linear_probe_runs_the_backbone_once_for_each_view(backbone: Backbone, flowers: PackedDataset) -> None:
    rows: list[int] = []
    backbone.model.blocks[0].norm1.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    run = group(backbone, flowers, [PROBE, replace(PROBE, learning_rate=0.3)])
    for _ in range(6):
        run.one_epoch()
    assert sum(rows) == 2 * 24 + 12


def test_fitting_the_head_leaves_the_prompts(backbone: Backbone, flowers: PackedDataset) -> None:
    run = group(backbone, flowers, [recipe(head_fit_epochs=20)])
    (trial,) = run.trials
    before = {name: value.clone() for name, value in trial.state().items()}
    loss = run.evaluate_val()[0].loss
    run.fit_heads()
    changed = [name for name, value in trial.state().items() if not torch.equal(before[name], value)]
    assert changed == ["head.weight", "head.bias"]
    assert run.evaluate_val()[0].loss < loss


def test_heads_of_trials_are_fitted_as_if_alone(backbone: Backbone, flowers: PackedDataset) -> None:
    recipes = [recipe(head_fit_epochs=5, rank=rank, head_weight_decay=decay) for rank, decay in ((4, 0.1), (2, 0.9))]
    fused = group(backbone, flowers, recipes)
    fused.fit_heads()
    for alone, trial in zip(recipes, fused.trials, strict=True):
        solo = group(backbone, flowers, [alone])
        solo.fit_heads()
        torch.testing.assert_close(trial.head.weight, solo.trials[0].head.weight, rtol=0, atol=1e-5)


def test_no_gradient_reaches_the_backbone_or_what_is_fixed(make_backbone: MakeBackbone, flowers: PackedDataset) -> None:
    backbone = make_backbone(depth=6)
    run = group(backbone, flowers, [recipe(depth=Depth.DEEP, start=Start.WHITENED)])
    fixed = run.trials[0].prompts.fixed.clone()  # type: ignore[union-attr, operator]
    run.one_epoch()
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert torch.equal(run.trials[0].prompts.fixed, fixed)  # type: ignore[union-attr, arg-type]
    assert len(fixed) == 2


def test_the_prompted_half_is_what_is_compiled(backbone: Backbone, flowers: PackedDataset, monkeypatch: Any) -> None:
    seen: list[object] = []

    def compile_nothing(function: object) -> object:
        seen.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    group(backbone, flowers, [recipe()], compile=True).one_epoch()
    assert seen == [vit.above]


def test_bf16_learns_what_float32_learns(backbone: Backbone, flowers: PackedDataset) -> None:
    plain, short = (
        losses_of_steps(group(backbone, flowers, [recipe(depth=Depth.DEEP)], precision=Precision(precision)), epochs=2)[
            0
        ]
        for precision in ("float32", "bf16")
    )
    assert short != plain
    assert short == pytest.approx(plain, abs=0.02)
