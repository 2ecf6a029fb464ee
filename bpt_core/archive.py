"""Untrusted archives: entries are checked and read one by one, nothing is ever written by an entry's name.

Here is what all kinds share: limits, the rules for names, the meter, reports. zips.py and tars.py read the formats;
neither zipfile nor tarfile is used. zipfile takes overlapping entries, cuts names at NUL, renames silently and reads
a table of contents of any length into memory; tarfile reads headers of any length and forgives damage.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from bpt_core.errors import ArchiveError

REPORT_ITEMS = 1_000  # items a list in a report holds at most
CHUNK_BYTES = 1 << 18  # what reading an entry holds at a time

_SYSTEM_FILES = {".ds_store", "thumbs.db"}
_NESTED_NAME = re.compile(
    r"\.(7z|ar|bz2|cab|cpio|gz|iso|jar|lz|lz4|lzma|rar|tar|tbz2?|tgz|txz|tzst|war|xz|zipx?|zst)$", re.IGNORECASE
)
_NESTED_STARTS = (
    *(b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"BZh", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
    *(b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
)
_USTAR = slice(257, 262)
_BLOCK_BYTES = 512  # of a tar
# Controls, line and paragraph separators, and the characters that turn the direction of writing. Joiners are
# left alone: Persian, Hindi and emoji need them.
INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

Fault = tuple[str, str]  # code and detail


@dataclass(frozen=True)
class ArchiveLimits:
    entries: int = 500_000
    total_bytes: int = 64 << 30  # all entries together, counted as they come out
    entry_bytes: int = 256 << 20  # one entry that is held in memory
    ratio: int = 200  # bytes out per byte in ...
    ratio_free_bytes: int = 16 << 20  # ... once this many have come out: small flat drawings compress well
    name_component_bytes: int = 255
    name_bytes: int = 4_096


@dataclass(frozen=True)
class Entry:
    """One file of an archive. Its content can be had once, by `read` or `copy_to`, until the next entry is drawn.

    Both raise ArchiveError: archive_bomb, archive_corrupt, entry_type_forbidden (content of a nested archive).
    """

    name: str  # with "/" between components; "." and empty components are gone
    size_bytes: int  # as claimed
    is_system_file: bool  # __MACOSX, .DS_Store, Thumbs.db, ._*: nothing a customer put there
    end_bytes: int  # the archive, as uploaded, is done up to here, for progress
    pieces: Callable[[], Iterator[bytes]]  # the content, checked against all but what follows here
    read_limit_bytes: int

    def read(self) -> bytes:
        """The content; over ArchiveLimits.entry_bytes is archive_bomb."""
        pieces: list[bytes] = []
        read_bytes = 0
        for piece in self._checked():
            read_bytes += len(piece)
            if read_bytes > self.read_limit_bytes:
                raise refusal(self.name, "archive_bomb", f"unpacks to over {self.read_limit_bytes:,} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def copy_to(self, file: BinaryIO) -> None:
        """Writes the content piece by piece, of any size. After an exception what was written is worth nothing."""
        for piece in self._checked():
            file.write(piece)

    def _checked(self) -> Iterator[bytes]:
        start = b""
        for piece in self.pieces():
            start += piece[: max(0, _USTAR.stop - len(start))]
            yield piece
        if start.startswith(_NESTED_STARTS) or start[_USTAR] == b"ustar":
            raise refusal(self.name, "entry_type_forbidden", "the content is an archive")


@dataclass
class Tally:
    """A list in a report: its first REPORT_ITEMS items, and how many there are."""

    total: int = 0
    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **item: Any) -> None:
        self.total += 1
        if len(self.items) < REPORT_ITEMS:
            self.items.append(item)

    def merge(self, report: dict[str, Any]) -> None:
        self.total += report["total"]
        self.items += report["items"][: REPORT_ITEMS - len(self.items)]

    def report(self) -> dict[str, Any]:
        return {"total": self.total, "items": list(self.items)}


def entries(path: Path, limits: ArchiveLimits | None = None) -> Iterator[Entry]:
    """The files of an untrusted zip, tar, tar.gz or tar.zst in the order of their data; folders are left out.

    Entries at fault are all named: ArchiveError.report is {"rejected": {"total", "items": [{"entry", "code",
    "detail"}]}}, and its code is that of the first one. A zip is refused before its first entry is given. A tar
    has no table of contents: its bad entries are left out, and the error comes where the last entry was given.
    """
    from bpt_core import tars, zips  # both build on this module

    limits = limits or ArchiveLimits()
    with path.open("rb") as file:
        start = file.read(_BLOCK_BYTES)
    if start.startswith(tars.GZIP):
        return tars.entries(path, limits, codec="gzip")
    if start.startswith(tars.ZSTD):
        return tars.entries(path, limits, codec="zstd")
    if not start.startswith(zips.STARTS) and tars.is_block_of_tar(start):
        return tars.entries(path, limits)
    return zips.entries(path, limits)


def printable(name: str) -> str:
    """A name for reports: without NUL and the like, and not endless."""
    shown = INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", name)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def fold(name: str) -> str:
    """Equal for names that file systems of this world take for the same one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def decoded(raw_name: bytes) -> str:
    """Many tools write UTF-8 without saying so. cp437 has a letter for every byte."""
    try:
        return raw_name.decode()
    except UnicodeDecodeError:
        return raw_name.decode("cp437")


def clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in {"", "."})


def is_system_file(name: str) -> bool:
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.lower() in _SYSTEM_FILES or last.startswith("._")


def name_fault(name: str, limits: ArchiveLimits) -> Fault | None:
    parts = name.split("/")
    if not name or parts[-1] == "." or INVISIBLE.search(name):
        return "entry_name_invalid", "the name is empty or holds control or direction characters"
    if name.startswith("/") or "\\" in name or ".." in parts or re.match("[A-Za-z]:", name):
        return "entry_path_unsafe", "the name is an absolute path, leaves its folder or holds a backslash"
    if len(name.encode()) > limits.name_bytes:
        return "entry_name_too_long", f"the name is over {limits.name_bytes:,} bytes long"
    if any(len(part.encode()) > limits.name_component_bytes for part in parts):
        return "entry_name_too_long", f"a part of the name is over {limits.name_component_bytes} bytes long"
    return None


def nested_fault(name: str) -> Fault | None:
    if not is_system_file(name) and _NESTED_NAME.search(name):
        return "entry_type_forbidden", "an archive inside the archive is not accepted"
    return None


class Names:
    """The names that an archive has so far; a fixed number of bytes of each, since a tar of long ones packs well."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def conflict(self, name: str) -> Fault | None:
        """Whether another file of the same name was here before; now this one is. Folders may come again."""
        if name.endswith("/"):
            return None
        key = blake2b(fold(clean(name)).encode(), digest_size=16).digest()
        if key in self._seen:
            return "entry_name_conflict", "another entry has the same name on some systems"
        self._seen.add(key)
        return None


@dataclass
class Meter:
    """Counts the bytes that come out of an archive."""

    limits: ArchiveLimits
    archive_bytes: int
    out_bytes: int = 0

    def count(self, fresh: int, entry_out: int, entry_in: int, name: str) -> None:
        """`fresh` bytes more came out, `entry_out` of this entry by now from `entry_in` bytes of the archive."""
        limits = self.limits
        self.out_bytes += fresh
        if self.out_bytes > limits.total_bytes:
            raise refusal(name, "archive_bomb", f"the archive unpacks to over {limits.total_bytes:,} bytes")
        for out, packed in ((entry_out, entry_in), (self.out_bytes, self.archive_bytes)):
            if out > limits.ratio_free_bytes and out > limits.ratio * packed:
                raise refusal(name, "archive_bomb", f"unpacks to over {limits.ratio} times its size")


def refusal(name: str, code: str, detail: str) -> ArchiveError:
    rejected = Tally()
    rejected.add(entry=printable(name), code=code, detail=detail)
    return refused(rejected)


def refused(rejected: Tally) -> ArchiveError:
    first = rejected.items[0]
    others = f", and {rejected.total - 1:,} more at fault" if rejected.total > 1 else ""
    detail = f"{first['entry']}: {first['detail']}{others}"
    return ArchiveError(detail, code=first["code"], report={"rejected": rejected.report()})


def invalid(detail: str, code: str = "archive_invalid") -> ArchiveError:
    """The archive as a whole is at fault, no entry of it."""
    return ArchiveError(detail, code=code, report={"rejected": Tally().report()})
