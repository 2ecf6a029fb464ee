"""What is uploaded: an archive as it is, or a folder as a tar that is made while it is sent."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bpt_client.errors import InputError

ZIP, TAR, GZIP, ZSTD = "application/zip", "application/x-tar", "application/gzip", "application/zstd"
PARQUET = "application/vnd.apache.parquet"

_CHUNK_BYTES = 1 << 20
_MAGIC = {
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,  # without an entry
    b"\x1f\x8b": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"PAR1": PARQUET,
}
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_SUFFIXES = {
    ".zip": ZIP,
    ".tar": TAR,
    ".gz": GZIP,
    ".tgz": GZIP,
    ".zst": ZSTD,
    ".tzst": ZSTD,
    ".parquet": PARQUET,
}
_SYSTEM_FILES = {"__macosx", "thumbs.db"}
_FIXED_TIME = 1_577_836_800  # 2020-01-01, not the files' own times: the same pictures shall give the same bytes


@dataclass(frozen=True)
class Content:
    """What is sent for a path: `size` bytes of `media_type`, always the same ones as long as the files do not change.

    `name` is what a dataset of it is called by default. `stamp` is a hash of names, sizes and times, quickly had; equal
    stamps stand for equal bytes unless somebody turned back a clock. `chunks()` starts from the beginning each time;
    InputError where a file cannot be read or is no longer what it was.
    """

    name: str
    media_type: str
    size: int
    stamp: str
    chunks: Callable[[], Iterator[bytes]]


def content_of(path: Path) -> Content:
    """A zip, tar (also .gz and .zst) or Parquet file as it is; a folder as a tar of its files.

    A folder holds one folder per class, or train/ val/ test/ with such folders in them, or pictures with a
    metadata.csv, or Parquet files. InputError where there is nothing to send.
    """
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    raise InputError(f"{path}: no such file or folder")


@dataclass(frozen=True)
class _Entry:
    """A file and its name in the archive, as it was when it was looked at."""

    path: Path
    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, name: str) -> _Entry:
        try:
            facts = path.stat()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return cls(path, name, facts.st_size, facts.st_mtime_ns)

    def chunks(self) -> Iterator[bytes]:
        """Exactly `size` bytes. A file that changes under us would break the framing, or mix old and new."""
        try:
            with self.path.open("rb") as file:
                left = self.size
                while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    yield chunk
                facts = os.fstat(file.fileno())
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if (facts.st_size, facts.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputError(f"{self.path} changed while it was sent")

    def header(self) -> bytes:
        """The tar header: nothing in it but name and size, in the POSIX (pax) format where they are out of bounds."""
        facts = tarfile.TarInfo(self.name)
        facts.size, facts.mtime, facts.mode = self.size, _FIXED_TIME, 0o644
        return facts.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")

    @property
    def padding(self) -> int:
        """Bytes until the next block begins."""
        return -self.size % tarfile.BLOCKSIZE


def _file(path: Path) -> Content:
    entry = _Entry.of(path, path.name)
    return Content(path.stem.removesuffix(".tar"), _media_type(path), entry.size, _stamp([entry]), entry.chunks)


def _folder(folder: Path) -> Content:
    """Links are followed, for a dataset is often a folder of links; hidden and system files are left out.

    InputError for an empty folder, a folder that contains itself by a link, something that is no file or a name that
    is no text.
    """
    try:
        entries = sorted((_Entry.of(*found) for found in _files(folder, "", ())), key=lambda each: each.name.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{folder} has a file whose name is not text: {error.object!r}") from error
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error}") from error
    if not entries:
        raise InputError(f"{folder} has no files")
    size = sum(len(each.header()) + each.size + each.padding for each in entries) + 2 * tarfile.BLOCKSIZE
    return Content(folder.name, TAR, size, _stamp(entries), partial(_tar, entries))


def _tar(entries: Iterable[_Entry]) -> Iterator[bytes]:
    """Nothing is compressed: image files have no air left in them."""
    for entry in entries:
        yield entry.header()
        yield from entry.chunks()
        if entry.padding:
            yield bytes(entry.padding)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _media_type(path: Path) -> str:
    """By the first bytes, else by what the name ends in; InputError where neither tells."""
    try:
        with path.open("rb") as file:
            found = _recognised(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    # Last of all a zip that has something before it, for the end of the file has to be looked at for that.
    found = found or _SUFFIXES.get(path.suffix.lower()) or (ZIP if zipfile.is_zipfile(path) else None)
    if found is None:
        raise InputError(f"{path.name} is none of zip, tar, tar.gz, tar.zst and Parquet")
    return found


def _recognised(file: BinaryIO) -> str | None:
    head = file.read(_TAR_MAGIC_AT + len(_TAR_MAGIC))
    if head[_TAR_MAGIC_AT:] == _TAR_MAGIC:
        return TAR
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _stamp(entries: Iterable[_Entry]) -> str:
    hashed = hashlib.sha256()
    for each in entries:
        hashed.update(f"{each.size} {each.mtime_ns} {each.name}\0".encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _files(folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """(path, name in the archive) of every file below; `above` are the real paths of the folders we are in."""
    real = folder.resolve()
    if real in above:
        raise InputError(f"{folder} links to a folder it lies in")
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.casefold() in _SYSTEM_FILES:
            continue
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/", (*above, real))
        elif path.is_file():
            yield path, prefix + path.name
        else:
            raise InputError(f"{path} is no file and no folder, or a link to nothing")
