"""What is uploaded: a zip as it is, or a folder zipped on the fly."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from bpt_client.errors import InputError

_CHUNK_BYTES = 1 << 20
_SYSTEM_FILES = {"__macosx", "thumbs.db"}
# Not the files' own times: the same pictures shall give the same bytes.
_FIXED_TIME = (2020, 1, 1, 0, 0, 0)


@contextmanager
def opened_archive(path: Path) -> Iterator[BinaryIO]:
    """The zip to send for a zip or a folder, open at its beginning; a folder's temporary zip goes at the end.

    A folder holds one folder per class, or train/ val/ test/ with such folders in them. InputError where
    there is nothing to send.
    """
    if path.is_dir():
        with tempfile.TemporaryFile(prefix="bpt-upload-") as file:
            archive = cast(BinaryIO, file)
            write_zip(path, archive)
            archive.seek(0)
            yield archive
    elif path.is_file():
        try:
            original = path.open("rb")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        with original:
            yield original
    else:
        raise InputError(f"{path}: no such file or folder")


def write_zip(folder: Path, out: BinaryIO) -> None:
    """Zip a folder's files, in the order of their names: equal folders give equal bytes.

    Links are followed, for a dataset is often a folder of links; hidden and system files are left out.
    Nothing is compressed: image files have no air left in them. InputError for an empty folder, a folder
    that contains itself by a link, an unreadable file or something that is no file.
    """
    count = 0
    try:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for path, name in sorted(_files(folder, "", ()), key=lambda pair: pair[1].encode()):
                entry = zipfile.ZipInfo(name, _FIXED_TIME)
                entry.external_attr = 0o644 << 16
                entry.create_system = 3  # Unix, wherever we are
                entry.file_size = path.stat().st_size  # decides on the 64-bit form before the data comes
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
                count += 1
    except UnicodeEncodeError as error:
        raise InputError(f"{folder} has a file whose name is not text: {error.object!r}") from error
    except OSError as error:
        raise InputError(f"cannot zip {folder}: {error}") from error
    if not count:
        raise InputError(f"{folder} has no files")


def content_digest(file: BinaryIO) -> tuple[str, int]:
    """(value of the Content-Digest header (RFC 9530), length in bytes) of what is left; rewinds the file."""
    hashed, size = hashlib.sha256(), 0
    start = file.tell()
    while chunk := file.read(_CHUNK_BYTES):
        hashed.update(chunk)
        size += len(chunk)
    file.seek(start)
    return f"sha-256=:{base64.b64encode(hashed.digest()).decode()}:", size


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
