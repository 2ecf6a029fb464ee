"""Probes of a backbone: right on features that are, by chance on those that are not, and blind to the test folder."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import probe_backbone
from benchmarks.pretrain_mae import Pretraining, Settings
from benchmarks.probe_backbone import (
    carve,
    features,
    knn_accuracy,
    linear_probe_accuracy,
    load_encoder,
    probe,
    read_images,
)

TINY = Settings(image_size=32, embed_dim=32, depth=2, heads=2, decoder_dim=32, decoder_depth=1)
COLOURS = {"blue": (20, 30, 200), "green": (20, 200, 30), "red": (200, 20, 30)}


def clusters(count: int, seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features [count, 16] around one axis per class, and labels [count], as many of each class."""
    labels = torch.arange(count) % classes
    spread = 0.1 * torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.eye(16)[labels] + spread, labels


def test_separable_features_are_told_apart() -> None:
    known, asked = clusters(400, 0), clusters(200, 1)
    assert knn_accuracy(*known, *asked) == 1.0
    assert linear_probe_accuracy(*known, *asked, 1e-3) == 1.0


def test_shuffled_labels_give_chance() -> None:
    (known, labels), asked = clusters(800, 0), clusters(800, 1)
    labels = labels[torch.randperm(800, generator=torch.Generator().manual_seed(2))]
    assert 0.1 < knn_accuracy(known, labels, *asked) < 0.4  # one of four
    assert 0.1 < linear_probe_accuracy(known, labels, *asked, 1e-3) < 0.4


def test_neighbours_are_those_of_the_smallest_angle_and_the_nearer_ones_weigh_more() -> None:
    asked, truth = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    known = torch.tensor([[9.0, 0.1], [1.0, 0.7], [1.0, -0.7], [0.9, 2.0]])
    labels = torch.tensor([0, 1, 1, 1])
    assert knn_accuracy(known, labels, asked, truth, k=1) == 1.0
    assert knn_accuracy(known, labels, asked, truth) == 1.0  # exp(1 / 0.07) outweighs two of exp(0.82 / 0.07)
    assert knn_accuracy(known, labels, asked, truth, temperature=1.0) == 0.0
    assert knn_accuracy(known, labels, asked, truth, temperature=1.0, k=1) == 1.0


def test_the_linear_probe_does_not_mind_scale_or_offset_of_a_feature() -> None:
    (known, labels), (asked, truth) = clusters(400, 0), clusters(200, 1)
    scale, offset = torch.logspace(-3, 3, 16), torch.linspace(-5, 5, 16)
    assert linear_probe_accuracy(known * scale + offset, labels, asked * scale + offset, truth, 1e-3) == 1.0


def test_weight_decay_shrinks_the_probe() -> None:
    """With three times as many of one class, a probe without weights can but name that class."""
    (known, labels), (asked, truth) = clusters(400, 0, classes=2), clusters(200, 1, classes=2)
    rare = torch.cat([(labels == 0).nonzero()[:, 0], (labels == 1).nonzero()[:60, 0]])
    assert linear_probe_accuracy(known[rare], labels[rare], asked, truth, 1e-3) == 1.0
    assert linear_probe_accuracy(known[rare], labels[rare], asked, truth, 1e4) == 0.5


def test_the_validation_split_is_disjoint_and_stratified() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 10)[torch.randperm(80)]
    kept, held = carve(labels)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(80))
    assert labels[held].bincount().tolist() == [10, 4, 2]
    again, other = carve(labels)[1], carve(labels, seed=1)[1]
    assert torch.equal(held, again)
    assert not torch.equal(held.sort().values, other.sort().values)


