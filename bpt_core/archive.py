"""Untrusted archives: entries are checked and read one by one, nothing is ever written by an entry's name.

Zip is read here, not by zipfile: that one takes overlapping entries, cuts names at NUL, renames silently and reads
a central directory of any length into memory. What is checked before any data is read costs time and memory by
the bytes that are there, never by the sizes the archive claims.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bpt_core.errors import ArchiveError

REPORT_ITEMS = 1_000  # items a list in a report holds at most
_CHUNK_BYTES = 1 << 18

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8

_SYSTEM_FILES = {".ds_store", "thumbs.db"}
_NESTED_NAME = re.compile(
    r"\.(7z|ar|bz2|cab|cpio|gz|iso|jar|lz|lz4|lzma|rar|tar|tbz2?|tgz|txz|tzst|war|xz|zipx?|zst)$", re.IGNORECASE
)
_NESTED_STARTS = (
    *(b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"BZh", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"),
    *(b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"),
)
# Controls, line and paragraph separators, and the characters that turn the direction of writing. Joiners are
# left alone: Persian, Hindi and emoji need them.
_INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ArchiveLimits:
    entries: int = 500_000
    total_bytes: int = 64 << 30  # all entries together, counted as they come out
    entry_bytes: int = 256 << 20  # one entry; it is held in memory
    ratio: int = 200  # bytes out per byte in ...
    ratio_free_bytes: int = 16 << 20  # ... once this many have come out: small flat drawings compress well
    name_component_bytes: int = 255
    name_bytes: int = 4_096


@dataclass(frozen=True)
class Entry:
    """One file of an archive. `read` works until the next entry is drawn.

    `read` raises ArchiveError: archive_bomb, archive_corrupt, entry_type_forbidden (content of a nested archive).
    """

    name: str  # with "/" between components; "." and empty components are gone
    size_bytes: int  # as claimed
    is_system_file: bool  # __MACOSX, .DS_Store, Thumbs.db, ._*: nothing a customer put there
    end_bytes: int  # the archive is done up to here, for progress
    read: Callable[[], bytes]


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
    """The files of an untrusted archive in the order of their data; folders are left out.

    Everything that can be known without reading data is checked before the first entry is given, and all entries
    at fault are named: ArchiveError.report is {"rejected": {"total", "items": [{"entry", "code", "detail"}]}},
    and its code is that of the first one.
    """
    limits = limits or ArchiveLimits()
    with path.open("rb") as file:
        members = _members(file, limits)
        _refuse_bad_names(members, limits)
        _refuse_overlaps(members)
        meter = _Meter(limits, file.seek(0, 2))
        for member in members:
            if not member.raw_name.endswith(b"/"):
                yield Entry(
                    name=_clean(member.name),
                    size_bytes=member.size_bytes,
                    is_system_file=_is_system_file(member.name),
                    end_bytes=member.end_bytes,
                    read=partial(_read, file, member, meter),
                )


def printable(name: str) -> str:
    """A name for reports: without NUL and the like, and not endless."""
    shown = _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", name)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def fold(name: str) -> str:
    """Equal for names that file systems of this world take for the same one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class _Member(NamedTuple):
    raw_name: bytes
    flags: int
    method: int
    mode: int  # of a Unix file, 0 where unknown
    crc: int
    packed_bytes: int
    size_bytes: int
    offset: int
    end_bytes: int  # where the next one or the central directory starts

    @property
    def name(self) -> str:
        # Many tools write UTF-8 without saying so. cp437 has a letter for every byte.
        try:
            return self.raw_name.decode()
        except UnicodeDecodeError:
            return self.raw_name.decode("cp437")


@dataclass
class _Meter:
    """Counts the bytes that come out of an archive."""

    limits: ArchiveLimits
    archive_bytes: int
    out_bytes: int = 0

    def count(self, fresh: int, entry_out: int, entry_in: int, name: str) -> None:
        limits = self.limits
        self.out_bytes += fresh
        if self.out_bytes > limits.total_bytes:
            raise _refusal(name, "archive_bomb", f"the archive unpacks to over {limits.total_bytes:,} bytes")
        if entry_out > limits.entry_bytes:
            raise _refusal(name, "archive_bomb", f"unpacks to over {limits.entry_bytes:,} bytes")
        for out, packed in ((entry_out, entry_in), (self.out_bytes, self.archive_bytes)):
            if out > limits.ratio_free_bytes and out > limits.ratio * packed:
                raise _refusal(name, "archive_bomb", f"unpacks to over {limits.ratio} times its size")


