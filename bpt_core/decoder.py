"""`python -m bpt_core.decoder`: decodes pictures that nobody trusts, in a process that has nothing to lose.

It reads frames of files from standard input: 4 bytes with their number, 8 bytes for the length of each, big-endian,
and the files. The first frame is one file of JSON, the fields of `Options`; in all others are image files. It writes
one answer for each frame to standard output: 4 bytes of length, as many of JSON, and what that announces:

    {"protections": [...]}                                          to the options: which of confine's hold
    [for each image file one of                                     and behind the list all files of all of them
        {"encoded": bytes, "thumbnail": bytes, "digest", ...}       a Canonical; two files, the second may be empty
        {"code": "image_corrupt", "detail": "..."}]                 an ImageError

The answers come from a process that a picture may have taken over: who reads them checks them (decoders.py).
A picture that takes more CPU time than it may is the end of the process: the kernel sends SIGPROF, since code in C
does not come back to Python to be told. It ends when standard input closes, and with the thread that started it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from PIL import AvifImagePlugin

from bpt_core import facts, images
from bpt_core.confine import confine
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical

FILE_COUNT = struct.Struct(">I")
FILE_LENGTH = struct.Struct(">Q")
HEAD_LENGTH = struct.Struct(">I")

_OPEN_FILES = 32
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Options:
    cpu_seconds: float  # for one picture
    memory_bytes: int  # of address space, all in all
    short_side: int  # pixels
    pixel_limit: int
    first_frame: bool

    def to_frame(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # of as many as there are cores each would take address space
    frames, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print do not get between the answers
    first = _frame(frames)
    if first is None:
        return
    options = Options(**json.loads(first[0]))
    images.load_decoders()
    held = confine(memory_bytes=options.memory_bytes, open_files=_OPEN_FILES, file_bytes=0, files=False)
    _write(answers, {"protections": sorted(held)})
    while (files := _frame(frames)) is not None:
        _answer(answers, files, options)


def _frame(frames: BinaryIO) -> list[bytes] | None:
    """None where the input has come to its end."""
    try:
        (count,) = FILE_COUNT.unpack(frames.read(FILE_COUNT.size))
        lengths = [FILE_LENGTH.unpack(frames.read(FILE_LENGTH.size))[0] for _ in range(count)]
    except struct.error:
        return None
    files = [frames.read(length) for length in lengths]
    return files if [len(data) for data in files] == lengths else None


def _answer(answers: BinaryIO, files: list[bytes], options: Options) -> None:
    found = facts.examine(
        _timed(files, options.cpu_seconds),
        short_side=options.short_side,
        pixel_limit=options.pixel_limit,
        first_frame=options.first_frame,
    )
    signal.setitimer(signal.ITIMER_PROF, 0)
    kept = [each for each in found if isinstance(each, Canonical)]
    _write(answers, [_head(each) for each in found], *(file for each in kept for file in each[:2]))


def _timed(files: Iterable[bytes], seconds: float) -> Iterator[bytes]:
    """Each has so long until the next one is asked for; what comes behind the last one counts as its time."""
    for data in files:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        yield data


def _head(found: Canonical | ImageError) -> dict[str, Any]:
    if isinstance(found, ImageError):
        return {"code": found.code, "detail": str(found)}
    return {
        "encoded": len(found.encoded),
        "thumbnail": len(found.thumbnail),
        "digest": found.digest,
        "size": found.size,
        "format": found.format,
        "facts": found.facts,
    }


def _write(answers: BinaryIO, head: Any, *files: bytes) -> None:
    text = json.dumps(head).encode()
    answers.write(b"".join([HEAD_LENGTH.pack(len(text)), text, *files]))
    answers.flush()


if __name__ == "__main__":
    main()
