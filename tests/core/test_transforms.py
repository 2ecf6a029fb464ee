"""Views of images: geometry, determinism, and independence of batches and memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bpt_core.dataset import PackedDataset, Split
from bpt_core.transforms import evaluation_view, training_view
from bpt_core.views import SplitImages


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green grows downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (256, 800), (100, 73)])
def test_evaluation_takes_the_centre(size: tuple[int, int]) -> None:
    view = evaluation_view(ramp(*size), 64)
    assert view.shape == (64, 64, 3)
    assert view[:, :, :2].mean() == pytest.approx(127.5, abs=1.5)
    short = min(size)
    seen = short * 64 / round(64 * 256 / 224)  # source pixels along each side of the crop
    spread_right = float(view[:, -1, 0].mean()) - float(view[:, 0, 0].mean())
    assert spread_right == pytest.approx(255 * seen / size[0], rel=0.05)


def test_a_training_view_depends_on_its_random_numbers_alone() -> None:
    image = ramp(120, 90)
    one, again, other = (training_view(image, 32, np.random.default_rng(seed), 0.08) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_training_views_are_flipped_half_the_time_and_crop_within_scale() -> None:
    image = ramp(100, 100)
    views = [training_view(image, 16, np.random.default_rng(seed), 0.5) for seed in range(400)]
    flipped = sum(float(view[:, 0, 0].mean()) > float(view[:, -1, 0].mean()) for view in views)
    assert 150 < flipped < 250
    widths = [abs(float(view[:, -1, 0].mean()) - float(view[:, 0, 0].mean())) / 255 for view in views]
    assert min(widths) > 0.5  # area >= 0.5, aspect >= 3/4: width >= sqrt(0.375) = 0.61, less the edges


def test_a_very_long_image_still_gives_a_view() -> None:
    assert training_view(ramp(2000, 10), 32, np.random.default_rng(0), 0.9).shape == (32, 32, 3)


def test_views_do_not_depend_on_batches_nor_on_what_is_kept_in_memory(flowers: PackedDataset) -> None:
    kept = SplitImages(flowers, Split.TRAIN, 32)
    decoded_each_time = SplitImages(flowers, Split.TRAIN, 32, keep_limit_bytes=50_000)
    together = torch.cat(list(kept.training_batches([range(24)], seed=1, view=2, scale_min=0.2)))
    apart = torch.cat(list(decoded_each_time.training_batches([[i] for i in range(24)], seed=1, view=2, scale_min=0.2)))
    assert torch.equal(together, apart)
    assert together.dtype == torch.uint8
    assert together.shape == (24, 3, 32, 32)


def test_evaluation_batches_come_in_stored_order(flowers: PackedDataset) -> None:
    split = SplitImages(flowers, Split.VAL, 32)
    whole, pieces = torch.cat(list(split.evaluation_batches(100))), torch.cat(list(split.evaluation_batches(5)))
    assert torch.equal(whole, pieces)
    assert split.targets.argmax(dim=1).tolist() == [item.labels[0] for item in flowers.items(Split.VAL)]
    assert split.targets.sum(dim=1).tolist() == [1] * 12
