"""Object storage by URL: a directory, S3, GCS or Azure, through obstore.

Keys begin with the owner: `uploads/<id>/...` (until it is ingested), `datasets/<id>/...`, `jobs/<id>/...` (until the
job ends) and `batch-predictions/<id>/...` (its results), so that one prefix holds all there is to delete.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import obstore
from obstore.exceptions import GenericError
from obstore.store import LocalStore, ObjectStore, from_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 5 << 20
READ_BYTES = 1 << 16  # a reader fetches no less at a time
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # obstore tells what the file system said in words only


class Digest(Protocol):
    """As hashlib makes them."""

    def update(self, data: bytes, /) -> None: ...


class Objects:
    """Where objects lie. One that is `foreign` is read only: its directory is not made where it is missing."""

    def __init__(self, url: str, *, foreign: bool = False) -> None:
        self._store: ObjectStore
        self._directory: Path | None = None
        if url.startswith("file://"):
            self._directory = Path(url.removeprefix("file://"))
            self._store = LocalStore(prefix=self._directory, mkdir=not foreign, automatic_cleanup=not foreign)
        else:
            self._store = from_url(url)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a stream with flat memory. An exception from `chunks` passes through and leaves no object."""
        if self._directory is not None:
            await _write(self._directory / key, chunks)
            return
        await obstore.put_async(self._store, key, chunks, use_multipart=True, chunk_size=CHUNK_BYTES, max_concurrency=4)

    def put_file(self, key: str, path: Path) -> dict[str, str | int]:
        """Store a file -> {"key", "sha256", "bytes"}, as it is written into a row. OSError, ENOSPC for example."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return self._put(key, path, digest)

    def put_content(self, prefix: str, path: Path) -> dict[str, str | int]:
        """Store a file under a name made of its content, so that equal files are one object, however often stored."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return self._put(f"{prefix}{digest}{path.suffix}", path, digest)

    def read(self, key: str) -> bytes:
        """A small object whole; FileNotFoundError."""
        return bytes(obstore.get(self._store, key).bytes())

    def read_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(obstore.get_range(self._store, key, start=start, length=length)) if length else b""

    def reader(self, key: str) -> BinaryIO:
        """A file to seek in, of which no more is fetched than is read; FileNotFoundError."""
        size = obstore.head(self._store, key)["size"]
        return io.BufferedReader(_Ranges(self._store, key, size), READ_BYTES)

    def open(self, key: str) -> AsyncIterator[bytes]:
        """The object's bytes, a piece at a time; FileNotFoundError at once where there is none."""
        return aiter(obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES))

    def fetch(self, key: str, path: Path, *, sha256: str | None = None) -> None:
        """Copy an object to `path`; ValueError where its bytes do not have the given hash."""
        with path.open("wb") as file:
            self.copy_to(file, key, sha256=sha256)

    def copy_to(self, file: BinaryIO, key: str, *, sha256: str | None = None, also: Digest | None = None) -> None:
        """Write an object's bytes into an open file, and into a digest that goes over several; ValueError likewise."""
        digest = hashlib.sha256()
        for chunk in obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
            if also is not None:
                also.update(chunk)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ValueError(f"object {key} has sha256 {digest.hexdigest()}, not {sha256} as recorded")

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, bytes) of every object below a prefix, a page at a time."""
        for page in obstore.list(self._store, prefix):
            yield from ((entry["path"], entry["size"]) for entry in page)

    def keys_before(self, prefix: str, moment: datetime) -> Iterator[str]:
        """Of the objects below a prefix that were last written before a moment, a page at a time."""
        for page in obstore.list(self._store, prefix):
            yield from (entry["path"] for entry in page if entry["last_modified"] < moment)

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        try:
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            return None

    def keys(self, prefix: str) -> list[str]:
        return [entry["path"] for page in obstore.list(self._store, prefix) for entry in page]

    def delete(self, key: str) -> None:
        """Delete one object, or everything below a prefix that ends in "/"; what is gone already is no error."""
        for one in self.keys(key) if key.endswith("/") else [key]:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, one)
        if key.endswith("/") and self._directory is not None:
            # What a process had begun to write when it was killed is in no list.
            shutil.rmtree(self._directory / key, ignore_errors=True)

    def _put(self, key: str, path: Path, digest: str) -> dict[str, str | int]:
        try:
            obstore.put(self._store, key, path)
        except GenericError as error:
            if (found := _OS_ERROR.search(str(error))) is None:
                raise
            raise OSError(int(found[1]), f"{os.strerror(int(found[1]))}: object {key}") from error
        return {"key": key, "sha256": digest, "bytes": path.stat().st_size}


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> None:
    """A file that appears when it is whole; each chunk is written while the next one comes.

    Under the name that obstore's own unfinished files have, which are in no list. Its way takes twice the time.
    """
    partial = path.with_name(f"{path.name}#{secrets.randbelow(1 << 62)}")
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[int] | None = None
    try:
        with _open_new(partial) as file:
            try:
                async for chunk in chunks:
                    if writing is not None:
                        await writing
                    writing = loop.run_in_executor(None, file.write, chunk)
            finally:
                if writing is not None:
                    await asyncio.wait([writing])
        if writing is not None:
            writing.result()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _open_new(path: Path) -> BinaryIO:
    """Its folder may go away in the meantime, as the last object in it does."""
    while True:
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")


class _Ranges(io.RawIOBase):
    """An object as a file, read by ranges."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        super().__init__()
        self._store, self._key, self._size = store, key, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._at)
        if length <= 0:
            return 0
        view[:length] = memoryview(obstore.get_range(self._store, self._key, start=self._at, length=length))
        self._at += length
        return length
