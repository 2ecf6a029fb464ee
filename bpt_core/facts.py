"""Numbers that tell a good picture from a bad one, and what ingest keeps of an image file.

Everything is measured on one small luma: ITU-R BT.601, 0 black .. 1 white, reduced by area averages until the longer
side has at most 128 pixels, never enlarged. Photographs have a power spectrum of 1/f² (Field 1987, "Relations between
the statistics of natural images and the response properties of cortical cells"), which looks the same at every scale,
so that sharpness can be compared between sizes: 92 photographs shown with 64 to 300 pixels have a median between 0.026
and 0.039, blurred by 1 % of their longer side between 0.001 and 0.010.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bpt_core import images
from bpt_core.pictures import Canonical, Facts

LUMA_SIDE = 128  # pixels
THUMBNAIL_SIDE = 96  # pixels
_THUMBNAIL_QUALITY = 75  # of JPEG, 1 .. 95

_LEVELS = np.arange(256) / 255

_HASH_SIDE = 32
_FLAT = 1e-6  # a coefficient this small is rounding, not a sign
_FREQUENCIES = sorted(
    ((down, across) for down in range(11) for across in range(11) if down + across > 0),
    key=lambda pair: (sum(pair), max(pair), pair),
)[:64]
_DOWN, _ACROSS = (np.array(each) for each in zip(*_FREQUENCIES, strict=True))
_COSINES = np.cos(np.pi * np.outer(np.arange(11), np.arange(_HASH_SIDE) + 0.5) / _HASH_SIDE) / _HASH_SIDE


def examine(data: bytes, *, short_side: int, pixel_limit: int, first_frame: bool = False) -> Canonical:
    """Bytes of an image file -> all that ingest keeps of it. Raises ImageError as images.canonical does."""
    image, original_size = images.canonical_with_size(
        data, short_side=short_side, pixel_limit=pixel_limit, first_frame=first_frame
    )
    return Canonical(
        encoded=images.encode(image),
        thumbnail=thumbnail(image) if max(image.size) > THUMBNAIL_SIDE else b"",
        digest=images.pixel_hash(image),
        size=image.size,
        format=images.sniff(data) or "",
        facts=measure(image, original_size),
    )


def measure(image: Image.Image, original_size: tuple[int, int]) -> Facts:
    """RGB picture, width and height of the file it was made from -> facts."""
    small = _within(image.convert("L"), LUMA_SIDE)
    shares = np.array(small.histogram()) / (small.width * small.height)
    brightness = float(shares @ _LEVELS)
    some = shares[shares > 0]
    return Facts(
        *original_size,
        brightness=brightness,
        contrast=math.sqrt(max(0.0, float(shares @ _LEVELS**2) - brightness**2)),
        sharpness=_sharpness(np.asarray(small).astype(np.float32) * np.float32(1 / 255)),
        entropy=max(0.0, -float(some @ np.log2(some))),
        hash=_hash(small),
    )


def thumbnail(image: Image.Image) -> bytes:
    """RGB picture -> JPEG, longer side at most 96 pixels."""
    out = io.BytesIO()
    _within(image, THUMBNAIL_SIDE).save(out, "JPEG", quality=_THUMBNAIL_QUALITY)
    return out.getvalue()


def _within(image: Image.Image, side: int) -> Image.Image:
    """Longer side `side` at most, by area averages: a fifth of the time of a bicubic filter, and nothing rings."""
    longer = max(image.size)
    if longer <= side:
        return image
    width, height = (max(1, round(each * side / longer)) for each in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _sharpness(luma: NDArray[np.float32]) -> float:
    """[H, W] -> variance of the Laplacian (Pech-Pacheco et al. 2000); beyond the edge lies what lies at the edge."""
    height, width = luma.shape
    around = np.empty((height + 2, width + 2), np.float32)
    around[1:-1, 1:-1] = luma
    around[0, 1:-1], around[-1, 1:-1] = luma[0], luma[-1]
    around[1:-1, 0], around[1:-1, -1] = luma[:, 0], luma[:, -1]
    laplacian = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * luma
    return float((laplacian * laplacian).mean())  # its mean is 0 with such an edge


def _hash(grey: Image.Image) -> int:
    """64 signs: of the 64 lowest frequencies but the mean in the cosine transform of the luma at 32x32.

    Measured on 32,000 photographs of 64 pixels, 512 million pairs: 3 pairs are equal, 2 differ in 7 bits, 4 in 8, and
    none in 1 to 6. On half of them, of difference hashes (dHash 9x8) the one that finds as many copies takes 132 other
    pairs for alike at 3 bits, another 1 at 3 bits and 28 at 5. Of copies encoded at quality 40, halved, doubled,
    brighter or darker 95 % and more differ in 3 bits or fewer and 97 % in 5; of copies that lost 2 % on each side
    42 to 49 %, and 80 to 84 %.
    """
    pixels = np.asarray(grey.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), np.float64) / 255
    spectrum: NDArray[Any] = _COSINES @ pixels @ _COSINES.T
    return int.from_bytes(np.packbits(spectrum[_DOWN, _ACROSS] > _FLAT).tobytes())
