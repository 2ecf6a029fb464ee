"""Archives made by hand, any field of which may lie, and what reading them comes to."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from bpt_core.archive import ArchiveLimits, Tally, entries
from bpt_core.errors import ArchiveError

CODES = {
    *("archive_invalid", "archive_corrupt", "archive_bomb", "archive_encrypted", "archive_too_many_entries"),
    *("archive_unsupported_compression", "entry_type_forbidden", "entry_path_unsafe", "entry_name_invalid"),
    *("entry_name_too_long", "entry_name_conflict"),
}


@dataclass
class Member:
    """One entry of a handmade zip."""

    name: str | bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0
    size: int | None = None
    crc: int | None = None
    packed: bytes | None = None
    packed_size: int | None = None
    local_name: bytes | None = None
    local_extra: bytes = b""
    same_place_as: int | None = None


def handmade(
    members: Sequence[Member],
    *,
    count: int | None = None,
    directory_bytes: int | None = None,
    backwards: bool = False,
) -> bytes:
    """A zip."""
    body, directory, offsets = b"", b"", []
    for member in members:
        name = member.name.encode() if isinstance(member.name, str) else member.name
        packed = member.packed
        if packed is None:
            deflate = zlib.compressobj(wbits=-15)
            packed = deflate.compress(member.data) + deflate.flush() if member.method == 8 else member.data
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        size = len(member.data) if member.size is None else member.size
        packed_size = len(packed) if member.packed_size is None else member.packed_size
        extra = struct.pack("<2HQ", 1, 8, size) if size >= 0xFFFFFFFF else b""
        fields = (member.flags, member.method, 0, 0, crc, packed_size, min(size, 0xFFFFFFFF), len(name))
        if member.same_place_as is None:
            offsets.append(len(body))
            local = member.local_name if member.local_name is not None else name
            body += struct.pack("<4sH4H3L2H", b"PK\x03\x04", 20, *fields, len(member.local_extra))
            body += local + member.local_extra + packed
        else:
            offsets.append(offsets[member.same_place_as])
        entry = struct.pack("<4s2H4H3L", b"PK\x01\x02", 3 << 8, 20, *fields[:7])
        entry += struct.pack("<5H2L", len(name), len(extra), 0, 0, 0, member.mode << 16, offsets[-1])
        entry += name + extra
        directory = entry + directory if backwards else directory + entry
    counts = (len(members) if count is None else count,) * 2
    length = len(directory) if directory_bytes is None else directory_bytes
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *counts, length, len(body), 0)


@dataclass
class Header:
    """One header of a handmade tar and what follows it."""

    name: str | bytes
    data: bytes = b""
    type: bytes = b"0"
    size: int | bytes | None = None  # bytes: the field as it stands
    magic: bytes = b"ustar\x0000"
    prefix: bytes = b""
    checksum: int | None = None

    def blocks(self) -> bytes:
        name = self.name.encode() if isinstance(self.name, str) else self.name
        size = len(self.data) if self.size is None else self.size
        field = b"%011o\0" % size if isinstance(size, int) else size
        head = struct.pack("100s8s8s8s12s12s", name, b"0000644\0", b"0000000\0", b"0000000\0", field, b"0" * 11)
        tail = struct.pack("1s100s8s32s32s8s8s155s12x", self.type, b"", self.magic, b"", b"", b"", b"", self.prefix)
        checksum = sum(head) + 8 * 0x20 + sum(tail) if self.checksum is None else self.checksum
        return head + b"%06o\0 " % checksum + tail + self.data + bytes(-len(self.data) % 512)


END = bytes(1024)


def tar(headers: Sequence[Header], end: bytes = END) -> bytes:
    return b"".join(header.blocks() for header in headers) + end


def pax(type: bytes = b"x", /, **values: str | bytes) -> Header:  # noqa: A002
    """A pax header; underscores in keys stand for dots."""
    data = b""
    for key, value in values.items():
        raw = value.encode() if isinstance(value, str) else value
        record = b" " + key.replace("_", ".").encode() + b"=" + raw + b"\n"
        length = len(record) + 1
        while len(str(length)) + len(record) != length:
            length += 1
        data += str(length).encode() + record
    return Header("pax", data, type)


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {"tar": bytes, "tar.gz": gzip.compress, "tar.zst": zstd}


def written(path: Path, files: Mapping[str, bytes], kind: str, format: int = tarfile.PAX_FORMAT) -> Path:  # noqa: A002
    """A zip or tar of these files as Python writes it."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        path.write_bytes(buffer.getvalue())
        return path
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive_file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive_file.addfile(info, io.BytesIO(data))
    path.write_bytes(PACKERS[kind](buffer.getvalue()))
    return path


def contents(path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    return {entry.name: entry.read() for entry in entries(path, limits)}


def refusal(tmp_path: Path, data: bytes, limits: ArchiveLimits | None = None) -> tuple[str, list[tuple[str, str]]]:
    """Code of the first fault, and all that are named, reading on after a bad entry as ingest does.

    The report must fit into JSON that PostgreSQL takes.
    """
    path = tmp_path / "upload"
    path.write_bytes(data)
    errors: list[ArchiveError] = []
    rejected = Tally()
    try:
        for entry in entries(path, limits):
            try:
                entry.read()
            except ArchiveError as error:
                errors.append(error)
                rejected.merge(error.report["rejected"])
                if error.code == "archive_bomb":
                    break
    except ArchiveError as error:
        errors.append(error)
        rejected.merge(error.report["rejected"])
    assert errors, "nothing was refused"
    assert errors[0].code in CODES
    assert "\\u0000" not in json.dumps(rejected.report()).replace("\\\\", "")
    return errors[0].code, [(item["entry"], item["code"]) for item in rejected.items]