def _refusal(name: str, code: str, detail: str) -> ArchiveError:
    rejected = Tally()
    rejected.add(entry=printable(name), code=code, detail=detail)
    return _refused(rejected)


def _refused(rejected: Tally) -> ArchiveError:
    first = rejected.items[0]
    others = f", and {rejected.total - 1:,} more at fault" if rejected.total > 1 else ""
    detail = f"{first['entry']}: {first['detail']}{others}"
    return ArchiveError(detail, code=first["code"], report={"rejected": rejected.report()})


def _invalid(detail: str, code: str = "archive_invalid") -> ArchiveError:
    """The archive as a whole is at fault, no entry of it."""
    return ArchiveError(detail, code=code, report={"rejected": Tally().report()})


def _members(file: BinaryIO, limits: ArchiveLimits) -> list[_Member]:
    """Every member in the order of its data."""
    start, end, shift, claimed = _directory(file)
    members: list[_Member] = []
    file.seek(start)
    while (left := end - file.tell()) > 0:
        if len(members) == limits.entries:
            detail = f"the archive has more than {limits.entries:,} entries"
            raise _invalid(detail, "archive_too_many_entries")
        members.append(_member(file, left, shift))
    # Without zip64, 16 bits have to do for the number.
    if len(members) != claimed and len(members) % 0x10000 != claimed:
        raise _invalid("the table of contents does not hold as many entries as it claims")
    members.sort(key=lambda member: (member.offset, member.raw_name))
    ends = [*(member.offset for member in members[1:]), start]
    return [member._replace(end_bytes=end) for member, end in zip(members, ends, strict=False)]


