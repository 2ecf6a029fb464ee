"""An untrusted archive of pictures -> packed Parquet shards and a report.

entries -> canonical pictures (spooled) -> classes and splits by folder, or by pixel hash -> shards
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from bpt_core import images
from bpt_core.archive import ArchiveLimits, Entry, Tally, entries, fold, printable
from bpt_core.dataset import SHARD_BYTES, SINGLE_LABEL, UNLABELLED, Item, ShardWriter, Split, split_by_hash
from bpt_core.errors import ArchiveError, DatasetError, ImageError

_WAITING_BYTES = 256 << 20  # encoded pictures read ahead of the decoders
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), Split.TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), Split.VAL),
    **dict.fromkeys(("test", "testing"), Split.TEST),
}
_SPLITS = list(Split)  # where pixels are in several of them, the first one keeps them
_METADATA_FILE = re.compile(
    r"(^|/)(readme|licen[cs]e|copying|notice|authors|changelog)$"
    r"|\.(txt|md|rst|json|jsonl|ndjson|csv|tsv|xml|ya?ml|toml|ini|cfg|log|html?|sha256|md5)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PackSettings:
    task: str = SINGLE_LABEL  # or UNLABELLED: images in any folders, no classes, all in the split test
    short_side: int = images.SHORT_SIDE  # pixels
    pixel_limit: int = images.PIXEL_LIMIT
    bad_image_fraction_limit: float = 0.05  # up to here bad images are left out; 0 = strict
    class_images_min: int = 2  # in train and val together
    val_fraction: float = 0.1  # where no folder says val
    test_fraction: float = 0.1  # where no folder says anything
    threads: int = 2
    shard_bytes: int = SHARD_BYTES
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)


@dataclass(frozen=True)
class Packed:
    """`report` is JSON-serialisable; every list in it is {"total", "items"} with the first REPORT_ITEMS items:

    images {accepted, rejected, packed} · counts {class: {split: n}} · formats {format: n} · sizes {width, height:
    {min, median, max}} in stored pixels · ignored [{entry, reason}] · rejected [{entry, code, detail}] ·
    duplicates {across_splits [{entry, split, same_as}], within_split [{entry, same_as}]} · label_conflicts
    [{entries (10 at most), labels}] · warnings (a plain list) [{code, detail}]. Without labels counts is empty.
    """

    shards: tuple[Path, ...]
    class_names: tuple[str, ...]
    report: dict[str, Any]


def pack(
    archive: Path,
    directory: Path,
    settings: PackSettings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Pack `archive` into shards in `directory`; `on_progress` gets bytes of the archive done and in all.

    Layouts: [folders/]<train|val|test>/<class>/[folders/]image or [folders/]<class>/image; any at all for
    UNLABELLED. The shards depend on names and content of the files only, not on their order. Memory holds a few
    hundred bytes per image.

    Raises ArchiveError, or DatasetError: dataset_empty, too_many_bad_images, too_few_classes, class_too_small.
    `error.report` has the keys of Packed.report and names all bad entries. After any exception `directory` holds
    nothing of ours.
    """
    settings = settings or PackSettings()
    report = _Report()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=directory) as spool:
            contents = _contents(archive, settings.archive, report, on_progress)
            pictures = _spooled(contents, spool, settings, report)
            _refuse_bad(report, settings)
            if settings.task == UNLABELLED:
                pictures = _without_leaks(_unlabelled(pictures), report)
                class_names = []
            else:
                pictures, by_folder = _placed(pictures, report)
                pictures = _without_leaks(pictures, report)
                _refuse_classes(pictures, settings)
                _split(pictures, settings, by_folder=by_folder)
                class_names = sorted({picture.class_name for picture in pictures}, key=_natural)
            report.describe(pictures, class_names)
            shards = _write(pictures, class_names, spool, directory, settings)
    except DatasetError as error:
        error.report = report.to_json()
        raise
    return Packed(shards, tuple(class_names), report.to_json())


