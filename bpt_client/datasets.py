"""Datasets: upload, wait until they are validated, look at them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from bpt_client.archives import content_digest, opened_archive
from bpt_client.errors import DatasetFailed, InputError, WaitedTooLong
from bpt_client.models import Dataset, Json, parse
from bpt_client.transport import Transport, deadline, decode, json_object, segment

OnSent = Callable[[int, int], None]
"""Called with (bytes sent, bytes in all)."""

_CHUNK_BYTES = 1 << 18
_ANSWER_SECONDS = 120.0  # the service stores the archive before it answers
_POLL_SECONDS = 0.5


class Datasets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self, path: str | Path, *, name: str | None = None, unlabelled: bool = False, on_sent: OnSent | None = None
    ) -> Dataset:
        """Send a zip, or a folder (zipped into a temporary file), with its SHA-256; named after it by default.

        `unlabelled` images may lie in any folders; they are there to be predicted, not to be tuned on. The dataset
        is not ready yet: see `wait`. InputError for a path with nothing to send.
        """
        path = Path(path).absolute()
        with opened_archive(path) as archive:
            digest, size = content_digest(archive)
            # With its length known beforehand the service can refuse an archive before it is sent.
            headers = {"Content-Type": "application/zip", "Content-Length": str(size), "Content-Digest": digest}
            response = self._transport.once(
                "POST",
                "/v1/datasets",
                params={
                    "name": name or (path.name if path.is_dir() else path.stem),
                    **({"task": "unlabelled"} if unlabelled else {}),
                },
                content=_chunks(archive, size, on_sent),
                headers=headers,
                timeout=httpx.Timeout(self._transport.timeout, read=_ANSWER_SECONDS),
            )
        return parse(Dataset, decode(response))

    def list(self) -> Iterator[Dataset]:
        return self._transport.pages(Dataset, "/v1/datasets")

    def get(self, dataset_id: str) -> Dataset:
        return self._transport.fetch(Dataset, f"/v1/datasets/{segment(dataset_id)}")

    def report(self, dataset_id: str) -> Json:
        """What validation found."""
        return json_object(decode(self._transport.get(f"/v1/datasets/{segment(dataset_id)}/report")))

    def delete(self, dataset_id: str) -> None:
        self._transport.once("DELETE", f"/v1/datasets/{segment(dataset_id)}")

    def wait(self, dataset_id: str, *, timeout: float | None = None) -> Dataset:
        """The dataset once it is ready. DatasetFailed; WaitedTooLong after `timeout` seconds."""
        end = deadline(timeout)
        while True:
            dataset = self.get(dataset_id)
            if dataset.is_ready:
                return dataset
            if dataset.is_failed:
                raise DatasetFailed(dataset)
            if time.monotonic() >= end:
                raise WaitedTooLong(f"dataset {dataset_id} is still {dataset.state} after {timeout} s")
            time.sleep(_POLL_SECONDS)


def _chunks(file: BinaryIO, size: int, on_sent: OnSent | None) -> Iterator[bytes]:
    """Exactly `size` bytes: a file that changes under us must not break the framing. InputError if it shrank."""
    sent = 0
    while sent < size:
        chunk = file.read(min(_CHUNK_BYTES, size - sent))
        if not chunk:
            raise InputError("the archive became shorter while it was sent")
        yield chunk
        sent += len(chunk)
        if on_sent is not None:
            on_sent(sent, size)
