"""Tables beside the images: which file shows what, belongs to which split and to which group.

read:   bytes of a CSV or JSON-lines table -> rows of (file reference, Annotation); all bad lines are named
match:  file references -> paths of images; what several rows and tables say about one image is united

A table is untrusted: its rows are read one by one, and what is kept of them is bounded.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from bpt_core.archive import Tally, printable
from bpt_core.cells import SPLIT_NAMES as SPLIT_NAMES
from bpt_core.cells import UNSAFE, labels_of, split_of, text_of
from bpt_core.errors import DatasetError
from bpt_core.pictures import Annotation
from bpt_core.references import Places

TABLE_BYTES = 64 << 20  # one table
TABLES_BYTES = 256 << 20  # all of them
ROW_BYTES = 1 << 20
ROWS = 1_000_000  # of all tables
LINES = 2 * ROWS  # of one table
CLASSES = 100_000
REFERENCE_CHARACTERS = 4_096

_TABLES = {"metadata.csv", "metadata.jsonl", "labels.csv", "labels.jsonl"}
_USUAL = {
    "file": ("file_name", "filename", "file", "path", "image", "image_path", "image_name", "img"),
    "label": ("label", "labels", "class", "class_name", "category", "categories", "target", "tags"),
    "split": ("split", "subset"),
    "group": ("group", "group_id"),
}

Cells = Mapping[str, object]  # role -> cell
Row = tuple[int, Callable[[], Cells]]  # line, and what to call for the cells


@dataclass(frozen=True)
class Columns:
    """Names of columns as their owner gives them, in any case; empty: the first of the usual ones that is there."""

    file: str = ""
    label: str = ""
    split: str = ""
    group: str = ""

    def given(self) -> dict[str, str]:
        """Role (file, label, split, group) -> name."""
        names = {"file": self.file, "label": self.label, "split": self.split, "group": self.group}
        return {role: name for role, name in names.items() if name.strip()}

    def choose(self, names: Collection[str]) -> dict[str, str]:
        """Role -> which of `names` has it. Raises ValueError if two have."""
        same: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            same[name.strip().casefold()].append(name)
        chosen = {}
        for role, usual in _USUAL.items():
            given = self.given().get(role)
            wanted = usual if given is None else (given.strip().casefold(),)
            folded = next((each for each in wanted if each in same), None)
            if folded is not None:
                if len(same[folded]) > 1:
                    raise ValueError(f"the column {folded} is there twice")
                chosen[role] = same[folded][0]
        return chosen


def is_table(name: str) -> bool:
    """Whether an entry of this name is read as a table: metadata or labels, .csv or .jsonl, in any folder."""
    return name.rsplit("/", 1)[-1].casefold() in _TABLES


def annotations_invalid(faults: Tally) -> DatasetError:
    """`faults` has items {"entry", "code", "detail"} and is not empty."""
    first = faults.items[0]
    others = f", and {faults.total - 1:,} more at fault" if faults.total > 1 else ""
    detail = f"{first['entry']}: {first['detail']}{others}"
    return DatasetError(detail, code="annotations_invalid", report={"rejected": faults.report()})


def add_fault(faults: Tally, entry: str, detail: str) -> None:
    faults.add(entry=printable(entry), code="annotations_invalid", detail=printable(detail))


class Annotations:
    """All tables of one upload.

    `several`: images may have several labels, and text is split at "|", ";" and ",". `has_labels`: some row had a
    label column. `several_seen`: some image has several labels, or a list that is empty. `missing`, after `match`:
    rows whose image is not there, {"entry": reference, "table", "reason"}.
    """

    def __init__(self, columns: Columns | None = None, several: bool = False) -> None:
        self.missing = Tally()
        self.has_labels = False
        self.several_seen = False
        self._columns = columns or Columns()
        self._several = several
        self._tables: list[_Table] = []
        self._roles: set[str] = set()
        self._bytes = self._rows = 0
        self._classes: set[str] = set()
        self._known: dict[Annotation, Annotation] = {}  # most rows say one of a few things

    def read(self, name: str, data: bytes) -> None:
        """Takes the table `name`, a path in the upload. Raises DatasetError annotations_invalid, with all bad lines."""
        faults, table, lines = Tally(), _Table(name), _Lines(data)
        self._bytes += len(data)
        if len(data) > TABLE_BYTES or self._bytes > TABLES_BYTES:
            add_fault(faults, name, f"over {TABLE_BYTES:,} bytes, or all tables together over {TABLES_BYTES:,}")
            raise annotations_invalid(faults)
        rows = _csv_rows(lines, self._columns) if name.casefold().endswith(".csv") else _json_rows(lines, self._columns)
        try:
            for line, cells in rows:
                self._bound()
                try:
                    self._take(table, cells())
                except ValueError as error:
                    add_fault(faults, name, f"line {line:,}: {error}")
        except _UnreadableError as error:
            add_fault(faults, name, f"line {lines.number:,}: {error}")
        if faults.total:
            raise annotations_invalid(faults)
        table.settle_empty_cells(several=self._several)
        self._tables.append(table)

    def match(self, paths: Collection[str]) -> dict[str, Annotation]:
        """What is said about the images at `paths`, those alone that a table names; labels are sorted.

        Raises DatasetError annotations_invalid where an image is said to be in two splits or groups, and where no
        table has a column that was asked for.
        """
        self._refuse_absent_columns()
        self.missing = Tally()
        said: defaultdict[str, list[Annotation]] = defaultdict(list)
        places = Places(paths)
        for table in sorted(self._tables, key=lambda table: table.name):
            found = places.find({reference for reference, _ in table.rows}, table.folder)
            for reference, annotation in table.rows:
                path = found.get(reference)
                if path is not None:
                    said[path].append(annotation)
                    continue
                reason = "several images could be meant" if reference in found else "no such image"
                self.missing.add(entry=printable(reference), table=printable(table.name), reason=reason)
        return self._united(said)

    def _take(self, table: _Table, cells: Cells) -> None:
        self._roles |= cells.keys()
        reference = _reference(cells)
        labels, is_list = labels_of(cells.get("label"), several=self._several)
        self.has_labels |= "label" in cells
        self.several_seen |= labels is not None and len(labels) != 1
        table.holds_lists |= is_list
        label = cells.get("label")
        if isinstance(label, str) and not label.strip():
            table.empty_cells.append(len(table.rows))
        annotation = Annotation(labels, split_of(cells.get("split")), text_of(cells.get("group")) or None)
        self._classes.update(labels or ())
        table.rows.append((reference, self._known.setdefault(annotation, annotation)))

    def _bound(self) -> None:
        self._rows += 1
        if self._rows > ROWS:
            raise _UnreadableError(f"there are over {ROWS:,} rows")
        if len(self._classes) > CLASSES:
            raise _UnreadableError(f"there are over {CLASSES:,} different labels")

    def _refuse_absent_columns(self) -> None:
        faults = Tally()
        for role, name in self._columns.given().items():
            if self._tables and role not in self._roles:
                add_fault(faults, self._tables[0].name, f"no table has a column {name}")
        if faults.total:
            raise annotations_invalid(faults)

    def _united(self, said: Mapping[str, Sequence[Annotation]]) -> dict[str, Annotation]:
        faults = Tally()
        united = {}
        for path, notes in said.items():
            spoken = [note.labels for note in notes if note.labels is not None]
            labels = tuple(sorted(set().union(*spoken))) if spoken else None
            splits = sorted({note.split for note in notes if note.split is not None})
            groups = sorted({note.group for note in notes if note.group is not None})
            for kind, several in (("splits", splits), ("groups", groups)):
                if len(several) > 1:
                    add_fault(faults, path, f"it is said to be in two {kind}, {several[0]} and {several[1]}")
            self.several_seen |= labels is not None and len(labels) != 1
            united[path] = Annotation(labels, next(iter(splits), None), next(iter(groups), None))
        if faults.total:
            raise annotations_invalid(faults)
        return united


@dataclass
class _Table:
    name: str
    rows: list[tuple[str, Annotation]] = field(default_factory=list)  # file reference, what is said
    empty_cells: list[int] = field(default_factory=list)  # rows whose label is empty
    holds_lists: bool = False

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    def settle_empty_cells(self, *, several: bool) -> None:
        """Among lists, an empty cell says that no class applies; among single labels it says nothing."""
        if self.holds_lists or several:
            for index in self.empty_cells:
                reference, annotation = self.rows[index]
                self.rows[index] = reference, replace(annotation, labels=())


class _UnreadableError(ValueError):
    """What follows in the table cannot be read either."""


class _Lines:
    """The lines of a table as text; `begin_row` before each row, which may have several."""

    def __init__(self, data: bytes) -> None:
        self.number = 0  # of the line given last, from 1
        self._file = io.BytesIO(data)
        self._row_bytes = 0

    def begin_row(self) -> None:
        self._row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number > LINES:
            raise _UnreadableError(f"there are over {LINES:,} lines")
        self._row_bytes += len(line)
        if self._row_bytes > ROW_BYTES:
            raise _UnreadableError(f"a row is over {ROW_BYTES:,} bytes long")
        if b"\0" in line:
            raise _UnreadableError("a byte is 0: this is no text, or not in UTF-8")
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _UnreadableError("the text is not in UTF-8") from error


def _csv_rows(lines: _Lines, columns: Columns) -> Iterator[Row]:
    first = next((line for line in lines if line.strip()), "")
    try:
        # The one that makes most columns of the first line.
        delimiter = max(",;\t", key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
        header = next(csv.reader([first], delimiter=delimiter, strict=True), [])
        roles = columns.choose(header)
    except (csv.Error, ValueError) as error:
        raise _UnreadableError(str(error)) from error
    if "file" not in roles:
        raise _UnreadableError("no column names the file")
    places = {role: header.index(name) for role, name in roles.items()}
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        lines.begin_row()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _UnreadableError(str(error)) from error
        if row is None:
            return
        if row:
            yield line, partial(_csv_cells, row, len(header), places)


def _csv_cells(row: list[str], count: int, places: Mapping[str, int]) -> Cells:
    if len(row) != count:
        raise ValueError(f"{len(row):,} cells where the first line has {count:,}")
    return {role: row[place] for role, place in places.items()}


def _json_rows(lines: _Lines, columns: Columns) -> Iterator[Row]:
    for line in lines:
        if line.strip():
            yield lines.number, partial(_json_cells, line, columns)
        lines.begin_row()


def _json_cells(line: str, columns: Columns) -> Cells:
    try:
        row: Any = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError("this is no JSON, or too deep") from error
    if not isinstance(row, dict):
        raise ValueError("this is no JSON object")
    return {role: row[name] for role, name in columns.choose(row.keys()).items()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _reference(cells: Cells) -> str:
    value = cells.get("file")
    reference = str(value).strip() if isinstance(value, str | int) else ""
    if not reference:
        raise ValueError("no file is named")
    if len(reference) > REFERENCE_CHARACTERS or UNSAFE.search(reference):
        raise ValueError("the file's name is too long, or holds control or direction characters")
    return reference