@dataclass(slots=True)
class _Picture:
    path: str
    digest: str
    offset: int  # in the spool
    length: int
    size: tuple[int, int]  # width, height
    class_name: str = ""
    split: Split = Split.TRAIN


class _Canonical(NamedTuple):
    encoded: bytes
    digest: str
    size: tuple[int, int]
    format: str


@dataclass
class _Report:
    accepted: int = 0
    bad_images: int = 0
    fatal: ArchiveError | None = None
    formats: Counter[str] = field(default_factory=Counter)
    ignored: Tally = field(default_factory=Tally)
    rejected: Tally = field(default_factory=Tally)
    across_splits: Tally = field(default_factory=Tally)
    within_split: Tally = field(default_factory=Tally)
    label_conflicts: Tally = field(default_factory=Tally)
    warnings: list[dict[str, str]] = field(default_factory=list)
    packed: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)

    def reject_image(self, entry: str, error: ImageError) -> None:
        self.bad_images += 1
        self.rejected.add(entry=printable(entry), code=error.code, detail=str(error))

    def reject_entry(self, error: ArchiveError) -> None:
        self.fatal = self.fatal or error
        self.rejected.merge(error.report["rejected"])

    def warn(self, code: str, detail: str) -> None:
        self.warnings.append({"code": code, "detail": detail})

    def describe(self, pictures: list[_Picture], class_names: list[str]) -> None:
        """What the finished dataset holds, and what its owner should know about it."""
        self.packed = len(pictures)
        self.counts = {name: dict.fromkeys(map(str, Split), 0) for name in class_names}
        for picture in pictures if class_names else ():
            self.counts[picture.class_name][picture.split] += 1
        for axis, side in enumerate(("width", "height")):
            pixels = [picture.size[axis] for picture in pictures]
            self.sizes[side] = {"min": min(pixels), "median": median_low(pixels), "max": max(pixels)}
        if self.label_conflicts.total:
            self.warn("label_conflict", f"{self.label_conflicts.total:,} pictures carry more than one label")
        if self.bad_images:
            self.warn("bad_images", f"{self.bad_images:,} bad images were left out")
        if self.across_splits.total:
            self.warn("duplicates_across_splits", f"{self.across_splits.total:,} copies were left out of val or test")
        if class_names:
            self._warn_of_splits()

    def _warn_of_splits(self) -> None:
        no_val = [name for name, counts in self.counts.items() if not counts[Split.VAL]]
        if no_val:
            self.warn("class_without_val", f"{len(no_val):,} classes have no val image, the first is {no_val[0]}")
        if not any(counts[Split.TEST] for counts in self.counts.values()):
            self.warn("no_test_split", "there will be no test metrics")

    def to_json(self) -> dict[str, Any]:
        return {
            "images": {"accepted": self.accepted, "rejected": self.bad_images, "packed": self.packed},
            "counts": self.counts,
            "formats": dict(sorted(self.formats.items())),
            "sizes": self.sizes,
            "ignored": self.ignored.report(),
            "rejected": self.rejected.report(),
            "duplicates": {
                "across_splits": self.across_splits.report(),
                "within_split": self.within_split.report(),
            },
            "label_conflicts": self.label_conflicts.report(),
            "warnings": self.warnings,
        }


def _contents(
    archive: Path, limits: ArchiveLimits, report: _Report, on_progress: Callable[[int, int], None] | None
) -> Iterator[tuple[str, bytes]]:
    """Name and data of what should be an image. Goes on after a bad entry, so that the report names them all."""
    archive_bytes = archive.stat().st_size
    try:
        for entry in entries(archive, limits):
            reason = _why_ignored(entry)
            if reason is not None:
                report.ignored.add(entry=printable(entry.name), reason=reason)
            elif entry.size_bytes > limits.entry_bytes:
                large = ImageError(f"the file is over {limits.entry_bytes:,} bytes", code="image_too_large")
                report.reject_image(entry.name, large)
            else:
                try:
                    data = entry.read()
                except ArchiveError as error:
                    report.reject_entry(error)
                    if error.code == "archive_bomb":
                        return
                else:
                    yield entry.name, data
            if on_progress is not None:
                on_progress(entry.end_bytes, archive_bytes)
        if on_progress is not None:
            on_progress(archive_bytes, archive_bytes)
    except ArchiveError as error:  # of the archive as a whole
        report.reject_entry(error)


