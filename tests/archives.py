"""Archives for tests: drawn flowers, and hostile ones."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Mapping
from functools import cache

from PIL import Image

from bpt_core import samples


@cache
def picture(label: int = 0, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    samples.draw(label, seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def zipped(entries: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def pictures(*names: str) -> bytes:
    """A zip of different pictures under these names."""
    return zipped({name: picture(0, seed) for seed, name in enumerate(names)})


@cache
def flowers(classes: int = 3, train: int = 6, val: int = 2, test: int = 2, seed: int = 0) -> bytes:
    """A small zip with train/, val/ and test/ folders; the numbers are images per class."""
    entries = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        for label in range(classes):
            for number in range(count):
                seed += 1
                entries[f"flowers/{split}/{samples.CLASS_NAMES[label]}/{number}.jpg"] = picture(label, seed)
    return zipped(entries)


def with_symlink() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("a/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("b/1.jpg", picture())
    return buffer.getvalue()


def bomb() -> bytes:
    """Some 60 KB that become 60 MB."""
    return zipped({"a/1.jpg": bytes(60_000_000), "b/1.jpg": picture()}, compression=zipfile.ZIP_DEFLATED)


def with_corrupt_images(good: int, bad: int) -> bytes:
    entries = {f"{'ab'[i % 2]}/{i}.jpg": picture(i % 2, i) for i in range(good)}
    entries |= {f"a/bad{i}.jpg": picture(0, i)[:400] for i in range(bad)}
    return zipped(entries)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
