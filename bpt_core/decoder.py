"""`python -m bpt_core.decoder`: decodes pictures that nobody trusts, in a process that has nothing to lose.

It reads frames from standard input: 8 bytes of length, big-endian, and so many bytes. The first frame is JSON, the
fields of `Options`; every other one is an image file. It writes one answer for each to standard output: 4 bytes of
length, as many of JSON, and what that announces:

    {"protections": [...]}                                          to the options: which of confine's hold
    {"encoded": bytes, "thumbnail": bytes, "digest", ...}           a Canonical; the two files follow, one by one
    {"code": "image_corrupt", "detail": "..."}                      an ImageError

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
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from PIL import AvifImagePlugin

from bpt_core import facts, images
from bpt_core.confine import confine
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical

FRAME_LENGTH = struct.Struct(">Q")
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
    options = Options(**json.loads(first))
    images.load_decoders()
    held = confine(memory_bytes=options.memory_bytes, open_files=_OPEN_FILES, file_bytes=0, files=False)
    _write(answers, {"protections": sorted(held)})
    while (data := _frame(frames)) is not None:
        _write(answers, *_answer(data, options))


def _frame(frames: BinaryIO) -> bytes | None:
    header = frames.read(FRAME_LENGTH.size)
    if len(header) < FRAME_LENGTH.size:
        return None
    (length,) = FRAME_LENGTH.unpack(header)
    data = frames.read(length)
    return data if len(data) == length else None


def _answer(data: bytes, options: Options) -> tuple[dict[str, Any], bytes, bytes]:
    signal.setitimer(signal.ITIMER_PROF, options.cpu_seconds)
    try:
        found = facts.examine(
            data,
            short_side=options.short_side,
            pixel_limit=options.pixel_limit,
            first_frame=options.first_frame,
        )
        return _head(found), found.encoded, found.thumbnail
    except ImageError as error:
        return {"code": error.code, "detail": str(error)}, b"", b""
    except MemoryError:
        return {"code": "image_decode_limit", "detail": "decoding needs more memory than allowed"}, b"", b""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _head(found: Canonical) -> dict[str, Any]:
    return {
        "encoded": len(found.encoded),
        "thumbnail": len(found.thumbnail),
        "digest": found.digest,
        "size": found.size,
        "format": found.format,
        "facts": found.facts,
    }


def _write(answers: BinaryIO, head: dict[str, Any], *files: bytes) -> None:
    text = json.dumps(head).encode()
    answers.write(b"".join([HEAD_LENGTH.pack(len(text)), text, *files]))
    answers.flush()


if __name__ == "__main__":
    main()
