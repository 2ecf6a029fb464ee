"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from bpt_client.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """What is written is at `path` once the block ends well; InputError where that cannot be."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
            unfinished = Path(part.name)
            try:
                yield cast(BinaryIO, part)
                part.flush()
                os.fchmod(part.fileno(), 0o644)
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink()
                raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
