"""Sending a dataset: small ones in one request, larger ones in parts that survive lost connections and restarts.

An upload in parts is found again by its fingerprint, a hash of what is to be sent and how. What the service has got
already, by number and SHA-256, is not sent a second time; the rest goes on two connections at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from threading import Event, Lock
from typing import Any, TypeVar

import httpx

from bpt_client.archives import Content
from bpt_client.dataset_models import Upload
from bpt_client.errors import (
    ApiError,
    BptError,
    ConnectionFailed,
    Forbidden,
    InputError,
    InvalidRequest,
    ServerError,
    TooManyRequests,
)
from bpt_client.models import Json, parse
from bpt_client.transport import Transport, decode, segment

OnSent = Callable[[int, int], None]
"""Called with (bytes the service has or is getting, bytes in all); from more than one thread, never at once."""

T = TypeVar("T")

PART_BYTES = 32 << 20  # at least, and up to
LARGE_PART_BYTES = 64 << 20  # where there would be more than
_FEW_PARTS = 8
_MOST_PARTS = 10_000
_IN_FLIGHT = 2  # parts; one more is being made meanwhile, so three are in memory
_CHUNK_BYTES = 1 << 18
_ANSWER_SECONDS = 120.0  # the service stores what it got before it answers
_ATTEMPTS = 6
_PAUSE_SECONDS = 0.5  # doubles each time: 15 s in all, a restart of the service
_LONGEST_RETRY_AFTER_SECONDS = 60.0
_SENT_WRONG = ("checksum_mismatch", "request_timeout")  # what a bad line does to a part
_UPLOADS = "/v1/uploads"


class Progress:
    """Counts bytes; threads may share it."""

    def __init__(self, total: int, on_sent: OnSent | None) -> None:
        self._total, self._on_sent = total, on_sent
        self._sent, self._lock = 0, Lock()

    def add(self, count: int) -> None:
        """A negative count takes back what has to be sent again."""
        with self._lock:
            self._sent += count
            if self._on_sent is not None:
                self._on_sent(self._sent, self._total)


def is_small(content: Content) -> bool:
    """Whether parts would bring nothing."""
    return content.size < PART_BYTES


def part_bytes(size: int) -> int:
    """Of each part but the last. Larger ones cost less, smaller ones are sooner there again after a break."""
    preferred = min(max(PART_BYTES, -(-size // _FEW_PARTS)), LARGE_PART_BYTES)
    return max(preferred, -(-size // _MOST_PARTS))


def send_whole(
    transport: Transport, path: str, params: Mapping[str, Any], content: Content, on_sent: OnSent | None
) -> Any:
    """POST what fits into memory as one body -> the answer's JSON. Repeated, and done once: see `Transport.post`."""
    body, progress = b"".join(content.chunks()), Progress(content.size, on_sent)
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        if sent:
            # What an earlier try has sent counts for nothing.
            progress.add(-sent)
            sent = 0
        for chunk in _chunks(body):
            yield chunk
            sent += len(chunk)
            progress.add(len(chunk))

    response = transport.post(
        path,
        params=dict(params),
        content=chunks,
        # With its length known beforehand the service can refuse an archive before it is sent.
        headers=_headers(body, hashlib.sha256(body).digest(), content.media_type),
        timeout=_timeout(transport),
    )
    return decode(response)


def send_in_parts(transport: Transport, about: Json, content: Content, on_sent: OnSent | None) -> Any:
    """Send in parts, or send what is missing of an earlier try, and complete -> the dataset's or version's JSON.

    `about` is what the service is told: name or dataset, options. Each request is repeated when the connection breaks
    or the service is away; when it stays away the upload waits for the next call. It is given up when it cannot
    succeed any more: the files have changed (InputError) or the service refuses them.
    """
    body = {**about, "media_type": content.media_type, "size_bytes": content.size}
    # Not of the size of parts: one that was begun with another size goes on with that.
    body["fingerprint"] = hashlib.sha256(json.dumps([content.stamp, body], sort_keys=True).encode()).hexdigest()
    body["part_bytes"] = part_bytes(content.size)
    stopped = Event()
    upload = _again(lambda: _open(transport, body), stopped)
    path = f"{_UPLOADS}/{segment(upload.id)}"
    try:
        sha256 = _Parts(transport, path, upload, content, Progress(content.size, on_sent), stopped).send()
        answer = _again(lambda: transport.once("POST", f"{path}/complete", json={"sha256": sha256}), stopped)
        return decode(answer)
    except (InputError, Forbidden, InvalidRequest):
        with suppress(BptError):
            transport.once("DELETE", path)
        raise


