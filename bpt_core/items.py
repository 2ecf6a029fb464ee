"""The index of a packed dataset: one row per item, without the pictures, and where their bytes lie.

Rows are in the order of the shards. Labels are names here, so that an index is read by itself. Beside it lies one
file of thumbnails, JPEG after JPEG, from which a row's is cut; pictures that are that small have none of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bpt_core.errors import DatasetError
from bpt_core.pictures import Facts, Split

FORMAT = b"1"
_ROWS_AT_A_TIME = 4_096
_NAMES: pa.DataType = pa.list_(pa.string())
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("id", pa.string()),
    ("path", pa.string()),
    ("digest", pa.binary(32)),
    ("format", pa.string()),
    ("labels", _NAMES),
    ("split", pa.string()),
    ("group", pa.string()),
    ("stored_width", pa.int32()),
    ("stored_height", pa.int32()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("brightness", pa.float64()),
    ("contrast", pa.float64()),
    ("sharpness", pa.float64()),
    ("entropy", pa.float64()),
    ("hash", pa.uint64()),
    ("findings", _NAMES),
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("thumbnail_offset", pa.int64()),
    ("thumbnail_length", pa.int32()),
]
_SCHEMA = pa.schema(_COLUMNS, metadata={b"bpt_items": FORMAT})


@dataclass(frozen=True)
class IndexedItem:
    """One row. `size` is that of the stored picture, `facts` has the original's; `findings` are codes."""

    id: str
    path: str
    digest: str
    format: str
    labels: tuple[str, ...]
    split: Split
    group: str | None
    size: tuple[int, int]
    facts: Facts
    findings: tuple[str, ...]
    shard: int  # number of the shard, from 0
    row: int  # in the shard
    thumbnail_offset: int
    thumbnail_length: int


def write_items(path: Path, items: Iterable[IndexedItem]) -> None:
    """A few thousand rows are held at a time."""
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for item in items:
            rows.append(_to_row(item))
            if len(rows) == _ROWS_AT_A_TIME:
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


class Items:
    """A whole index in memory, some 200 bytes a row. Not changed once read, so any number of threads may use it."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def read(cls, source: Path | BinaryIO) -> Items:
        """DatasetError where it is no index."""
        try:
            table = pq.read_table(source)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DatasetError("the index of items cannot be read") from error
        if (table.schema.metadata or {}).get(b"bpt_items") != FORMAT:
            raise DatasetError("this is no index of items, or one of another format")
        return cls(table)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def nbytes(self) -> int:
        return int(self._table.nbytes)

    def __iter__(self) -> Iterator[IndexedItem]:
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_A_TIME):
            yield from map(_of_row, batch.to_pylist())

    def ids(self, split: Split) -> list[str]:
        """In the order in which PackedDataset.items(split) gives the items."""
        import pyarrow.compute as pc  # an eighth of a second that whoever only writes an index need not wait

        mine = pc.equal(self._table["split"], pa.scalar(split.value))
        return [str(each) for each in self._table["id"].filter(mine).to_pylist()]

    def get(self, item_id: str) -> IndexedItem | None:
        at = self._position(item_id)
        return None if at is None else _of_row(self._table.slice(at, 1).to_pylist()[0])

    def page(
        self,
        limit: int,
        *,
        after: str | None = None,
        split: Split | None = None,
        label: str | None = None,
        finding: str | None = None,
    ) -> tuple[list[IndexedItem], bool]:
        """The first `limit` items behind the item `after` that fit -> items, and whether there are more.

        DatasetError `item_unknown` where `after` is no item of this index.
        """
        start = 0
        if after is not None:
            at = self._position(after)
            if at is None:
                raise DatasetError(f"there is no item {after!r} in this version", code="item_unknown")
            start = at + 1
        import pyarrow.compute as pc

        table = self._table.slice(start)
        if split is not None:
            table = table.filter(pc.equal(table["split"], pa.scalar(split.value)))
        for column, wanted in (("labels", label), ("findings", finding)):
            if wanted is not None:
                table = _holding(table, column, wanted)
        return [_of_row(row) for row in table.slice(0, limit).to_pylist()], table.num_rows > limit

    def _position(self, item_id: str) -> int | None:
        return self._positions.get(item_id)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {str(item): at for at, item in enumerate(self._table["id"].to_pylist())}


def _holding(table: pa.Table, column: str, wanted: str) -> pa.Table:
    """The rows whose list in `column` has `wanted`."""
    import pyarrow.compute as pc

    lists: Any = table[column].combine_chunks()
    rows = pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), pa.scalar(wanted)))
    return table.take(pc.unique(rows))


def _to_row(item: IndexedItem) -> dict[str, Any]:
    return {
        "id": item.id,
        "path": item.path,
        "digest": bytes.fromhex(item.digest),
        "format": item.format,
        "labels": item.labels,
        "split": item.split.value,
        "group": item.group,
        "stored_width": item.size[0],
        "stored_height": item.size[1],
        **item.facts._asdict(),
        "findings": item.findings,
        "shard": item.shard,
        "row": item.row,
        "thumbnail_offset": item.thumbnail_offset,
        "thumbnail_length": item.thumbnail_length,
    }


def _of_row(row: dict[str, Any]) -> IndexedItem:
    return IndexedItem(
        id=row["id"],
        path=row["path"],
        digest=row["digest"].hex(),
        format=row["format"],
        labels=tuple(row["labels"]),
        split=Split(row["split"]),
        group=row["group"],
        size=(row["stored_width"], row["stored_height"]),
        facts=Facts(**{name: row[name] for name in Facts._fields}),
        findings=tuple(row["findings"]),
        shard=row["shard"],
        row=row["row"],
        thumbnail_offset=row["thumbnail_offset"],
        thumbnail_length=row["thumbnail_length"],
    )
