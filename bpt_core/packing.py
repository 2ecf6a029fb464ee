"""What a customer sends -> packed Parquet shards, an index of their items, thumbnails and a report.

source -> canonical pictures (spooled) -> labels and splits -> findings -> shards, index, thumbnails

A version is made from another one the same way: its pictures are spooled as they are, without those that are to be
removed, and what is sent comes on top.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from bpt_core import images
from bpt_core.annotations import Columns
from bpt_core.archive import ArchiveLimits, Tally, printable
from bpt_core.dataset import MULTI_LABEL, SHARD_BYTES, UNLABELLED, Item, PackedDataset, ShardWriter
from bpt_core.decoders import Decoders
from bpt_core.errors import DatasetError, ImageError
from bpt_core.findings import by_item, examine
from bpt_core.items import IndexedItem, Items, write_items
from bpt_core.pictures import Canonical, Picture, Split
from bpt_core.placing import AUTO, draw_splits, place, refuse_classes, unify_class_names, without_leaks
from bpt_core.report import Report
from bpt_core.sources import OnProgress, Raw, Source

ITEMS_FILE, THUMBNAILS_FILE = "items.parquet", "thumbnails.bin"
_SPOOL_BYTES = 1 << 20  # of small pictures that are written at a time
_WAITING_PICTURES = 64  # read ahead of each decoder: a fair supply of small ones ...
_WAITING_BYTES = 16 << 20  # ... while of large ones a few will do
_SPLITS = list(Split)


@dataclass(frozen=True)
class PackSettings:
    task: str = AUTO  # or single-label, multi-label, unlabelled: no classes, all in the split test
    short_side: int = images.SHORT_SIDE  # pixels
    pixel_limit: int = images.PIXEL_LIMIT
    first_frame: bool = False  # of GIF and other animations, which are bad images otherwise
    columns: Columns = field(default_factory=Columns)
    bad_image_fraction_limit: float = 0.05  # up to here bad images are left out; 0 = strict
    class_images_min: int = 2  # in train and val together
    val_fraction: float = 0.1  # where nothing says what is val
    test_fraction: float = 0.1  # where nothing says anything
    decoders: int = 0  # processes of their own that decode; 0: threads of this one, for pictures that are trusted
    decode_cpu_seconds: float = 20.0  # for one picture, in a process of its own
    decode_memory_bytes: int = 1 << 30  # of one such process
    shard_bytes: int = SHARD_BYTES
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)


@dataclass(frozen=True)
class Packed:
    """`report` is JSON-serialisable, as report.Report describes it. `thumbnails` is cut by the rows of `items`."""

    shards: tuple[Path, ...]
    items: Path
    thumbnails: Path
    task: str
    class_names: tuple[str, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class Base:
    """The version that the new one is made from."""

    shards: Sequence[Path]
    items: Path
    thumbnails: Path


@dataclass(frozen=True)
class Changes:
    """What is to become of items of the base, by their ids."""

    relabel: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remove: frozenset[str] = frozenset()


def pack(
    source: Path | None,
    directory: Path,
    settings: PackSettings | None = None,
    on_progress: OnProgress | None = None,
    *,
    base: Base | None = None,
    changes: Changes | None = None,
) -> Packed:
    """Pack `source`, or what becomes of `base` by `changes` and by what `source` adds, into files of `directory`.

    Layouts: class folders with or without split folders, tables of labels, Parquet files; see sources and placing.
    The files depend on names and content of what is sent only, not on its order. Memory holds under a kilobyte per
    image. Of a base every item keeps its split, and its id.

    Raises ArchiveError, or DatasetError: dataset_empty, too_many_bad_images, too_few_classes, class_too_small,
    several_labels, annotations_invalid, item_unknown. `error.report` is a report and names all bad entries. After any
    exception `directory` holds nothing of ours.
    """
    settings, changes = settings or PackSettings(), changes or Changes()
    report = Report()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=directory, buffering=_SPOOL_BYTES) as spool:
            pictures, task, given = [], settings.task, True
            if base is not None:
                dataset = PackedDataset(base.shards)
                pictures, task = _of_base(base, dataset, changes, spool, report), dataset.task
            if source is not None:
                origin = Source(
                    source,
                    directory,
                    report,
                    limits=settings.archive,
                    columns=settings.columns,
                    several_labels=task == MULTI_LABEL,
                    on_progress=on_progress,
                )
                added = _spooled(origin.images(), spool, settings, report)
                _refuse_bad(report, settings)
                if task == UNLABELLED:
                    pictures += _unlabelled(added)
                else:
                    added, task, given = place(added, origin.tables, task, report)
                    pictures += added
            if task == UNLABELLED:
                pictures = without_leaks(pictures, report, given=True)
                class_names = []
            else:
                known = {label for picture in pictures if not picture.is_new for label in picture.labels}
                unify_class_names(pictures, sorted(known), report)
                pictures = without_leaks(pictures, report, given=given)
                refuse_classes(pictures, task, settings.class_images_min)
                fractions = {"val_fraction": settings.val_fraction, "test_fraction": settings.test_fraction}
                draw_splits(pictures, given=given, **fractions, report=report)
                class_names = sorted({label for picture in pictures for label in picture.labels}, key=_natural)
            if not pictures:
                raise DatasetError("no image is left", code="dataset_empty")
            findings = examine(pictures, class_names, task=task)
            report.describe(pictures, class_names, findings)
            if base is not None:
                assert report.changes is not None
                report.changes["added"] = sum(picture.is_new for picture in pictures)
            files = _write(pictures, class_names, task, by_item(findings), spool, directory, settings)
    except DatasetError as error:
        error.report = report.to_json()
        raise
    shards, items, thumbnails = files
    return Packed(shards, items, thumbnails, task, tuple(class_names), report.to_json())


def _of_base(base: Base, dataset: PackedDataset, changes: Changes, spool: IO[bytes], report: Report) -> list[Picture]:
    """The pictures of the base as they will be, copied into the spool. DatasetError `item_unknown`."""
    index = Items.read(base.items)
    unknown = Tally()
    for item_id in sorted({*changes.relabel, *changes.remove}):
        if index.get(item_id) is None:
            unknown.add(entry=printable(item_id), code="item_unknown", detail="the base has no such item")
    if unknown.total:
        detail = f"{unknown.total:,} items are not in the version this one is made from"
        error = DatasetError(detail, code="item_unknown", report={"rejected": unknown.report()})
        report.reject_source(error)
        raise error
    pictures = []
    with base.thumbnails.open("rb") as thumbnails:
        for entry, item in zip(index, dataset.items(), strict=True):
            if entry.id in changes.remove:
                continue
            thumbnails.seek(entry.thumbnail_offset)
            thumbnail = thumbnails.read(entry.thumbnail_length)
            picture = _spool(spool, entry.path, item.image, thumbnail, entry)
            picture.labels = tuple(changes.relabel.get(entry.id, entry.labels))
            picture.split, picture.group, picture.is_new = entry.split, entry.group, False
            pictures.append(picture)
    report.changes = {"added": 0, "relabelled": len(changes.relabel), "removed": len(changes.remove)}
    return pictures


def _spooled(sources: Iterator[Raw], spool: IO[bytes], settings: PackSettings, report: Report) -> list[Picture]:
    pictures: list[Picture] = []
    with closing(_in_order(sources, settings)) as results:
        for raw, result in results:
            if isinstance(result, ImageError):
                report.reject_image(raw.path, result)
                continue
            report.accepted += 1
            picture = _spool(spool, raw.path, result.encoded, result.thumbnail, result)
            picture.note = raw.note
            pictures.append(picture)
    return pictures


def _spool(spool: IO[bytes], path: str, encoded: bytes, thumbnail: bytes, known: Canonical | IndexedItem) -> Picture:
    offset = spool.tell()
    spool.write(encoded)
    spool.write(thumbnail)
    return Picture(
        path=path,
        digest=known.digest,
        format=known.format,
        facts=known.facts,
        size=known.size,
        offset=offset,
        length=len(encoded),
        thumbnail_length=len(thumbnail),
    )


def _in_order(sources: Iterable[Raw], settings: PackSettings) -> Generator[tuple[Raw, Canonical | ImageError]]:
    """Decoded several at a time, given in the order of `sources`, without the bytes they came as."""
    waiting: deque[tuple[Raw, int, Future[Canonical | ImageError]]] = deque()
    waiting_bytes = 0
    ahead = _WAITING_PICTURES * max(1, settings.decoders)
    with Decoders(
        settings.decoders,
        cpu_seconds=settings.decode_cpu_seconds,
        memory_bytes=settings.decode_memory_bytes,
        short_side=settings.short_side,
        pixel_limit=settings.pixel_limit,
        first_frame=settings.first_frame,
    ) as decoders:
        for raw in sources:
            size = len(raw.data)
            waiting.append((raw._replace(data=b""), size, decoders.submit(raw.data)))
            waiting_bytes += size
            while len(waiting) > ahead or waiting_bytes > _WAITING_BYTES:
                done, size, future = waiting.popleft()
                waiting_bytes -= size
                yield done, future.result()
        for done, _, future in waiting:
            yield done, future.result()


def _refuse_bad(report: Report, settings: PackSettings) -> None:
    if report.fatal is not None:
        raise report.fatal
    total = report.accepted + report.bad_images
    if report.bad_images > settings.bad_image_fraction_limit * total:
        raise DatasetError(
            f"{report.bad_images:,} of {total:,} images are bad, more than "
            f"{settings.bad_image_fraction_limit:.0%} of them",
            code="too_many_bad_images",
        )
    if not report.accepted:
        raise DatasetError("there are no images in it", code="dataset_empty")


def _unlabelled(pictures: list[Picture]) -> list[Picture]:
    """What is not to be learned from is all in the split test, whatever its folders are called."""
    for picture in pictures:
        picture.split, picture.note = Split.TEST, None
    return pictures


def _write(
    pictures: list[Picture],
    class_names: list[str],
    task: str,
    findings_of: Mapping[str, Sequence[str]],
    spool: IO[bytes],
    directory: Path,
    settings: PackSettings,
) -> tuple[tuple[Path, ...], Path, Path]:
    """By split, so that one split is read without the others, then by pixel hash, which mixes the classes."""
    label_of = {name: label for label, name in enumerate(class_names)}
    pictures.sort(key=lambda picture: (_SPLITS.index(picture.split), picture.digest, picture.path))
    items, thumbnails = directory / ITEMS_FILE, directory / THUMBNAILS_FILE
    places: list[tuple[int, int]] = []
    with ExitStack() as undo:
        for path in (items, thumbnails):
            undo.callback(path.unlink, missing_ok=True)
        with (
            ShardWriter(directory, class_names, task, shard_bytes=settings.shard_bytes) as writer,
            thumbnails.open("wb") as file,
        ):
            spool.flush()
            for picture in pictures:
                both = os.pread(spool.fileno(), picture.length + picture.thumbnail_length, picture.offset)
                data = both[: picture.length]
                file.write(both[picture.length :])
                labels = tuple(sorted(label_of[label] for label in picture.labels))
                places.append(writer.write(Item(data, picture.path, labels, picture.split)))
            write_items(items, _indexed(pictures, places, findings_of))
        undo.pop_all()
    return tuple(writer.shards), items, thumbnails


def _indexed(
    pictures: Iterable[Picture], places: Iterable[tuple[int, int]], findings_of: Mapping[str, Sequence[str]]
) -> Iterator[IndexedItem]:
    offset = 0
    for picture, (shard, row) in zip(pictures, places, strict=True):
        item_id = picture.id
        yield IndexedItem(
            id=item_id,
            path=picture.path,
            digest=picture.digest,
            format=picture.format,
            labels=picture.labels,
            split=picture.split,
            group=picture.group,
            size=picture.size,
            facts=picture.facts,
            findings=tuple(findings_of.get(item_id, ())),
            shard=shard,
            row=row,
            thumbnail_offset=offset,
            thumbnail_length=picture.thumbnail_length,
        )
        offset += picture.thumbnail_length


def _natural(name: str) -> tuple[list[str | int], str]:
    """class 2 before class 10: re.split gives texts and numbers in turn."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name