class _Parts:
    """The parts of one upload on their way."""

    def __init__(
        self, transport: Transport, path: str, upload: Upload, content: Content, progress: Progress, stopped: Event
    ) -> None:
        self._transport, self._path = transport, path
        self._content, self._part_bytes = content, upload.part_bytes
        self._known = {part.number: part.sha256 for part in upload.parts}
        self._progress, self._stopped = progress, stopped

    def send(self) -> str:
        """All that the service has not got -> SHA-256 of the whole, hexadecimal."""
        whole = hashlib.sha256()
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            try:
                for number, part in enumerate(_cut(self._content.chunks(), self._part_bytes), 1):
                    if len(running) == _IN_FLIGHT:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for each in done:
                            each.result()
                    running.add(pool.submit(self._send, number, part))
                    whole.update(part)
                for each in as_completed(running):
                    each.result()
            except BaseException:
                # Nobody waits for a part that takes minutes, or for the pause before it is tried again.
                self._stopped.set()
                raise
        return whole.hexdigest()

    def _send(self, number: int, part: bytes) -> None:
        digest = hashlib.sha256(part)
        if self._known.get(number) == digest.hexdigest():
            self._progress.add(len(part))
            return
        _again(lambda: self._put(number, part, digest.digest()), self._stopped)

    def _put(self, number: int, part: bytes, digest: bytes) -> None:
        """One try. What it has counted as sent is taken back where it fails."""
        sent = 0

        def chunks() -> Iterator[bytes]:
            nonlocal sent
            for chunk in _chunks(part):
                if self._stopped.is_set():
                    raise _Stopped
                yield chunk
                sent += len(chunk)
                self._progress.add(len(chunk))

        try:
            self._transport.once(
                "PUT",
                f"{self._path}/parts/{number}",
                content=chunks(),
                headers=_headers(part, digest, "application/octet-stream"),
                timeout=_timeout(self._transport),
            )
        except BaseException:
            self._progress.add(-sent)
            raise


class _Stopped(Exception):
    """Another part has failed for good; nobody gets to see this."""


def _open(transport: Transport, body: Json) -> Upload:
    """The unfinished upload of the same content, with its parts, or a new one."""
    wanted = body["fingerprint"]
    for each in transport.pages(Upload, _UPLOADS, {"fingerprint": wanted}):
        if each.fingerprint == wanted and each.state == "open":
            return transport.fetch(Upload, f"{_UPLOADS}/{segment(each.id)}")
    return parse(Upload, decode(transport.once("POST", _UPLOADS, json=body)))


def _again(action: Callable[[], T], stopped: Event) -> T:
    """`action`, repeated with growing pauses while that may help; only for what is safe to repeat."""
    pause = _PAUSE_SECONDS
    for _ in range(_ATTEMPTS - 1):
        wished = 0.0
        try:
            return action()
        except ConnectionFailed:
            if stopped.is_set():
                raise
        except ApiError as error:
            wished = error.retry_after_seconds or 0.0
            if not _may_pass(error) or wished > _LONGEST_RETRY_AFTER_SECONDS:
                raise
        if stopped.wait(max(pause, wished)):
            raise _Stopped
        pause *= 2
    return action()


def _may_pass(error: ApiError) -> bool:
    if isinstance(error, TooManyRequests):
        return error.passes
    return isinstance(error, ServerError) or error.code in _SENT_WRONG


def _cut(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    pieces: list[bytes] = []
    missing = size
    for chunk in chunks:
        at = 0
        while len(chunk) - at >= missing:
            pieces.append(chunk[at : at + missing])
            yield b"".join(pieces)
            pieces, at, missing = [], at + missing, size
        if at < len(chunk):
            pieces.append(chunk[at:])
            missing -= len(chunk) - at
    if pieces:
        yield b"".join(pieces)


def _chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]


def _headers(body: bytes, digest: bytes, media_type: str) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Content-Length": str(len(body)),
        "Content-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:",
    }


def _timeout(transport: Transport) -> httpx.Timeout:
    return httpx.Timeout(transport.timeout, read=_ANSWER_SECONDS)
