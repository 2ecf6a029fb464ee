"""What a customer sends -> image files one after another, with what is said about them.

An archive (zip, tar, tar.gz, tar.zst) of images, tables of labels, or Parquet files of images; or one such Parquet
file. What is no image is listed in the report, and what is wrong does not end the reading: the report names it all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, NamedTuple, cast

from bpt_core.annotations import Annotations, Columns, is_table
from bpt_core.archive import ArchiveLimits, Entry, entries, printable
from bpt_core.errors import DatasetError, ImageError
from bpt_core.parquet_images import ParquetImages, split_of_name
from bpt_core.pictures import Annotation
from bpt_core.report import Report

OnProgress = Callable[[int, int], None]
"""Called with bytes of the source done, and in all."""

_PARQUET_STARTS = (b"PAR1", b"PARE")  # the second one is encrypted
_METADATA_FILE = re.compile(
    r"(^|/)(readme|licen[cs]e|copying|notice|authors|changelog)$"
    r"|\.(txt|md|rst|json|jsonl|ndjson|csv|tsv|xml|ya?ml|toml|ini|cfg|log|html?|sha256|md5)$",
    re.IGNORECASE,
)


class Raw(NamedTuple):
    """What should be an image, and what a column next to it says."""

    path: str
    data: bytes
    note: Annotation | None


class Source:
    """One upload. `tables` has read all its tables once `images` has come to its end."""

    def __init__(
        self,
        path: Path,
        scratch: Path,
        report: Report,
        *,
        limits: ArchiveLimits,
        columns: Columns,
        several_labels: bool,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.tables = Annotations(columns, several=several_labels)
        self._path, self._scratch, self._report = path, scratch, report
        self._limits, self._columns, self._several = limits, columns, several_labels
        self._on_progress = on_progress
        self._bytes = path.stat().st_size

    def images(self) -> Iterator[Raw]:
        """In the order they lie in; what is wrong with the source as a whole is in the report afterwards."""
        try:
            if self._is_parquet():
                yield from self._rows(self._path, "")
            else:
                yield from self._entries()
            self._progress(self._bytes)
        except DatasetError as error:
            self._report.reject_source(error)

    def _is_parquet(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(4) in _PARQUET_STARTS

    def _entries(self) -> Iterator[Raw]:
        for entry in entries(self._path, self._limits):
            reason = _why_ignored(entry)
            if reason is not None:
                self._report.ignored.add(entry=printable(entry.name), reason=reason)
            else:
                try:
                    yield from self._contents(entry)
                except DatasetError as error:
                    self._report.reject_source(error)
                    if error.code == "archive_bomb":
                        return
            self._progress(entry.end_bytes)

    def _contents(self, entry: Entry) -> Iterator[Raw]:
        if entry.name.lower().endswith(".parquet"):
            with NamedTemporaryFile(dir=self._scratch) as file:
                entry.copy_to(cast(BinaryIO, file))
                file.flush()
                yield from self._rows(Path(file.name), entry.name)
        elif is_table(entry.name):
            self.tables.read(entry.name, entry.read())
        elif entry.size_bytes > self._limits.entry_bytes:
            large = ImageError(f"the file is over {self._limits.entry_bytes:,} bytes", code="image_too_large")
            self._report.reject_image(entry.name, large)
        else:
            yield Raw(entry.name, entry.read(), None)

    def _rows(self, path: Path, name: str) -> Iterator[Raw]:
        """The rows of a Parquet file; those of a file in an archive lie under its name, which may tell their split."""
        split = split_of_name(name)
        rows = ParquetImages(path, self._columns, self._several, self._limits)
        for number, (row, data, note) in enumerate(rows, start=1):
            if note.split is None and split is not None:
                note = Annotation(note.labels, split, note.group)
            yield Raw(f"{name}/{row}" if name else row, data, note)
            if not name:
                self._progress(self._bytes * number // (rows.rows + 1))

    def _progress(self, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(done, self._bytes)


def _why_ignored(entry: Entry) -> str | None:
    if entry.is_system_file:
        return "system file"
    if any(part.startswith(".") for part in entry.name.split("/")):
        return "hidden"
    if is_table(entry.name):
        return None
    return "metadata" if _METADATA_FILE.search(entry.name) else None
