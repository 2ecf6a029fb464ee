"""What tests of decoding processes share: pictures, decoders that do as they are told, and a look at what is left."""

from __future__ import annotations

import io
import json
import struct
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from bpt_core import facts
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical

LONG = 120.0  # seconds; nothing here takes as long unless it is broken


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(seed: int = 0, side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def examined(data: bytes, **options: Any) -> Canonical | ImageError:
    (found,) = facts.examine([data], **{"short_side": 320, "pixel_limit": 50_000_000, **options})
    return found


def code(future: Future[Canonical | ImageError]) -> str:
    result = future.result(LONG)
    assert isinstance(result, ImageError)
    return result.code


_others: set[psutil.Process] = set()
"""Processes that tests before have left running, such as the whole service."""


def children() -> list[psutil.Process]:
    """Those that have come inside of `nothing_left`."""
    return [process for process in psutil.Process().children() if process not in _others]


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process, zombies included, no open file and no thread."""

    def all_there_is() -> tuple[list[psutil.Process], int, int]:
        everyone = psutil.Process().children()
        return everyone, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = all_there_is()
    _others.clear()
    _others.update(before[0])
    yield
    assert all_there_is() == before


def decoding(directory: Path, statements: str) -> tuple[str, ...]:
    """A decoder that runs statements before it decodes `data`."""
    script = directory / "decoder.py"
    script.write_text(f"""
import hashlib, os, signal, threading, time
from bpt_core import decoder, images
as_ever = images.canonical_with_size
def canonical(data, **options):
    {statements}
    return as_ever(data, **options)
images.canonical_with_size = canonical
next_frame = decoder._frame
def frame(frames):
    assert signal.getitimer(signal.ITIMER_PROF)[0] == 0
    return next_frame(frames)
decoder._frame = frame
decoder.main()
""")
    return (sys.executable, str(script))


def frame(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


GREETING = frame(b'{"protections": []}')


def saying(
    directory: Path, data: bytes, end: str = "exec cat 3>&1 > /dev/null", greeting: bytes = GREETING
) -> tuple[str, ...]:
    """A decoder that greets and says `data`, asked or not; then it runs `end` in a shell."""
    said = directory / "said"
    said.write_bytes(greeting + data)
    return ("/bin/sh", "-c", f'cat "$0"; {end}', str(said))


_sound = examined(picture())
assert isinstance(_sound, Canonical)
SOUND = _sound


def answer(
    changes: dict[str, Any] | bytes, *, encoded: bytes = SOUND.encoded, small: bytes = SOUND.thumbnail, count: int = 1
) -> bytes:
    """To a frame of `count` files, each time the same."""
    if isinstance(changes, bytes):
        return changes
    head = {
        "encoded": len(encoded),
        "thumbnail": len(small),
        "digest": SOUND.digest,
        "size": SOUND.size,
        "format": SOUND.format,
        "facts": SOUND.facts,
    }
    head = changes if not changes or "code" in changes else {**head, **changes}
    return frame(json.dumps([head] * count).encode()) + (encoded + small) * count
