"""Datasets from object storage: an object as it is, or everything below a prefix as one archive.

What may be asked for was decided when the job was made; here it is read with the service's own rights.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from obstore.exceptions import BaseError

from bpt_store.objects import Objects
from worker.refused import Refused

OBJECTS_LIMIT = 1_000_000


def fetch(url: str, path: Path, limit_bytes: int) -> None:
    """The object that `url` names, or a tar of all objects below it, into `path`; memory stays flat.

    Refused `import_not_found`, `payload_too_large`, `import_failed`.
    """
    try:
        _fetch(url, path, limit_bytes)
    except (BaseError, OSError) as error:
        raise Refused("import_failed", f"{url} cannot be read: {error}") from error


def _fetch(url: str, path: Path, limit_bytes: int) -> None:
    if not _is_there(url):
        raise Refused("import_not_found", f"there is nothing at {url}")
    parent, _, name = url.rstrip("/").rpartition("/")
    if not url.endswith("/"):
        store = Objects(parent, foreign=True)
        size = store.size(name)
        if size is not None:
            _refuse_large(url, size, limit_bytes)
            store.fetch(name, path)
            return
    store = Objects(url.rstrip("/"), foreign=True)
    total = count = 0
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key, size in store.sizes(""):
            count, total = count + 1, total + size
            _refuse_large(url, total, limit_bytes)
            if count > OBJECTS_LIMIT:
                raise Refused("payload_too_large", f"more than {OBJECTS_LIMIT:,} objects lie below {url}")
            entry = tarfile.TarInfo(key)
            with TemporaryFile(dir=path.parent) as whole:
                # First into a file of its own: an object that changes meanwhile must not break the archive.
                store.copy_to(cast(BinaryIO, whole), key)
                entry.size = whole.tell()
                whole.seek(0)
                archive.addfile(entry, whole)
    if not count:
        raise Refused("import_not_found", f"there is nothing at {url}")


def _is_there(url: str) -> bool:
    """Of a directory it can be told at once; a bucket has no folders that could be missing."""
    return not url.startswith("file://") or Path(url.removeprefix("file://")).exists()


def _refuse_large(url: str, size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise Refused("payload_too_large", f"{url} has over {limit_bytes:,} bytes")
