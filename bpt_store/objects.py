"""Object storage by URL: a directory, S3, GCS or Azure, through obstore.

Keys begin with the owner: `datasets/<id>/...`, `jobs/<id>/...` (until the job ends) and `batch-predictions/<id>/...`
(its results), so that one prefix holds all there is to delete.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

CHUNK_BYTES = 5 << 20


class Objects:
    def __init__(self, url: str) -> None:
        self._store: ObjectStore
        if url.startswith("file://"):
            self._store = LocalStore(prefix=url.removeprefix("file://"), mkdir=True, automatic_cleanup=True)
        else:
            self._store = from_url(url)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream with flat memory. An exception from `chunks` passes through and leaves no object."""
        await obstore.put_async(self._store, key, chunks, use_multipart=True, chunk_size=CHUNK_BYTES, max_concurrency=4)

    def put_file(self, key: str, path: Path) -> dict[str, str | int]:
        """Store a file -> {"key", "sha256", "bytes"}, as it is written into a row."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        obstore.put(self._store, key, path)
        return {"key": key, "sha256": digest, "bytes": path.stat().st_size}

    def open(self, key: str) -> AsyncIterator[bytes]:
        """The object's bytes, a piece at a time; FileNotFoundError at once where there is none."""
        return aiter(obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES))

    def fetch(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Copy an object to `path`; ValueError where its bytes do not have the given hash."""
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ValueError(f"object {key} has sha256 {digest.hexdigest()}, not {sha256} as recorded")

    def keys(self, prefix: str) -> list[str]:
        return [entry["path"] for page in obstore.list(self._store, prefix) for entry in page]

    def delete(self, key: str) -> None:
        """Delete one object, or everything below a prefix that ends in "/"; what is gone already is no error."""
        for one in self.keys(key) if key.endswith("/") else [key]:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, one)