def _directory(file: BinaryIO) -> tuple[int, int, int, int]:
    """-> where the central directory starts and ends, bytes that precede the archive, claimed number of entries."""
    archive_bytes = file.seek(0, 2)
    tail_start = max(0, archive_bytes - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _invalid("this is no zip archive, or its end is missing")
    _, disk, directory_disk, _, claimed, size, offset, _ = _END.unpack_from(tail, at)
    if disk or directory_disk:
        raise _invalid("one part of a split archive is not enough")
    end = tail_start + at
    locator_at = end - _END64_LOCATOR.size
    file.seek(max(0, locator_at))
    if file.read(4) == b"PK\x06\x07":
        # The record stands right before its locator, whose offset is off where something precedes the archive.
        end = max(0, locator_at - _END64.size)
        file.seek(end)
        record = file.read(_END64.size)
        if len(record) != _END64.size or record[:4] != b"PK\x06\x06":
            raise _invalid("the zip64 end of the archive is missing")
        claimed, size, offset = _END64.unpack(record)[7:]
    start = end - size
    if start < 0 or offset > start:
        raise _invalid("the table of contents lies outside the file")
    return start, end, start - offset, claimed


def _member(file: BinaryIO, left: int, shift: int) -> _Member:
    header = file.read(_CENTRAL.size)
    if len(header) != _CENTRAL.size or header[:4] != b"PK\x01\x02":
        raise _invalid("the table of contents is damaged")
    fields = _CENTRAL.unpack(header)
    flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields[3:13]
    mode, offset = fields[15] >> 16, fields[16]
    if _CENTRAL.size + name_length + extra_length + comment_length > left:
        raise _invalid("the table of contents is damaged")
    raw_name = file.read(name_length)
    extra = file.read(extra_length)
    file.seek(comment_length, 1)
    size, packed, offset = _zip64(extra, size, packed, offset)
    return _Member(raw_name, flags, method, mode, crc, packed, size, offset + shift, end_bytes=0)


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Values of 32 bits, those that read 0xFFFFFFFF replaced by the 64 bits that the extra field has for them."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    out = list(values)
    for index, value in enumerate(values):
        if value == 0xFFFFFFFF and len(wide) >= 8:
            out[index] = int.from_bytes(wide[:8], "little")
            wide = wide[8:]
    return out


def _refuse_bad_names(members: list[_Member], limits: ArchiveLimits) -> None:
    rejected = Tally()
    seen: set[str] = set()
    for member in members:
        name = member.name
        fault = _fault(member, name, limits)
        if fault is None and not name.endswith("/"):
            key = fold(_clean(name))
            if key in seen:
                fault = "entry_name_conflict", "another entry has the same name on some systems"
            seen.add(key)
        if fault is not None:
            rejected.add(entry=printable(name), code=fault[0], detail=fault[1])
    if rejected.total:
        raise _refused(rejected)


def _fault(member: _Member, name: str, limits: ArchiveLimits) -> tuple[str, str] | None:
    """-> code and detail, or None."""
    parts = name.split("/")
    if not name or parts[-1] == "." or _INVISIBLE.search(name):
        return "entry_name_invalid", "the name is empty or holds control or direction characters"
    if name.startswith("/") or "\\" in name or ".." in parts or re.match("[A-Za-z]:", name):
        return "entry_path_unsafe", "the name is an absolute path, leaves its folder or holds a backslash"
    if len(name.encode()) > limits.name_bytes:
        return "entry_name_too_long", f"the name is over {limits.name_bytes:,} bytes long"
    if any(len(part.encode()) > limits.name_component_bytes for part in parts):
        return "entry_name_too_long", f"a part of the name is over {limits.name_component_bytes} bytes long"
    if stat.S_IFMT(member.mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "entry_type_forbidden", "links and devices are not accepted"
    if name.endswith("/") or _is_system_file(name):
        return None
    if _NESTED_NAME.search(name):
        return "entry_type_forbidden", "an archive inside the archive is not accepted"
    if member.flags & 1:
        return "archive_encrypted", "the entry is encrypted"
    if member.method not in {_STORED, _DEFLATED}:
        return "archive_unsupported_compression", f"method {member.method}: only stored and deflate are read"
    return None


def _clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in {"", "."})


def _is_system_file(name: str) -> bool:
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.lower() in _SYSTEM_FILES or last.startswith("._")


def _refuse_overlaps(members: list[_Member]) -> None:
    rejected = Tally()
    for member in members:
        end = member.offset + _LOCAL.size + len(member.raw_name) + member.packed_bytes
        if end > member.end_bytes:
            detail = "the entry lies over the next one or beyond the data"
            rejected.add(entry=printable(member.name), code="archive_bomb", detail=detail)
    if rejected.total:
        raise _refused(rejected)


def _read(file: BinaryIO, member: _Member, meter: _Meter) -> bytes:
    name = member.name
    _seek_data(file, member, name)
    chunks: list[bytes] = []
    out_bytes = checksum = 0
    for chunk in _unpacked(file, member, name):
        out_bytes += len(chunk)
        meter.count(len(chunk), out_bytes, member.packed_bytes, name)
        if out_bytes > member.size_bytes:
            raise _refusal(name, "archive_corrupt", "more data comes out than the archive claims")
        checksum = zlib.crc32(chunk, checksum)
        chunks.append(chunk)
    if out_bytes != member.size_bytes or checksum != member.crc:
        raise _refusal(name, "archive_corrupt", "size or checksum differ from what the archive claims")
    data = b"".join(chunks)
    if data.startswith(_NESTED_STARTS) or data[257:262] == b"ustar":
        raise _refusal(name, "entry_type_forbidden", "the content is an archive")
    return data


def _seek_data(file: BinaryIO, member: _Member, name: str) -> None:
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise _refusal(name, "archive_corrupt", "the entry's own header is missing")
    _, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(header)
    if (method, flags & 1, file.read(name_length)) != (member.method, member.flags & 1, member.raw_name):
        raise _refusal(name, "archive_corrupt", "the entry's own header differs from the table of contents")
    if file.seek(extra_length, 1) + member.packed_bytes > member.end_bytes:
        raise _refusal(name, "archive_bomb", "the entry lies over the next one or beyond the data")


def _unpacked(file: BinaryIO, member: _Member, name: str) -> Iterator[bytes]:
    """The entry's data in pieces of at most _CHUNK_BYTES."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = member.packed_bytes
    while left:
        packed = file.read(min(left, _CHUNK_BYTES))
        if not packed:
            raise _refusal(name, "archive_corrupt", "the data ends too early")
        left -= len(packed)
        if member.method == _STORED:
            yield packed
            continue
        try:
            while packed and not inflater.eof:
                yield inflater.decompress(packed, _CHUNK_BYTES)
                packed = inflater.unconsumed_tail
        except zlib.error as error:
            raise _refusal(name, "archive_corrupt", "the compressed data is damaged") from error
        if inflater.eof:
            break
    if member.method == _DEFLATED:
        yield inflater.flush()  # at most a few hundred bytes: all input is in
        if left or inflater.unused_data or not inflater.eof:
            raise _refusal(name, "archive_corrupt", "the compressed data does not end where the archive claims")
