"""Untrusted zip archives. What is checked before any data is read costs time and memory by the bytes that are there,
never by the sizes the archive claims."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bpt_core.archive import (
    CHUNK_BYTES,
    ArchiveLimits,
    Entry,
    Fault,
    Meter,
    Names,
    Tally,
    clean,
    decoded,
    invalid,
    is_system_file,
    name_fault,
    nested_fault,
    printable,
    refusal,
    refused,
)

STARTS = (b"PK\x03\x04", b"PK\x05\x06")

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8


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
        return decoded(self.raw_name)


def entries(path: Path, limits: ArchiveLimits) -> Iterator[Entry]:
    """See archive.entries. Everything that can be known without reading data is checked before the first entry."""
    with path.open("rb") as file:
        members = _members(file, limits)
        _refuse_faults(members, limits)
        _refuse_overlaps(members)
        meter = Meter(limits, file.seek(0, 2))
        for member in members:
            if not member.raw_name.endswith(b"/"):
                yield Entry(
                    name=clean(member.name),
                    size_bytes=member.size_bytes,
                    is_system_file=is_system_file(member.name),
                    end_bytes=member.end_bytes,
                    pieces=partial(_pieces, file, member, meter),
                    read_limit_bytes=limits.entry_bytes,
                )


def _members(file: BinaryIO, limits: ArchiveLimits) -> list[_Member]:
    """Every member in the order of its data."""
    start, end, shift, claimed = _directory(file)
    members: list[_Member] = []
    file.seek(start)
    while (left := end - file.tell()) > 0:
        if len(members) == limits.entries:
            detail = f"the archive has more than {limits.entries:,} entries"
            raise invalid(detail, "archive_too_many_entries")
        members.append(_member(file, left, shift))
    # Without zip64, 16 bits have to do for the number.
    if len(members) != claimed and len(members) % 0x10000 != claimed:
        raise invalid("the table of contents does not hold as many entries as it claims")
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
        raise invalid("this is no zip or tar archive, or its end is missing")
    _, disk, directory_disk, _, claimed, size, offset, _ = _END.unpack_from(tail, at)
    if disk or directory_disk:
        raise invalid("one part of a split archive is not enough")
    end = tail_start + at
    locator_at = end - _END64_LOCATOR.size
    file.seek(max(0, locator_at))
    if file.read(4) == b"PK\x06\x07":
        # The record stands right before its locator, whose offset is off where something precedes the archive.
        end = max(0, locator_at - _END64.size)
        file.seek(end)
        record = file.read(_END64.size)
        if len(record) != _END64.size or record[:4] != b"PK\x06\x06":
            raise invalid("the zip64 end of the archive is missing")
        claimed, size, offset = _END64.unpack(record)[7:]
    start = end - size
    if start < 0 or offset > start:
        raise invalid("the table of contents lies outside the file")
    return start, end, start - offset, claimed


def _member(file: BinaryIO, left: int, shift: int) -> _Member:
    header = file.read(_CENTRAL.size)
    if len(header) != _CENTRAL.size or header[:4] != b"PK\x01\x02":
        raise invalid("the table of contents is damaged")
    fields = _CENTRAL.unpack(header)
    flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields[3:13]
    mode, offset = fields[15] >> 16, fields[16]
    if _CENTRAL.size + name_length + extra_length + comment_length > left:
        raise invalid("the table of contents is damaged")
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


def _refuse_faults(members: list[_Member], limits: ArchiveLimits) -> None:
    rejected = Tally()
    names = Names()
    for member in members:
        name = member.name
        fault = (
            name_fault(name, limits)
            or _type_fault(member)
            or nested_fault(name)
            or _packing_fault(member, name)
            or names.conflict(name)
        )
        if fault is not None:
            rejected.add(entry=printable(name), code=fault[0], detail=fault[1])
    if rejected.total:
        raise refused(rejected)


def _type_fault(member: _Member) -> Fault | None:
    if stat.S_IFMT(member.mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "entry_type_forbidden", "links and devices are not accepted"
    return None


def _packing_fault(member: _Member, name: str) -> Fault | None:
    if name.endswith("/") or is_system_file(name):
        return None
    if member.flags & 1:
        return "archive_encrypted", "the entry is encrypted"
    if member.method not in {_STORED, _DEFLATED}:
        return "archive_unsupported_compression", f"method {member.method}: only stored and deflate are read"
    return None


def _refuse_overlaps(members: list[_Member]) -> None:
    rejected = Tally()
    for member in members:
        end = member.offset + _LOCAL.size + len(member.raw_name) + member.packed_bytes
        if end > member.end_bytes:
            detail = "the entry lies over the next one or beyond the data"
            rejected.add(entry=printable(member.name), code="archive_bomb", detail=detail)
    if rejected.total:
        raise refused(rejected)


def _pieces(file: BinaryIO, member: _Member, meter: Meter) -> Iterator[bytes]:
    name = member.name
    _seek_data(file, member, name)
    out_bytes = checksum = 0
    for chunk in _unpacked(file, member, name):
        out_bytes += len(chunk)
        meter.count(len(chunk), out_bytes, member.packed_bytes, name)
        if out_bytes > member.size_bytes:
            raise refusal(name, "archive_corrupt", "more data comes out than the archive claims")
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    if out_bytes != member.size_bytes or checksum != member.crc:
        raise refusal(name, "archive_corrupt", "size or checksum differ from what the archive claims")


def _seek_data(file: BinaryIO, member: _Member, name: str) -> None:
    file.seek(member.offset)
    header = file.read(_LOCAL.size)
    if len(header) != _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise refusal(name, "archive_corrupt", "the entry's own header is missing")
    _, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(header)
    if (method, flags & 1, file.read(name_length)) != (member.method, member.flags & 1, member.raw_name):
        raise refusal(name, "archive_corrupt", "the entry's own header differs from the table of contents")
    if file.seek(extra_length, 1) + member.packed_bytes > member.end_bytes:
        raise refusal(name, "archive_bomb", "the entry lies over the next one or beyond the data")


def _unpacked(file: BinaryIO, member: _Member, name: str) -> Iterator[bytes]:
    """The entry's data in pieces of at most CHUNK_BYTES."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = member.packed_bytes
    while left:
        packed = file.read(min(left, CHUNK_BYTES))
        if not packed:
            raise refusal(name, "archive_corrupt", "the data ends too early")
        left -= len(packed)
        if member.method == _STORED:
            yield packed
            continue
        try:
            while packed and not inflater.eof:
                yield inflater.decompress(packed, CHUNK_BYTES)
                packed = inflater.unconsumed_tail
        except zlib.error as error:
            raise refusal(name, "archive_corrupt", "the compressed data is damaged") from error
        if inflater.eof:
            break
    if member.method == _DEFLATED:
        yield inflater.flush()  # at most a few hundred bytes: all input is in
        if left or inflater.unused_data or not inflater.eof:
            raise refusal(name, "archive_corrupt", "the compressed data does not end where the archive claims")
