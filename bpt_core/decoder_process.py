"""A decoding process as seen from outside: pictures there, answers back, and what is to be thought of an answer.

Nothing that it says is believed unseen: a picture may have taken it over. See bpt_core/decoder.py for the format.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from bpt_core import images
from bpt_core.decoder import FILE_COUNT, FILE_LENGTH, HEAD_LENGTH, Options
from bpt_core.errors import ImageError
from bpt_core.pictures import Canonical, Facts

COMMAND = (sys.executable, "-P", "-m", "bpt_core.decoder")

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")  # of the environment: nothing that opens a door
_START_SECONDS = 60.0
_END_SECONDS = 5.0  # from the end of what it says to that of the process
_PIPE_BYTES = 1 << 20

_HEAD_BYTES = 1 << 16
_THUMBNAIL_BYTES = 1 << 20
_DETAIL_LENGTH = 300
_SHARPNESS_LIMIT = 64.0  # of luma in 0 .. 1: the Laplacian is between -4 and 4
_CODES = {"image_animated", "image_corrupt", "image_decode_limit", "image_too_large", "image_unsupported"}
_FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"}


class Died(Exception):
    """The process is of no more use: it ended, was silent for too long, or what it says makes no sense."""

    def __init__(self, *, took_too_long: bool = False) -> None:
        super().__init__()
        self.took_too_long = took_too_long


class DecoderProcess:
    """A decoding process. Both pipes are served in turn, so that two full ones never wait for each other."""

    def __init__(self, command: Sequence[str], options: Options) -> None:
        self._options = options
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._input, self._output = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        for end in (self._input, self._output):
            os.set_blocking(end, False)
            with suppress(OSError):  # a larger pipe saves time and nothing else
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._outgoing: deque[memoryview] = deque()
        self._incoming = bytearray()

    def greet(self) -> frozenset[str]:
        """-> the protections that hold. Raises Died."""
        self.send([self._options.to_frame()])
        deadline = time.monotonic() + _START_SECONDS
        with _sense():
            return frozenset(str(each) for each in self._head(deadline)["protections"])

    def send(self, files: Sequence[bytes]) -> None:
        """They go out while `results` waits."""
        lengths = b"".join(FILE_LENGTH.pack(len(data)) for data in files)
        self._outgoing += map(memoryview, (FILE_COUNT.pack(len(files)) + lengths, *files))

    def results(self, count: int, seconds: float) -> list[Canonical | ImageError]:
        """What has become of the first files, `count`, that were sent together and not answered. Raises Died."""
        deadline = time.monotonic() + seconds
        with _sense():
            heads = self._head(deadline)
            if type(heads) is not list or len(heads) != count:
                raise ValueError
            return [self._result(head, deadline) for head in heads]

    def kill(self) -> None:
        self._popen.kill()

    def end(self) -> None:
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._popen.kill()
        self._popen.wait()

    def _head(self, deadline: float) -> Any:
        (length,) = HEAD_LENGTH.unpack(self._read(HEAD_LENGTH.size, deadline))
        return json.loads(self._read(_whole(length, 2, _HEAD_BYTES), deadline))

    def _result(self, head: dict[str, Any], deadline: float) -> Canonical | ImageError:
        if "code" in head:
            return _image_error(head)
        encoded_bytes = _whole(head["encoded"], 1, 4 * self._options.pixel_limit + (1 << 20))
        thumbnail_bytes = _whole(head["thumbnail"], 0, _THUMBNAIL_BYTES)
        encoded, thumbnail = self._read(encoded_bytes, deadline), self._read(thumbnail_bytes, deadline)
        return _canonical(head, encoded, thumbnail, self._options)

    def _read(self, count: int, deadline: float) -> bytes:
        while len(self._incoming) < count:
            self._exchange(deadline)
        data = bytes(memoryview(self._incoming)[:count])
        del self._incoming[:count]
        return data

    def _exchange(self, deadline: float) -> None:
        self._write()
        if self._outgoing:
            self._poll.register(self._input, select.POLLOUT)
        remaining = deadline - time.monotonic()
        ready = dict(self._poll.poll(1000 * remaining)) if remaining > 0 else {}
        if self._outgoing:
            self._poll.unregister(self._input)
        if not ready:
            raise Died(took_too_long=True)
        if self._output in ready:
            received = os.read(self._output, _PIPE_BYTES)
            if not received:
                raise Died(took_too_long=self._was_stopped_by_its_timer())
            self._incoming += received

    def _write(self) -> None:
        while self._outgoing:
            try:
                written = os.writev(self._input, list(islice(self._outgoing, 64)))
            except BlockingIOError:
                return
            except BrokenPipeError:  # it is dead; what it still had to say comes first
                self._outgoing.clear()
                return
            while self._outgoing and written >= len(self._outgoing[0]):
                written -= len(self._outgoing.popleft())
            if written:
                self._outgoing[0] = self._outgoing[0][written:]

    def _was_stopped_by_its_timer(self) -> bool:
        try:
            return self._popen.wait(_END_SECONDS) == -signal.SIGPROF
        except subprocess.TimeoutExpired:
            return False


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    # Threads and arenas take address space, and there is one picture at a time.
    alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | alone | {"PYTHONPATH": path}


# --- answers are as untrusted as the pictures --------------------------------------------------------------------


@contextmanager
def _sense() -> Iterator[None]:
    """What is not as it should be in an answer is the end of the process. Raises Died."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Died from error


def _image_error(head: dict[str, Any]) -> ImageError:
    detail = "".join(each if each.isprintable() else "?" for each in str(head["detail"])[:_DETAIL_LENGTH])
    return ImageError(detail, code=_one_of(head["code"], _CODES))


def _canonical(head: dict[str, Any], encoded: bytes, thumbnail: bytes, options: Options) -> Canonical:
    _one_of(images.sniff(encoded), {"WEBP", "PNG"})
    _one_of(images.sniff(thumbnail) if thumbnail else "none", {"JPEG", "none"})
    digest = str(head["digest"])
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError
    size = _size(head["size"], options.pixel_limit)
    _whole(min(size), 1, options.short_side)
    width, height, brightness, contrast, sharpness, entropy, hash_ = head["facts"]
    return Canonical(
        encoded=encoded,
        thumbnail=thumbnail,
        digest=digest,
        size=size,
        format=_one_of(head["format"], _FORMATS),
        facts=Facts(
            *_size((width, height), options.pixel_limit),
            brightness=_number(brightness, 1.0),
            contrast=_number(contrast, 1.0),
            sharpness=_number(sharpness, _SHARPNESS_LIMIT),
            entropy=_number(entropy, 8.0),
            hash=_whole(hash_, 0, (1 << 64) - 1),
        ),
    )


def _size(value: Sequence[Any], pixel_limit: int) -> tuple[int, int]:
    width, height = (_whole(each, 1, pixel_limit) for each in value)
    _whole(width * height, 1, pixel_limit)
    return width, height


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError
    return value


def _number(value: Any, most: float) -> float:
    if type(value) is not float or not 0.0 <= value <= most:  # NaN neither
        raise ValueError
    return value


def _one_of(value: Any, known: set[str]) -> str:
    if value not in known:
        raise ValueError
    return str(value)
