"""The naive run that ours is measured against trains the same thing, step for step; and what is counted as memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks import tuning_speed
from benchmarks.tuning_speed import NaiveRun, Photos, SavedBytes, decode_jpeg, decode_once, write_photos
from bpt_core import images
from bpt_core.backbones import Backbone, freeze
from bpt_core.catalog import Pooling
from bpt_core.compute import Compute, Precision
from bpt_core.dataset import Split
from bpt_core.methods import Depth, Method
from bpt_core.recipe import Recipe
from bpt_core.train import Group

FLOAT32 = Compute(Precision.FLOAT32)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    return write_photos(tmp_path_factory.mktemp("photos"), train=10, val=5, classes=3, short_side=40)


def tiny(pooling: Pooling) -> Backbone:
    """Six blocks, so that two lie below the prompts of deep-top4; weights large enough for prompts to matter."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=0)
    with torch.no_grad():
        for weight in model.blocks.parameters():
            weight.mul_(5 if weight.ndim == 2 else 1)
    return freeze(model, "tiny", pooling=pooling)


@pytest.mark.parametrize("pooling", [Pooling.MEAN_ALL, Pooling.MEAN_PATCHES, Pooling.CLS])
@pytest.mark.parametrize("depth", list(Depth))
def test_naive_and_ours_have_the_same_losses_step_for_step(
    depth: Depth, pooling: Pooling, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny(pooling)
    views = 2 if depth is Depth.DEEP_TOP4 else 0
    settings: dict[str, Any] = {"prompts": 5, "rank": 3, "batch_size": 4, "epochs": 4, "warmup_epochs": 1}
    recipe = Recipe(Method.BPT_BILINEAR, depth, **settings, views=views, learning_rate=2e-2)
    group = Group(backbone, decode_once(photos, backbone.image_size), [recipe], FLOAT32)
    naive = NaiveRun(backbone, photos, group.trials[0], pooling, FLOAT32)
    plain, losses = group.objective, []

    def recorded(logits: Tensor, targets: Tensor) -> Tensor:
        losses.append(plain(logits, targets))
        return losses[-1]

    monkeypatch.setattr(group, "objective", recorded)
    for _ in range(recipe.epochs):
        mean, report = naive.one_epoch(), group.one_epoch()
        assert mean == pytest.approx(report.train_loss, abs=1e-4)
        assert naive.val_loss == pytest.approx(report.val_loss, abs=1e-4)
    assert naive.losses == pytest.approx([loss.item() for loss in losses], abs=1e-4)
    assert len(losses) == 12  # a last incomplete batch is a step
    assert max(losses) - min(losses) > 0.05  # something was learned, or there was nothing to compare


def test_both_runs_get_the_same_pixels(photos: Photos) -> None:
    for split in (Split.TRAIN, Split.VAL):
        for item, jpeg, label in zip(
            photos.packed.items(split), photos.jpegs[split], photos.labels[split], strict=True
        ):
            assert images.sniff(jpeg) == "JPEG"
            assert np.array_equal(np.asarray(images.decode(item.image)), np.asarray(decode_jpeg(jpeg)))
            assert item.labels == (label,)


def test_the_naive_run_changes_nothing_of_ours(photos: Photos) -> None:
    backbone = tiny(Pooling.CLS)
    recipe = Recipe(Method.BPT_BILINEAR, Depth.DEEP, prompts=2, rank=2, epochs=1, warmup_epochs=0)
    trial = Group(backbone, decode_once(photos, backbone.image_size), [recipe], FLOAT32).trials[0]
    before, fingerprint = {name: value.clone() for name, value in trial.state().items()}, backbone.fingerprint
    naive = NaiveRun(backbone, photos, trial, Pooling.CLS, FLOAT32)
    naive.one_epoch()
    assert all(torch.equal(value, before[name]) for name, value in trial.state().items())
    assert tiny(Pooling.CLS).fingerprint == fingerprint
    # A step away from where it started, the moving average has gone a ten-thousandth of the way.
    start, now, mean = (
        each["prompts.A"] for each in (before, naive.trainables.state_dict(), naive.average.state_dict())
    )
    assert torch.allclose(mean - start, 1e-4 * (now - start), atol=1e-7)


def test_saved_bytes_are_of_distinct_storages_without_frozen_weights() -> None:
    frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
    saved = SavedBytes(frozen)
    x = torch.randn(4, 8, requires_grad=True)
    with saved.measured():
        torch.autograd.backward((frozen(x) * x * x).sum())
        first = saved.peak
        torch.autograd.backward(x.square().sum())
    # Saved by the products: frozen(x), their product, and x twice over; 4 x 8 x 4 bytes each.
    assert first == saved.peak == 3 * 128
    assert saved._bytes == 0


def test_the_whole_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning_speed, "_backbone", lambda name, device: tiny(Pooling.MEAN_ALL))
    out = tmp_path / "figures.json"
    command = "tuning_speed --device cpu --images 8 --batch 4 --epochs 1 --views 2 --precision float32 bf16 --json"
    monkeypatch.setattr(sys, "argv", [*command.split(), str(out)])
    tuning_speed.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["depth"], row["against"]) for row in rows] == [
        ("shallow", "shallow"),
        ("deep", "deep"),
        ("deep-top4", "deep-top4"),
        ("deep-top4", "deep"),
    ] * 2
    assert [row["precision"] for row in rows] == ["float32"] * 4 + ["bf16"] * 4
    assert all(len(row["ours_seconds"]) == 3 for row in rows)
    assert all(row["memory"] < 0.8 for row in rows if row["depth"] != row["against"])
    printed = capsys.readouterr().out
    assert "deep-top4" in printed
    assert "float32" in printed


def test_different_losses_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tuning_speed, "_backbone", lambda name, device: tiny(Pooling.CLS))
    plain = NaiveRun.one_epoch
    monkeypatch.setattr(NaiveRun, "one_epoch", lambda run: plain(run) + 0.011)
    command = "tuning_speed --device cpu --images 4 --batch 4 --epochs 1 --depths deep"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as stopped:
        tuning_speed.main()
    assert stopped.value.code == 1
    assert "do not train the same" in capsys.readouterr().out
