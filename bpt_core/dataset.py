"""The packed dataset: Parquet shards in the Hugging Face image layout.

Columns: image struct<bytes: binary, path: string>, labels: list<int64>, split: string. The schema's metadata hold
`huggingface` (so that datasets.load_dataset("parquet", ...) sees Image and a list of ClassLabel) and `bpt`, sorted
JSON {"format", "task"}. Other Arrow types, such as large_binary or int32, lose Image and ClassLabel silently.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from bpt_core.errors import DatasetError
from bpt_core.pictures import Split as Split

FORMAT = 1
SINGLE_LABEL = "single-label"
MULTI_LABEL = "multi-label"
UNLABELLED = "unlabelled"  # no classes, no labels: images to predict, not to tune on
SHARD_BYTES = 256 << 20
ROW_GROUP_ROWS = 256
ROW_GROUP_BYTES = 32 << 20  # what reading holds in memory at a time

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = pa.schema([("image", _IMAGE), ("labels", pa.list_(pa.int64())), ("split", pa.string())])


@dataclass(frozen=True)
class Item:
    """One picture: encoded bytes, where it came from, indices into the class names."""

    image: bytes
    path: str
    labels: tuple[int, ...]
    split: Split


class ShardWriter:
    """Writes items into shard-00000.parquet, shard-00001.parquet, ... of `directory`. A context manager.

    `shards` are the files, complete once the context is left. Leaving it by an exception removes them. Equal items
    in equal order give equal bytes.
    """

    def __init__(
        self,
        directory: Path,
        class_names: Sequence[str],
        task: str = SINGLE_LABEL,
        *,
        shard_bytes: int = SHARD_BYTES,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        self.shards: list[Path] = []
        self._directory = directory
        self._class_count = len(class_names)
        self._task = task
        self._schema = _COLUMNS.with_metadata(_metadata(class_names, task))
        self._shard_bytes = shard_bytes
        self._row_group_rows = row_group_rows
        self._items: list[Item] = []
        self._items_bytes = 0
        self._written_bytes = self._written_rows = 0  # of the open shard
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._remove()
            return
        try:
            self._flush()
            self._close()
        except BaseException:
            self._remove()
            raise

    def write(self, item: Item) -> tuple[int, int]:
        """-> number of the shard and row in it, both from 0, where the item will lie.

        Raises DatasetError where the labels do not fit the class names or the task.
        """
        if any(not 0 <= label < self._class_count for label in item.labels):
            raise DatasetError(f"{item.path}: labels {item.labels} of {self._class_count} classes")
        if self._task == SINGLE_LABEL and len(item.labels) != 1:
            raise DatasetError(f"{item.path}: {len(item.labels)} labels in a single-label dataset")
        if self._task == UNLABELLED and item.labels:
            raise DatasetError(f"{item.path}: labels {item.labels} in a dataset without labels")
        is_open = self._parquet is not None
        place = len(self.shards) - is_open, is_open * self._written_rows + len(self._items)
        self._items.append(item)
        self._items_bytes += len(item.image)
        if len(self._items) >= self._row_group_rows or self._items_bytes >= ROW_GROUP_BYTES:
            self._flush()
        return place

    def _flush(self) -> None:
        """Buffered items become one row group; a first shard is there even without items."""
        if self._parquet is None and (self._items or not self.shards):
            self._open()
        if self._parquet is None or not self._items:
            return
        columns = [
            pa.array([{"bytes": item.image, "path": item.path} for item in self._items], _IMAGE),
            pa.array([item.labels for item in self._items], pa.list_(pa.int64())),
            pa.array([item.split.value for item in self._items], pa.string()),
        ]
        self._parquet.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._written_bytes += self._items_bytes
        self._written_rows += len(self._items)
        self._items, self._items_bytes = [], 0
        if self._written_bytes >= self._shard_bytes:
            self._close()

    def _open(self) -> None:
        path = self._directory / f"shard-{len(self.shards):05d}.parquet"
        self.shards.append(path)
        self._written_bytes = self._written_rows = 0
        # Pictures are compressed already; their statistics would hold whole pictures.
        self._parquet = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None

    def _remove(self) -> None:
        with suppress(Exception):  # a full disk, say: the reason is on its way already
            self._close()
        for path in self.shards:
            path.unlink(missing_ok=True)
        self.shards = []


class PackedDataset:
    """Shards of one dataset, read one row group at a time. Raises DatasetError where they are not that."""

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise DatasetError("a dataset has one shard at least")
        self._paths = tuple(paths)
        heads = [_head(path) for path in self._paths]
        for path, head in zip(self._paths, heads, strict=True):
            if (head.class_names, head.task) != (heads[0].class_names, heads[0].task):
                raise DatasetError(f"{path.name} and {self._paths[0].name} belong to different datasets")
        self.class_names = heads[0].class_names
        self.task = heads[0].task
        self._length = sum(head.rows for head in heads)

    def __len__(self) -> int:
        return self._length

    def counts(self) -> dict[Split, list[int]]:
        """Per split, the number of items of each class; every split is there, empty ones with zeros."""
        return {split: list(counts) for split, counts in self._counts.items()}

    @cached_property
    def _counts(self) -> dict[Split, list[int]]:
        counts = {split: [0] * len(self.class_names) for split in Split}
        for parquet, group in self._row_groups():
            rows: list[dict[str, Any]]
            rows = parquet.read_row_group(group, columns=["labels", "split"]).to_pylist()
            for row in rows:
                for label in row["labels"]:
                    counts[Split(row["split"])][label] += 1
        return counts

    def images(self, split: Split | None = None) -> int:
        """How many items `items(split)` gives."""
        return self._length if split is None else self._splits[split]

    @cached_property
    def _splits(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for parquet, group in self._row_groups():
            counts.update(_splits(parquet, group))
        return counts

    def items(self, split: Split | None = None, *, skip: int = 0) -> Iterator[Item]:
        """Items in the order they were written, those of one split if it is given, without the first `skip`.

        Row groups that hold nothing wanted are not read.
        """
        for parquet, group in self._row_groups():
            splits = _splits(parquet, group)
            wanted = len(splits) if split is None else splits.count(split)
            if skip >= wanted:
                skip -= wanted
                continue
            table = parquet.read_row_group(group, columns=["image", "labels"])
            yield from islice(_items(table, splits, split), skip, None)
            skip = 0

    def _row_groups(self) -> Iterator[tuple[pq.ParquetFile, int]]:
        for path in self._paths:
            with pq.ParquetFile(path) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet, group


def read_image(shard: Path | BinaryIO, row: int) -> bytes:
    """The encoded picture of one row; of the shard no more is read than its row group. DatasetError."""
    try:
        with pq.ParquetFile(shard) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if row < rows:
                    column = parquet.read_row_group(group, columns=["image"])["image"]
                    return bytes(column[row].as_py()["bytes"])
                row -= rows
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError("the shard cannot be read") from error
    raise DatasetError("the shard has no such row")


@dataclass(frozen=True)
class _Head:
    class_names: tuple[str, ...]
    task: str
    rows: int


def _metadata(class_names: Sequence[str], task: str) -> dict[str, str]:
    # "Sequence" is understood by all versions of `datasets`, "List" by those from 4 on.
    labels = {"feature": {"names": list(class_names), "_type": "ClassLabel"}, "_type": "Sequence"}
    features = {"image": {"_type": "Image"}, "labels": labels, "split": {"dtype": "string", "_type": "Value"}}
    return {
        "bpt": json.dumps({"format": FORMAT, "task": task}, sort_keys=True),
        "huggingface": json.dumps({"info": {"features": features}}, sort_keys=True),
    }


def _head(path: Path) -> _Head:
    try:
        with pq.ParquetFile(path) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        metadata = schema.metadata or {}
        ours = json.loads(metadata[b"bpt"])
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        class_names = tuple(str(name) for name in features["labels"]["feature"]["names"])
        task = str(ours["task"])
        known = ours["format"] == FORMAT and schema.equals(_COLUMNS, check_metadata=False)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path.name} is no shard of a packed dataset") from error
    if not known:
        raise DatasetError(f"{path.name} is no shard of a packed dataset of format {FORMAT}")
    return _Head(class_names, task, rows)


def _splits(parquet: pq.ParquetFile, group: int) -> list[Any]:
    splits: list[Any] = parquet.read_row_group(group, columns=["split"])["split"].to_pylist()
    return splits


def _items(table: pa.Table, splits: list[Any], wanted: Split | None) -> Iterator[Item]:
    for image, labels, split in zip(table["image"], table["labels"], splits, strict=True):
        if wanted is None or split == wanted:
            picture = image.as_py()
            yield Item(picture["bytes"], picture["path"], tuple(labels.as_py()), Split(split))