def _why_ignored(entry: Entry) -> str | None:
    if entry.is_system_file:
        return "system file"
    if any(part.startswith(".") for part in entry.name.split("/")):
        return "hidden"
    return "metadata" if _METADATA_FILE.search(entry.name) else None


def _spooled(
    contents: Iterator[tuple[str, bytes]], spool: IO[bytes], settings: PackSettings, report: _Report
) -> list[_Picture]:
    pictures: list[_Picture] = []
    with closing(_in_order(contents, settings)) as results:
        for path, result in results:
            if isinstance(result, ImageError):
                report.reject_image(path, result)
                continue
            report.accepted += 1
            report.formats[result.format] += 1
            pictures.append(_Picture(path, result.digest, spool.tell(), len(result.encoded), result.size))
            spool.write(result.encoded)
    return pictures


def _in_order(
    contents: Iterable[tuple[str, bytes]], settings: PackSettings
) -> Generator[tuple[str, _Canonical | ImageError]]:
    """Decoded by several threads (Pillow lets go of the interpreter), given in the order of `contents`."""
    waiting: deque[tuple[str, int, Future[_Canonical | ImageError]]] = deque()
    waiting_bytes = 0
    pool = ThreadPoolExecutor(settings.threads)
    try:
        for path, data in contents:
            waiting.append((path, len(data), pool.submit(_canonical, data, settings)))
            waiting_bytes += len(data)
            while len(waiting) > 4 * settings.threads or waiting_bytes > _WAITING_BYTES:
                done, done_bytes, future = waiting.popleft()
                waiting_bytes -= done_bytes
                yield done, future.result()
        for done, _, future in waiting:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _canonical(data: bytes, settings: PackSettings) -> _Canonical | ImageError:
    try:
        image = images.canonical(data, short_side=settings.short_side, pixel_limit=settings.pixel_limit)
    except ImageError as error:
        return error
    return _Canonical(images.encode(image), images.pixel_hash(image), image.size, images.sniff(data) or "")


def _refuse_bad(report: _Report, settings: PackSettings) -> None:
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
        raise DatasetError("the archive holds no images", code="dataset_empty")


def _placed(pictures: list[_Picture], report: _Report) -> tuple[list[_Picture], bool]:
    """-> pictures with class and split by their folders, and whether there are split folders at all."""
    folders = [picture.path.split("/")[:-1] for picture in pictures]
    split_at = [_split_at(names) for names in folders]
    by_folder = any(at is not None for at in split_at)
    placed = []
    for picture, names, at in zip(pictures, folders, split_at, strict=True):
        if at is not None:
            picture.split, picture.class_name = _SPLIT_FOLDERS[names[at].lower()], names[at + 1]
        elif names and not by_folder:
            picture.class_name = names[-1]
        else:
            reason = "outside the split folders" if names else "in no class folder"
            report.ignored.add(entry=printable(picture.path), reason=reason)
            continue
        placed.append(picture)
    if len(placed) < len(pictures):
        detail = f"{len(pictures) - len(placed):,} images lie in no class folder and were left out"
        report.warn("images_without_class", detail)
    _unify_class_names(placed)
    return placed, by_folder


def _unlabelled(pictures: list[_Picture]) -> list[_Picture]:
    """What is not to be learned from is all in the split test, whatever its folders are called."""
    for picture in pictures:
        picture.split = Split.TEST
    return pictures


def _split_at(folders: list[str]) -> int | None:
    """Where the split folder is: the innermost one of such a name that has a class folder below it."""
    at = [index for index, name in enumerate(folders[:-1]) if name.lower() in _SPLIT_FOLDERS]
    return at[-1] if at else None


