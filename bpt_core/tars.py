"""Untrusted tar archives, plain or packed by gzip or zstd, read once from front to back.

Read are regular files and folders of the old, ustar, GNU and pax formats, nothing else. What a tar does not say
twice cannot be checked: a flipped bit in the content of a file goes unseen unless gzip or zstd has a checksum.

A tar ends with zero blocks. One that lacks them is taken if it stops right behind a whole member, as some writers
leave them out; a single zero block will do as well. Behind the first zero block there must be nothing but zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa

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
from bpt_core.errors import ArchiveError

Codec = Literal["gzip", "zstd"]
GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_EXTENSION_BYTES = 1 << 20  # of a pax header or a long name: they are held in memory
_READ_AHEAD_BYTES = 64 << 10  # packed bytes that the decompressor may have taken and not yet given back
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ")

_FILES = {b"0", b"\0", b"7"}
_FOLDER = b"5"
_WITHOUT_DATA = {b"1", b"2", b"3", b"4", b"5", b"6"}  # whatever their size says
_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL = b"L", b"K", b"x", b"g"
_EXTENSIONS = {_LONG_NAME, _LONG_LINK, _PAX, _PAX_FOR_ALL}
_ANNOUNCING = _EXTENSIONS - {_PAX_FOR_ALL}  # at most one of each before an entry


class _Header(NamedTuple):
    """What a block of its own says."""

    raw_name: bytes
    type: bytes
    size: int | None  # None: no number


class _Said(NamedTuple):
    """What extension headers say about the entry behind them; None: nothing."""

    raw_name: bytes | None = None
    size: int | None = None
    forbidden: str | None = None  # why


class _Member(NamedTuple):
    name: str
    is_folder: bool
    data_bytes: int  # that follow, without padding
    fault: Fault | None


def entries(path: Path, limits: ArchiveLimits, codec: Codec | None = None) -> Iterator[Entry]:
    """See archive.entries; `codec` is gzip or zstd.

    Where a stream is damaged or breaks off, archive_corrupt is raised at once, here or by Entry.read, and nothing
    follows.
    """
    with _Tape(path, limits, codec) as tape:
        rejected = Tally()
        names = Names()
        try:
            for member in _Members(tape, limits):
                name, fault = member.name, member.fault or names.conflict(member.name)
                data = _Data(tape, member)
                if fault is not None:
                    rejected.add(entry=printable(name), code=fault[0], detail=fault[1])
                elif not member.is_folder:
                    yield Entry(
                        name=clean(name),
                        size_bytes=member.data_bytes,
                        is_system_file=is_system_file(name),
                        end_bytes=tape.position(member.data_bytes),
                        pieces=data.pieces,
                        read_limit_bytes=limits.entry_bytes,
                    )
                if tape.is_broken:
                    break  # what read the entry knows
                data.finish()
        except ArchiveError as error:
            rejected.merge(error.report["rejected"])
            raise refused(rejected) if rejected.total else error from error.__cause__
        if rejected.total:
            raise refused(rejected)


def is_block_of_tar(block: bytes) -> bool:
    """Whether what starts with these 512 bytes is to be read as a tar; a damaged or an empty one is."""
    return len(block) == _BLOCK and (block == _ZEROS or block[257:262] == b"ustar" or _sums_up(block))


class _Tape:
    """The bytes of a tar, unpacked and counted by the meter. A context manager."""

    def __init__(self, path: Path, limits: ArchiveLimits, codec: Codec | None) -> None:
        self.is_broken = False  # nothing more can be had
        self.is_plain = codec is None
        self._stack = ExitStack()
        self._file_bytes = path.stat().st_size
        self._meter = Meter(limits, self._file_bytes)
        self._file: BinaryIO | pa.NativeFile
        self._unpacked: BinaryIO | pa.NativeFile
        if codec is None:
            self._file = self._unpacked = self._stack.enter_context(path.open("rb"))
        else:
            # It reads several streams in a row, compares their checksums, takes no garbage behind them, and
            # refuses zstd frames that want a window over 128 MiB before it makes room for that.
            self._file = self._stack.enter_context(pa.OSFile(str(path), "rb"))
            self._unpacked = self._stack.enter_context(pa.CompressedInputStream(self._file, codec))

    def __enter__(self) -> _Tape:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def position(self, ahead: int = 0) -> int:
        """Bytes of the uploaded file that are done, `ahead` bytes of content from here where that can be known."""
        done = self._file.tell()
        return min(done + ahead, self._file_bytes) if self.is_plain else done

    def read(self, count: int, name: str = "", entry_out: int = 0, entry_start: int | None = None) -> bytes:
        """The next `count` bytes, fewer only where the tar ends.

        Of the entry `name`, which started at the position `entry_start`, `entry_out` bytes came out before these.
        """
        data = b""
        try:
            while len(data) < count and (fresh := self._unpacked.read(count - len(data))):
                data = data + fresh if data else fresh
            taken = self._file_bytes if entry_start is None else self.position() - entry_start + _READ_AHEAD_BYTES
            self._meter.count(len(data), entry_out + len(data), taken, name)
        except (OSError, pa.ArrowException) as error:
            raise self.broken("the compressed data is damaged or ends too early", name) from error
        except ArchiveError:
            self.is_broken = True
            raise
        return data

    def skip(self, count: int, name: str) -> None:
        """Goes over `count` bytes."""
        if self.is_plain:
            if self._file.tell() + count > self._file_bytes:
                raise self.broken("the data ends too early", name)
            self._file.seek(count, 1)
            return
        for _ in self.pieces(count, name):
            pass

    def pieces(self, count: int, name: str) -> Iterator[bytes]:
        """The next `count` bytes of one entry in pieces of at most CHUNK_BYTES."""
        start, done = self.position(), 0
        while done < count:
            piece = self.read(min(count - done, CHUNK_BYTES), name, done, start)
            if not piece:
                raise self.broken("the data ends too early", name)
            done += len(piece)
            yield piece

    def broken(self, detail: str, name: str = "") -> ArchiveError:
        self.is_broken = True
        return refusal(name, "archive_corrupt", detail) if name else invalid(detail, "archive_corrupt")


class _Data:
    """The content of one member, behind its header."""

    def __init__(self, tape: _Tape, member: _Member) -> None:
        self._tape = tape
        self._name = member.name
        self._left = member.data_bytes
        self._padding = -member.data_bytes % _BLOCK
        self._is_taken = False

    def pieces(self) -> Iterator[bytes]:
        if self._is_taken:
            raise ValueError("an entry of a tar is read once, before the next one is drawn")
        self._is_taken = True
        for piece in self._tape.pieces(self._left, self._name):
            self._left -= len(piece)
            yield piece

    def finish(self) -> None:
        """Goes to the next header."""
        self._is_taken = True
        self._tape.skip(self._left + self._padding, self._name)


class _Members:
    """The members in order, each with name and size as the extension headers before it have them."""

    def __init__(self, tape: _Tape, limits: ArchiveLimits) -> None:
        self._tape = tape
        self._limits = limits
        self._is_first = True
        self._count = 0
        self._for_all = _Said()

    def __iter__(self) -> Iterator[_Member]:
        said, types = self._for_all, set[bytes]()
        while (block := self._next_block()) is not None:
            header = _header(block)
            if header.type in types:
                raise self._tape.broken("two headers of one kind announce the same entry")
            if header.type not in _EXTENSIONS:
                yield self._member(header, said)
                said, types = self._for_all, set()
                continue
            extension = self._extension(header)
            said = _united(said, extension)
            if header.type == _PAX_FOR_ALL:
                self._for_all = _united(self._for_all, extension)
            else:
                types.add(header.type)
        if types:
            raise self._tape.broken("a header announces an entry that does not come")

    def _next_block(self) -> bytes | None:
        """A header with the right checksum; None at the end, which is read through."""
        block = self._tape.read(_BLOCK)
        if self._is_first and not is_block_of_tar(block):
            raise invalid("there is no tar archive in the compressed file")
        self._is_first = False
        if block and block != _ZEROS:
            if len(block) < _BLOCK:
                raise self._tape.broken("the archive ends in the middle of a block")
            if not _sums_up(block):
                raise self._tape.broken("a header is damaged: its checksum is wrong")
            self._count += block[156:157] not in _ANNOUNCING
            if self._count > self._limits.entries:
                detail = f"the archive has more than {self._limits.entries:,} entries"
                raise invalid(detail, "archive_too_many_entries")
            return block
        while rest := self._tape.read(CHUNK_BYTES):
            if rest.count(0) != len(rest) or len(rest) % _BLOCK:
                raise self._tape.broken("something follows the end of the archive")
        return None

    def _extension(self, header: _Header) -> _Said:
        size = header.size
        if size is None or size > _EXTENSION_BYTES:
            raise self._tape.broken(f"a header has no size or one over {_EXTENSION_BYTES:,} bytes")
        padded = b"".join(self._tape.pieces(size + -size % _BLOCK, "")) if size else b""
        data = padded[:size]
        if header.type == _LONG_LINK:
            return _Said(forbidden="links are not accepted")
        if header.type == _LONG_NAME:
            return _Said(raw_name=data.rstrip(b"\0"))
        try:
            return _pax(data)
        except ValueError as error:
            raise self._tape.broken(f"a pax header is damaged: {error}") from error

    def _member(self, header: _Header, said: _Said) -> _Member:
        name = decoded(header.raw_name if said.raw_name is None else said.raw_name)
        size = header.size if said.size is None else said.size
        if header.type in _WITHOUT_DATA:
            size = 0
        if size is None:
            raise self._tape.broken("the size is no number", name or "an entry without a name")
        is_folder = header.type == _FOLDER or (header.type in _FILES and name.endswith("/") and not size)
        if is_folder and name and not name.endswith("/"):
            name += "/"
        fault = name_fault(name, self._limits) or _type_fault(header, said) or nested_fault(name)
        if fault is None and not is_folder and name.endswith("/"):
            fault = "entry_name_invalid", "the name is that of a folder"
        return _Member(name, is_folder, size, fault)


def _type_fault(header: _Header, said: _Said) -> Fault | None:
    if said.forbidden is not None:
        return "entry_type_forbidden", said.forbidden
    if header.type not in _FILES and header.type != _FOLDER:
        return "entry_type_forbidden", "only files and folders are accepted, no links, devices or sparse files"
    return None


def _united(earlier: _Said, later: _Said) -> _Said:
    return _Said(
        earlier.raw_name if later.raw_name is None else later.raw_name,
        earlier.size if later.size is None else later.size,
        later.forbidden or earlier.forbidden,
    )


def _header(block: bytes) -> _Header:
    raw_name = block[:100].split(b"\0", 1)[0]
    # GNU tar keeps other things where ustar has the front part of the name.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _Header(prefix + b"/" + raw_name if prefix else raw_name, block[156:157], _number(block[124:136]))


def _number(field: bytes) -> int | None:
    """Octal digits, or base 256 behind a byte 0x80. Negative numbers are none."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def _sums_up(block: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes, its own field taken for spaces."""
    claimed = _number(block[148:156])
    field = sum(block[148:156]) - 8 * 0x20
    if claimed == sum(block) - field:
        return True
    # Some old programs summed signed bytes.
    signed = block[:148] + block[156:]
    return claimed == sum(signed) + 8 * 0x20 - 256 * sum(byte > 0x7F for byte in signed)


def _pax(data: bytes) -> _Said:
    """Records "<length> <key>=<value>\\n", the length that of the whole record. Raises ValueError."""
    said = _Said()
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        if match is None:
            raise ValueError("a record has no length")
        end = at + int(match[1])
        key, _, value = data[match.end() : end].partition(b"=")
        if end > len(data) or not value.endswith(b"\n"):
            raise ValueError("a record has a wrong length")
        value, at = value[:-1], end
        if key == b"path":
            said = said._replace(raw_name=value)
        elif key == b"size":
            if not value.isdigit():
                raise ValueError("a size is no number")
            said = said._replace(size=int(value))
        elif key.startswith((b"GNU.sparse.", b"SCHILY.sparse")) or key == b"SCHILY.realsize":
            said = said._replace(forbidden="sparse files are not accepted")
    return said