def test_a_probe_scores_what_it_did_not_fit() -> None:
    """400 points in 500 dimensions have any classes one likes, but only by heart."""
    known, labels = torch.randn(400, 500, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 4
    assert linear_probe_accuracy(known, labels, known, labels, 1e-4) == 1.0
    assert knn_accuracy(known, labels, known, labels, temperature=0.01) == 1.0
    scores = probe(known, labels)
    assert scores["linear"] < 0.6
    assert scores["knn"] < 0.6


def test_with_test_features_all_of_train_is_fitted() -> None:
    """That (-3, -1) is of class 0 can be known from the images alone that were held out."""
    labels = torch.tensor([0] * 10 + [1] * 10)
    kept, held = carve(labels)
    known = torch.tensor([[1.0, -1.0]] * 10 + [[-1.0, 1.0]] * 10)
    known[held[labels[held] == 0]] = asked = torch.tensor([-3.0, -1.0])
    test = asked[None], torch.tensor([0])
    assert knn_accuracy(known[kept], labels[kept], *test) == 0.0
    assert linear_probe_accuracy(known[kept], labels[kept], *test, 1e-4) == 0.0
    scores = probe(known, labels, test)
    assert (scores["knn"], scores["linear"]) == (1.0, 1.0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder that never learned, with the card of the bundled one."""
    path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
    run = Pretraining(TINY, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    architecture = TINY.architecture | {"class": "timm VisionTransformer"}
    run.save_encoder(path, {"architecture": architecture, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    return path


def write_task(path: Path, *, swap_test: bool = False, break_test: bool = False) -> Path:
    """A zip of squares of three colours, 10 train and 4 test images of each; in test two colours may swap names."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.txt", "not an image")
        for folder, count in (("train", 10), ("test", 4)):
            for name, colour in COLOURS.items():
                swapped = {"red": "green", "green": "red"} if swap_test and folder == "test" else {}
                for index in range(count):
                    pixels = np.clip(rng.normal(colour, 10, (48, 40, 3)), 0, 255).astype(np.uint8)
                    stored = io.BytesIO()
                    Image.fromarray(pixels).save(stored, "PNG")
                    content = b"no image" if break_test and folder == "test" else stored.getvalue()
                    archive.writestr(f"{folder}/{swapped.get(name, name)}/{index}.png", content)
    return path


def test_classes_are_numbered_by_train_alone(tmp_path: Path) -> None:
    square = io.BytesIO()
    Image.new("RGB", (8, 8)).save(square, "PNG")
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for name in ("train/a/1", "train/b/1", "train/c/1", "test/c/1"):
            archive.writestr(f"{name}.png", square.getvalue())
    assert read_images(tmp_path / "task.zip", "train", 8)[1].tolist() == [0, 1, 2]
    assert read_images(tmp_path / "task.zip", "test", 8)[1].tolist() == [2]
    with zipfile.ZipFile(tmp_path / "task.zip", "a") as archive:
        archive.writestr("test/d/1.png", square.getvalue())
    with pytest.raises(ValueError, match="'d'"):
        read_images.__wrapped__(tmp_path / "task.zip", "test", 8)


def test_features_are_the_normed_mean_of_the_patch_tokens(backbone: Path) -> None:
    encoder = load_encoder(backbone)
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        # With num_classes 0 timm's own forward ends in the pooled features.
        wanted = encoder.model((pixels / 255 - mean) / std)
    rows = features(encoder, [pixels[:3], pixels[3:]])
    assert rows.shape == (5, 32)
    torch.testing.assert_close(rows, wanted)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["probe_backbone", *map(str, arguments)])
    probe_backbone.main()


def test_two_files_on_validation_and_the_test_folder_is_not_read(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task, figures = write_task(tmp_path / "colours.zip", break_test=True), tmp_path / "figures.json"
    second = tmp_path / "second.safetensors"
    second.write_bytes(backbone.read_bytes())
    run(monkeypatch, backbone, second, "--tasks", task, "--json", figures)
    printed = capsys.readouterr().out
    assert "validation" in printed
    assert "colours" in printed
    assert "100.0" in printed
    written = json.loads(figures.read_text())
    assert written["split"] == "validation"
    assert list(written["figures"]) == [str(backbone), str(second)]
    for row in written["figures"].values():
        assert row["mean"] == {"knn": 1.0, "linear": 1.0}
        assert set(row) == {"colours", "mean"}


def test_the_test_folder_is_what_is_scored_when_asked_for(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, swapped = write_task(tmp_path / "plain.zip"), write_task(tmp_path / "swapped.zip", swap_test=True)
    run(monkeypatch, backbone, "--tasks", plain, swapped, "--test", "--json", tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    row = written["figures"][str(backbone)]
    assert written["split"] == "test"
    assert (row["plain"]["knn"], row["plain"]["linear"]) == (1.0, 1.0)
    assert (row["swapped"]["knn"], row["swapped"]["linear"]) == pytest.approx((1 / 3, 1 / 3))
    assert row["mean"]["knn"] == pytest.approx(2 / 3)


def test_missing_files_are_named(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(monkeypatch, backbone)
    assert "insects64.zip" in capsys.readouterr().err


def test_a_file_that_says_nothing_of_itself_is_refused(backbone: Path, tmp_path: Path) -> None:
    save_file(load_file(backbone), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no card"):
        load_encoder(tmp_path / "bare.safetensors")


def test_weights_of_another_shape_are_refused(backbone: Path, tmp_path: Path) -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    card = {"architecture": replace(TINY, depth=3).architecture, "mean": [0.5] * 3, "std": [0.5] * 3}
    Pretraining(TINY, pixels).save_encoder(tmp_path / "short.safetensors", card)
    with pytest.raises(RuntimeError, match=r"blocks\.2"):
        load_encoder(tmp_path / "short.safetensors")