def _unify_class_names(pictures: list[_Picture]) -> None:
    """train/Cat and val/cat are one class, whichever system zipped them."""
    name_of: dict[str, str] = {}
    for name in sorted({picture.class_name for picture in pictures}):
        name_of.setdefault(fold(name), unicodedata.normalize("NFC", name))
    for picture in pictures:
        picture.class_name = name_of[fold(picture.class_name)]


def _without_leaks(pictures: list[_Picture], report: _Report) -> list[_Picture]:
    """Equal pixels stay in the first split that has them: a score must not rest on pictures seen in training."""
    copies: defaultdict[str, list[_Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda picture: (_SPLITS.index(picture.split), picture.path)):
        copies[picture.digest].append(picture)
    kept = []
    for same in copies.values():
        first_of: dict[str, _Picture] = {}
        for picture in same:
            entry = printable(picture.path)
            if picture.split is not same[0].split:
                same_as = printable(same[0].path)
                report.across_splits.add(entry=entry, split=picture.split.value, same_as=same_as)
                continue
            kept.append(picture)
            first = first_of.setdefault(picture.class_name, picture)
            if first is not picture:
                report.within_split.add(entry=entry, same_as=printable(first.path))
        labels = sorted({picture.class_name for picture in same})
        if len(labels) > 1:
            report.label_conflicts.add(entries=[printable(picture.path) for picture in same[:10]], labels=labels)
    return kept


def _refuse_classes(pictures: list[_Picture], settings: PackSettings) -> None:
    counts: defaultdict[str, Counter[Split]] = defaultdict(Counter)
    for picture in pictures:
        counts[picture.class_name][picture.split] += 1
    if len(counts) < 2:
        detail = f"{len(counts)} classes: two at least are needed, each in a folder of its own"
        raise DatasetError(detail, code="too_few_classes")
    least = max(1, settings.class_images_min)
    small = [
        f"{name} ({count[Split.TRAIN]} in train, {count[Split.VAL]} in val)"
        for name, count in sorted(counts.items())
        if count[Split.TRAIN] < 1 or count[Split.TRAIN] + count[Split.VAL] < least
    ]
    if small:
        more = f" and {len(small) - 5:,} more" if len(small) > 5 else ""
        detail = f"fewer than {least} images, or none in train: {', '.join(small[:5])}{more}"
        raise DatasetError(detail, code="class_too_small")


def _split(pictures: list[_Picture], settings: PackSettings, *, by_folder: bool) -> None:
    """Where folders leave it open, takes val (and test, without any split folder) out of train by pixel hash."""
    if by_folder and any(picture.split is Split.VAL for picture in pictures):
        return
    train = [picture for picture in pictures if picture.split is Split.TRAIN]
    classes_of: defaultdict[str, set[str]] = defaultdict(set)
    for picture in train:
        classes_of[picture.digest].add(picture.class_name)
    test_fraction = 0.0 if by_folder else settings.test_fraction
    split_of = split_by_hash(classes_of, settings.val_fraction, test_fraction)
    for picture in train:
        picture.split = split_of[picture.digest]


def _write(
    pictures: list[_Picture], class_names: list[str], spool: IO[bytes], directory: Path, settings: PackSettings
) -> tuple[Path, ...]:
    """By split, so that one split is read without the others, then by pixel hash, which mixes the classes."""
    label_of = {name: label for label, name in enumerate(class_names)}
    pictures.sort(key=lambda picture: (_SPLITS.index(picture.split), picture.digest, picture.path))
    with ShardWriter(directory, class_names, settings.task, shard_bytes=settings.shard_bytes) as writer:
        for picture in pictures:
            spool.seek(picture.offset)
            data = spool.read(picture.length)
            labels = (label_of[picture.class_name],) if class_names else ()
            writer.write(Item(data, picture.path, labels, picture.split))
    return tuple(writer.shards)


def _natural(name: str) -> tuple[list[str | int], str]:
    """class 2 before class 10: re.split gives texts and numbers in turn."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], name
