"""Images from an untrusted Parquet file, as datasets on the Hugging Face hub and our own shards have them.

The image column is the one that the metadata `huggingface` calls an Image, else a struct of bytes and path, else
binary and named image, img or bytes. Next to it may stand labels (class indices with names in the metadata, numbers,
text, or lists of them), a split and a group. Memory holds a page of each of these columns, which is the least that
Parquet can be read by, and a few rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bpt_core.annotations import Columns, add_fault, annotations_invalid
from bpt_core.archive import ArchiveLimits, Meter, Tally, fold, invalid, name_fault
from bpt_core.cells import SPLIT_NAMES, labels_of, split_of, text_of
from bpt_core.errors import DatasetError
from bpt_core.parquet_pages import damaged, examine, row_groups
from bpt_core.pictures import Annotation, Split

_BUFFER_BYTES = 1 << 20
_IMAGE_NAMES = ("image", "img", "bytes")
_LISTS = {"Sequence", "List", "LargeList"}
_ROW_NAME = re.compile(r"row-\d")


def split_of_name(name: str) -> Split | None:
    """The split that the name of a file tells: train-00000-of-00002.parquet, food_test.parquet, validation/0.parquet.

    None where it tells none or two.
    """
    *folders, base = name.casefold().split("/")
    words = re.findall("[a-z]+", base.rpartition(".")[0])
    for candidates in (words, *([folder] for folder in reversed(folders))):
        splits = {SPLIT_NAMES[word] for word in candidates if word in SPLIT_NAMES}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def images(
    path: Path, columns: Columns | None = None, several: bool = False, limits: ArchiveLimits | None = None
) -> Iterator[tuple[str, bytes, Annotation]]:
    """Name, file content and annotation of each row; see ParquetImages."""
    return iter(ParquetImages(path, columns, several, limits))


class ParquetImages:
    """The rows of one file, in order. Iterating gives (name, bytes, Annotation).

    Names are the paths in the image column, made harmless, and row-00000017 where there is none; within the file
    they differ, for which some get their row's number in front. Bytes are empty where the file has none, as when it
    only names an image. `several_seen` is complete once all rows were drawn.

    Raises ArchiveError: archive_invalid (no Parquet), archive_encrypted, archive_corrupt, archive_bomb,
    archive_too_many_entries; DatasetError: dataset_empty (no image column), annotations_invalid.
    """

    def __init__(
        self, path: Path, columns: Columns | None = None, several: bool = False, limits: ArchiveLimits | None = None
    ) -> None:
        self.several_seen = False
        self._path = path
        self._several = several
        self._limits = limits or ArchiveLimits()
        with path.open("rb") as file:
            self._groups = row_groups(file)
        self.rows = sum(group.rows for group in self._groups)  # as the file claims, for progress
        with _reading(), _opened(path) as parquet:
            self._layout = _layout(parquet.schema_arrow, columns or Columns())
        if self.rows > self._limits.entries:
            raise invalid(f"there are more than {self._limits.entries:,} rows", "archive_too_many_entries")

    @property
    def has_labels(self) -> bool:
        return self._layout.label is not None

    def __iter__(self) -> Iterator[tuple[str, bytes, Annotation]]:
        meter = Meter(self._limits, self._path.stat().st_size)
        names = _RowNames(self._limits)
        for number, row in enumerate(self._cells()):
            data, path = _image(row[self._layout.image])
            annotation = self._annotation(number, row)
            name = names.of(number, path)
            meter.count(len(data), 0, 0, name)
            yield name, data, annotation

    def _cells(self) -> Iterator[dict[str, Any]]:
        """Column -> value, row by row."""
        wanted = sorted({name for name in self._layout.columns if name is not None})
        with _reading(), _opened(self._path) as parquet, self._path.open("rb") as file:
            for index, group in enumerate(self._groups):
                rows = examine(file, group, wanted, self._limits).batch_rows(group.rows)
                for batch in parquet.iter_batches(rows, row_groups=[index], columns=wanted, use_threads=False):
                    yield from batch.to_pylist()

    def _annotation(self, number: int, row: Mapping[str, Any]) -> Annotation:
        layout = self._layout
        try:
            labels = None if layout.label is None else self._labels(row[layout.label])
            split = None if layout.split is None else split_of(row[layout.split])
            group = None if layout.group is None else text_of(row[layout.group]) or None
        except ValueError as error:
            raise _annotations_invalid(f"row {number:,}: {error}") from error
        self.several_seen |= labels is not None and len(labels) != 1
        return Annotation(labels, split, group)

    def _labels(self, value: object) -> tuple[str, ...] | None:
        names = self._layout.class_names
        if names is None:
            if self._several and isinstance(value, str) and not value.strip():
                return ()
            return labels_of(value, several=self._several)[0]
        indices = value if isinstance(value, list) else [value]
        labels: set[str] = set()
        for index in indices:
            if index is None or index == -1:
                continue
            if not isinstance(index, int) or not 0 <= index < len(names):
                raise ValueError(f"a label is {index!r}, of {len(names):,} classes")
            labels.add(names[index])
        is_none_of_them = isinstance(value, list) and not value
        return tuple(sorted(labels)) if labels or is_none_of_them else None


class _Layout(NamedTuple):
    """Which column holds what."""

    image: str
    label: str | None
    split: str | None
    group: str | None
    class_names: tuple[str, ...] | None  # of labels that are indices

    @property
    def columns(self) -> tuple[str | None, ...]:
        return self[:4]


class _RowNames:
    """Names for rows that differ within the file."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._seen: set[bytes] = set()

    def of(self, number: int, path: str) -> str:
        parts = [part for part in path.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
        name = "/".join(parts)
        own = f"row-{number:08d}"
        if name_fault(name, self._limits) is not None or len(name) + len(own) > self._limits.name_component_bytes:
            return own
        key = blake2b(fold(name).encode(), digest_size=16).digest()
        if key in self._seen or _ROW_NAME.match(parts[-1]):
            return "/".join([*parts[:-1], f"{own}-{parts[-1]}"])
        self._seen.add(key)
        return name


@contextmanager
def _reading() -> Iterator[None]:
    """What Arrow makes of a file that is not as it should be becomes an ArchiveError."""
    try:
        yield
    except DatasetError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise damaged("its content cannot be read") from error


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _layout(schema: pa.Schema, columns: Columns) -> _Layout:
    features = _features(schema)
    image = _image_column(schema, features, columns)
    try:
        chosen = columns.choose([name for name in schema.names if name != image])
        label = chosen.get("label")
        class_names = None if label is None else _class_names(features.get(label))
    except ValueError as error:
        raise _annotations_invalid(str(error)) from error
    for role, name in columns.given().items():
        if role not in {*chosen, "file"}:
            raise _annotations_invalid(f"there is no column {name}")
    return _Layout(image, label, chosen.get("split"), chosen.get("group"), class_names)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What the Hugging Face library says about columns, by name."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(schema: pa.Schema, features: Mapping[str, Any], columns: Columns) -> str:
    fit = [field for field in schema if _holds_images(field.type)]
    marked = [field.name for field in fit if _kind(features.get(field.name)) == "Image"]
    structs = [field.name for field in fit if pa.types.is_struct(field.type)]
    named = [field.name for field in fit if field.name.casefold() in _IMAGE_NAMES]
    given = [field.name for field in fit if field.name.casefold() == columns.file.strip().casefold()]
    usual = [name for name in marked or structs if name.casefold() in _IMAGE_NAMES]
    for names in (given, usual, marked, structs, named):
        if names:
            return names[0]
    raise DatasetError(
        "the Parquet file has no column of images", code="dataset_empty", report={"rejected": Tally().report()}
    )


def _holds_images(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.StructType):
        names = [field.name for field in kind]
        return names.count("bytes") == 1 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _kind(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel or of a list of one; None if it is something else. Raises ValueError."""
    if _kind(feature) in _LISTS:
        feature = feature.get("feature")
    elif isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names = feature.get("names") if _kind(feature) == "ClassLabel" else None
    if not isinstance(names, list):
        return None
    return tuple(text_of(name) or f"class {index}" for index, name in enumerate(names))


def _image(value: object) -> tuple[bytes, str]:
    """-> content, empty where there is none, and path."""
    fields = value if isinstance(value, dict) else {"bytes": value}
    data, path = fields.get("bytes"), fields.get("path")
    return (data if isinstance(data, bytes) else b""), (path if isinstance(path, str) else "")


def _annotations_invalid(detail: str) -> DatasetError:
    faults = Tally()
    add_fault(faults, "Parquet file", detail)
    return annotations_invalid(faults)
