"""What ingest knows about a picture: how it looks, where its bytes lie, what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple


class Split(StrEnum):
    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Facts(NamedTuple):
    """Measured while the picture was decoded; numbers that findings rest on."""

    width: int  # pixels of the original, upright
    height: int
    brightness: float  # mean luma, 0 black .. 1 white
    contrast: float  # standard deviation of luma, 0 .. 0.5
    sharpness: float  # variance of the Laplacian of luma (0 .. 1) on a fixed scale; small is blurred
    entropy: float  # bits per pixel of the luma histogram, 0 .. 8
    hash: int  # 64 bits; pictures that look alike differ in few


class Canonical(NamedTuple):
    """What decoding makes of an image file."""

    encoded: bytes  # lossless, upright, without metadata
    thumbnail: bytes  # a small JPEG; empty where the picture itself is no larger
    digest: str  # SHA-256 of size and pixels, hexadecimal
    size: tuple[int, int]  # width, height as stored
    format: str  # of the original: JPEG, PNG, ...
    facts: Facts


@dataclass(frozen=True)
class Annotation:
    """What a table beside the images, or a column next to them, says about one. None: nothing is said."""

    labels: tuple[str, ...] | None = None
    split: Split | None = None
    group: str | None = None


@dataclass(slots=True)
class Picture:
    """One picture on its way into a dataset."""

    path: str
    digest: str
    format: str  # of the original
    facts: Facts
    size: tuple[int, int]  # width, height as stored
    offset: int  # of its bytes in the spool: the encoded picture, then its thumbnail
    length: int
    thumbnail_length: int
    note: Annotation | None = None  # from a column next to it
    labels: tuple[str, ...] = ()
    split: Split = Split.TRAIN
    group: str | None = None  # what belongs together lies in one split
    is_new: bool = True  # not in the version before

    @property
    def id(self) -> str:
        return item_id(self.digest, self.path)


def item_id(digest: str, path: str) -> str:
    """The same picture at the same place has the same id in every version of a dataset."""
    return "itm_" + sha256(f"{digest}:{path}".encode()).hexdigest()[:24]
