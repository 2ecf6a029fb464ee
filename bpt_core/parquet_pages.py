"""Footer and pages of an untrusted Parquet file, looked at before Arrow gets to see them.

Arrow believes what the header of a page says about its size and its number of values; some bytes can claim
gigabytes of either. And some fields of a footer, wrong, make pyarrow end the process when a column is asked about.
So both are read here, by parquet.thrift, without the pages themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

from bpt_core.archive import ArchiveLimits, invalid
from bpt_core.errors import ArchiveError
from bpt_core.thrift import Thrift

FOOTER_BYTES = 8 << 20
_PAGE_BYTES = 1 << 30  # writers put up to a thousand images into one page
_CHUNK_VALUES = 1 << 22  # of one column in one row group
_BATCH_BYTES = 4 << 20
_BATCH_SHARED_BYTES = 128 << 20  # if every row of a batch took all that several rows may share
_BATCH_ROWS = 64
_FIRST_READ_BYTES = 1 << 10
_HEADER_BYTES = 1 << 20

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
_DATA, _INDEX, _DICTIONARY, _DATA_V2 = range(4)
_DELTA_BYTE_ARRAY = 7  # an encoding: each value says what it has in common with the one before


class Column(NamedTuple):
    """One column of one row group."""

    path: str  # components joined by "."
    values: int
    start: int
    end: int


class RowGroup(NamedTuple):
    rows: int
    columns: list[Column]


class Page(NamedTuple):
    type: int
    packed_bytes: int
    size_bytes: int
    values: int
    encoding: int


class Pages(NamedTuple):
    """What reading takes; bytes are those of the unpacked pages."""

    size_bytes: int
    shared_bytes: int  # of the largest page from which many rows may take the same bytes

    def batch_rows(self, rows: int) -> int:
        """How many of `rows` rows may be read at a time."""
        by_size = _BATCH_BYTES * rows // max(1, self.size_bytes)
        by_shared = _BATCH_SHARED_BYTES // max(1, self.shared_bytes)
        return max(1, min(by_size, by_shared, _BATCH_ROWS))


def row_groups(file: BinaryIO) -> list[RowGroup]:
    """Raises ArchiveError: archive_invalid (no Parquet), archive_encrypted, archive_corrupt."""
    file_bytes = file.seek(0, 2)
    file.seek(0)
    start = file.read(4)
    file.seek(max(0, file_bytes - 8))
    end = file.read(8)
    if _ENCRYPTED_MAGIC in {start, end[4:]}:
        raise _encrypted()
    if start != _MAGIC:
        raise invalid("this is no Parquet file")
    footer_bytes = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or footer_bytes > min(file_bytes - 12, FOOTER_BYTES):
        raise damaged("its end is missing")
    file.seek(file_bytes - 8 - footer_bytes)
    try:
        footer = Thrift(file.read(footer_bytes)).struct()
        if 8 in footer:  # encryption algorithm
            raise _encrypted()
        return [RowGroup(_whole(group[3]), [_column(chunk) for chunk in group[1]]) for group in footer[4]]
    except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise damaged("its table of contents cannot be read") from error


def _column(chunk: dict[int, Any]) -> Column:
    facts = chunk[3]
    path = b".".join(facts[3]).decode()
    start, dictionary = _whole(facts[9]), facts.get(11)
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return Column(path, _whole(facts[5]), start, start + _whole(facts[7]))


def examine(file: BinaryIO, group: RowGroup, columns: Collection[str], limits: ArchiveLimits) -> Pages:
    """The pages of the top-level `columns`. Raises ArchiveError: archive_corrupt, archive_bomb."""
    size_bytes = shared_bytes = 0
    for column in group.columns:
        # As Arrow chooses them: names may have dots.
        if not f"{column.path}.".startswith(tuple(f"{name}." for name in columns)):
            continue
        for page in _pages(file, column):
            size_bytes += page.size_bytes
            if page.type == _DICTIONARY or page.encoding == _DELTA_BYTE_ARRAY:
                shared_bytes = max(shared_bytes, page.size_bytes)
            many = page.size_bytes > limits.ratio_free_bytes and page.size_bytes > limits.ratio * page.packed_bytes
            if page.size_bytes > _PAGE_BYTES or many:
                raise invalid("a page of the Parquet file unpacks to far too many bytes", "archive_bomb")
    return Pages(size_bytes, shared_bytes)


def _pages(file: BinaryIO, column: Column) -> Iterator[Page]:
    start, values = column.start, 0
    while values < column.values and start < column.end:
        page, header_bytes = _page(file, start)
        start += header_bytes + page.packed_bytes
        if start > column.end:
            raise damaged("a page lies beyond its column")
        values += page.values if page.type in {_DATA, _DATA_V2} else 0
        if max(page.values, values) > _CHUNK_VALUES:
            raise invalid("a column of the Parquet file has far too many values", "archive_bomb")
        yield page


def _page(file: BinaryIO, start: int) -> tuple[Page, int]:
    """-> the page whose header is at `start`, and how many bytes that header has."""
    try:
        file.seek(start)
        data = file.read(_FIRST_READ_BYTES)
        try:
            thrift = Thrift(data)
            header = thrift.struct()
        except IndexError:
            thrift = Thrift(data + file.read(_HEADER_BYTES))
            header = thrift.struct()
        kind, size, packed = (_whole(header[field]) for field in (1, 2, 3))
        details = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0), {})
        encoding = details.get({_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}.get(kind, 0), 0)
        return Page(kind, packed, size, _whole(details.get(1, 0)), _whole(encoding)), thrift.at
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise damaged("the header of a page cannot be read") from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("no natural number")
    return value


def damaged(detail: str) -> ArchiveError:
    return invalid(f"the Parquet file is damaged: {detail}", "archive_corrupt")


def _encrypted() -> ArchiveError:
    return invalid("the Parquet file is encrypted", "archive_encrypted")
