"""What a backup is made of, and the place where backups lie.

objects/<key>                     shared by all backups of a place, for an object never changes once it is written
<name>/tables/<table>.copy.gz     as PostgreSQL's COPY writes it, text format
<name>/manifest.json              written last: without it there is no backup
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import obstore
from obstore.exceptions import BaseError
from pydantic import AfterValidator, BaseModel, ValidationError

from bpt_store.objects import Objects

T = TypeVar("T")

# Advisory: backups share it while they copy objects, and nobody deletes objects without having it alone.
LOCK = "bpt backup"
OBJECTS = "objects/"
GZIP = 16 + zlib.MAX_WBITS  # the form of tables, as zlib is told it
BLOCK_BYTES = 1 << 20  # of a table at a time
_MANIFEST = "manifest.json"
_AT_ONCE = 4  # objects on their way; a store far away answers slowly, but to many


class BackupError(Exception):
    """Why there is no backup, or why it cannot be restored: one line for the operator."""


def _inside(key: str) -> str:
    """A manifest is somebody's file: what it names must not lead out of where objects lie."""
    if not key.isprintable() or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError("no key of an object")
    return key


Key = Annotated[str, AfterValidator(_inside)]


class TableFile(BaseModel):
    """All rows of a table, columns in the order in which they were written."""

    name: str
    columns: list[str]
    file: Key
    sha256: str
    bytes: int
    rows: int


class ObjectFile(BaseModel):
    """`customer` and `of`, what refers to the object first, are public ids."""

    key: Key
    sha256: str
    bytes: int
    customer: str
    of: str


class Problem(ObjectFile):
    """An object that rows refer to and the backup does not hold, or not any more."""

    what: str

    def __str__(self) -> str:
        return f"{self.key} ({self.customer}, {self.of}): {self.what}"


class Manifest(BaseModel):
    """Tables in an order in which they can be filled: none refers to a later one."""

    format: Literal[1] = 1
    name: str
    taken_at: datetime
    revision: str
    counts: dict[str, int]
    tables: list[TableFile]
    objects: list[ObjectFile]
    missing: list[Problem]


class Place(Objects):
    """Where backups lie: a directory, or a URL as object storage has it. One to read from must be there."""

    @classmethod
    def at(cls, place: str, *, to_read: bool = False) -> Self:
        """BackupError."""
        if to_read and "://" not in place and not Path(place).is_dir():
            raise BackupError(f"there is no directory {place}")
        try:
            return cls(place if "://" in place else f"file://{Path(place).resolve()}", foreign=to_read)
        except (BaseError, OSError, ValueError) as error:
            raise BackupError(f"{place} cannot be used: {one_line(error)}") from error

    def names(self) -> list[str]:
        """Of the backups that are complete, oldest first."""
        folders: Sequence[str] = obstore.list_with_delimiter(self._store)["common_prefixes"]
        return sorted(each for each in folders if self.size(f"{each}/{_MANIFEST}") is not None)

    def manifest(self, name: str | None = None) -> Manifest:
        """Of the newest backup, or of the one with this name. BackupError."""
        names = self.names()
        if not names:
            raise BackupError("there is no backup: no manifest is there")
        if name is not None and name not in names:
            raise BackupError(f"there is no backup {name!r}; there are: {', '.join(names)}")
        wanted = name or names[-1]
        try:
            return Manifest.model_validate_json(self.read(f"{wanted}/{_MANIFEST}"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BackupError(f"the manifest of {wanted} is damaged: {where or 'JSON'}: {first['msg']}") from error

    def write_manifest(self, manifest: Manifest) -> None:
        obstore.put(self._store, f"{manifest.name}/{_MANIFEST}", manifest.model_dump_json(indent=1).encode())

    def verify(self, key: str, sha256: str) -> str | None:
        """What is wrong with a file; None if it has this hash."""
        try:
            with Path(os.devnull).open("wb") as nowhere:
                self.copy_to(nowhere, key, sha256=sha256)
        except (BaseError, OSError, ValueError) as error:
            return _wrong(error)
        return None


async def copy(
    source: Objects, key: str, target: Objects, target_key: str, *, sha256: str, advance: Callable[[int], None]
) -> str | None:
    """Copy an object that must have this hash -> what is wrong with it where it comes from, None if it was copied.

    What is wrong is not copied. Errors of the target pass through.
    """
    wrong: list[str] = []

    async def checked(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        digest = hashlib.sha256()
        try:
            async for chunk in chunks:
                digest.update(chunk)
                advance(len(chunk))
                yield chunk
            if digest.hexdigest() != sha256:
                raise ValueError(key)
        except (BaseError, OSError, ValueError) as error:
            wrong.append(_wrong(error))
            raise

    try:
        # Opened here: of an object that is missing, the target is to have no trace.
        chunks = source.open(key)
    except (BaseError, OSError) as error:
        return _wrong(error)
    try:
        await target.put_stream(target_key, checked(chunks))
    except Exception:
        if not wrong:
            raise
        return wrong[0]
    return None


async def for_each(items: Iterable[T], action: Callable[[T], Awaitable[None]]) -> None:
    """A few at a time; the first error ends all."""
    waiting = iter(items)

    async def one_after_another() -> None:
        for item in waiting:
            await action(item)

    await asyncio.gather(*(one_after_another() for _ in range(_AT_ONCE)))


def one_line(error: BaseException) -> str:
    """An error's words without what only its authors can use."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


def _wrong(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, ValueError):
        return "damaged: its sha256 is not the recorded one"
    return f"unreadable: {one_line(error)}"
