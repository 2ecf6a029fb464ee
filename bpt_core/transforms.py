"""Upright RGB image -> the square of pixels a backbone takes; evaluation is fixed, training draws a view."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def evaluation_view(image: Image.Image, size: int) -> Pixels:
    """-> uint8 [size, size, 3]: short side to round(size * 256 / 224), bicubic, then the centre crop."""
    width, height = image.size
    short = round(size * 256 / 224)
    scale = min(width, height) / short  # source pixels per target pixel
    left, top = (width - size * scale) / 2, (height - size * scale) / 2
    return _crop(image, (left, top, left + size * scale, top + size * scale), size)


def training_view(image: Image.Image, size: int, rng: np.random.Generator, scale_min: float) -> Pixels:
    """-> uint8 [size, size, 3]: a random resized crop (area scale_min..1, aspect 3/4..4/3), half of them flipped."""
    width, height = image.size
    box: tuple[float, float, float, float] | None = None
    for _ in range(10):
        area = width * height * rng.uniform(scale_min, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
            box = (left, top, left + crop_width, top + crop_height)
            break
    if box is None:  # very long images: the largest centred crop of an allowed aspect
        crop_width, crop_height = min(width, height * 4 / 3), min(height, width * 4 / 3)
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        box = (left, top, left + crop_width, top + crop_height)
    pixels = _crop(image, box, size)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _crop(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
