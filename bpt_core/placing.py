"""Which labels a picture has, and which split: by tables and columns, by folders, and by hash where nothing says."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from bpt_core.annotations import SPLIT_NAMES, Annotations
from bpt_core.archive import fold, printable
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL
from bpt_core.errors import DatasetError
from bpt_core.pictures import Annotation, Picture, Split
from bpt_core.report import Report
from bpt_core.splits import split_by_hash, units

AUTO = "auto"
_SPLITS = list(Split)  # where pixels are in several of them, the first one keeps them
_NOTHING = Annotation()


def place(
    pictures: Sequence[Picture], tables: Annotations, task: str, report: Report
) -> tuple[list[Picture], str, bool]:
    """-> the pictures that have labels (and a split, if any has), the task, and whether splits are given.

    Where tables or columns name labels, only they count: a picture without a row is left out. Otherwise a picture is
    of the class of its folder: [folders/]<train|val|test>/<class>/[folders/]image or [folders/]<class>/image.
    """
    notes = _notes(pictures, tables, report)
    by_table = tables.has_labels or any(note.labels is not None for note in notes)
    folders = [picture.path.split("/")[:-1] for picture in pictures]
    split_at = [_split_at(names, with_class=not by_table) for names in folders]
    splits = [
        note.split or (SPLIT_NAMES[names[at].lower()] if at is not None else None)
        for note, names, at in zip(notes, folders, split_at, strict=True)
    ]
    given = any(split is not None for split in splits)
    placed = []
    for picture, note, names, at, split in zip(pictures, notes, folders, split_at, splits, strict=True):
        labels: tuple[str, ...] | None = note.labels
        if not by_table:
            labels = (names[at + 1 if at is not None else -1],) if names else None
        if labels is None or (given and split is None):
            reason = "outside the splits" if labels is not None else "no label" if by_table else "in no class folder"
            report.left_out.add(entry=printable(picture.path), reason=reason)
            report.ignored.add(entry=printable(picture.path), reason=reason)
            continue
        picture.labels, picture.group = labels, note.group
        picture.split = split or Split.TRAIN
        placed.append(picture)
    if task == AUTO:
        several = by_table and any(len(picture.labels) != 1 for picture in placed)
        task = MULTI_LABEL if several or tables.several_seen else SINGLE_LABEL
    if task == MULTI_LABEL and not by_table:
        placed = _united(placed)
    return placed, task, given


def unify_class_names(pictures: Sequence[Picture], known: Sequence[str], report: Report) -> None:
    """train/Cat and val/cat are one class, whichever system packed them; a name that is `known` already wins."""
    name_of = {fold(name.strip()): name for name in sorted(known)}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for given in sorted({label for picture in pictures for label in picture.labels}):
        key = fold(given.strip())
        name_of.setdefault(key, unicodedata.normalize("NFC", given.strip()))
        spellings[key].add(given)
    for key, names in spellings.items():
        names.add(name_of[key])
        if len(names) > 1:
            report.merged_names.add(names=[printable(name) for name in sorted(names)])
    for picture in pictures:
        picture.labels = tuple(sorted({name_of[fold(label.strip())] for label in picture.labels}))


def draw_splits(
    pictures: Sequence[Picture], *, given: bool, val_fraction: float, test_fraction: float, report: Report
) -> None:
    """Where nothing else says, takes val (and test, without any given split) out of train by hash.

    Pictures that are not new keep their split, and so do those that belong to a group of theirs.
    """
    keys = units(pictures)
    _report_straddling(pictures, keys, report)
    if given and any(picture.split is Split.VAL for picture in pictures):
        return
    settled: dict[str, Split] = {}
    classes_of: defaultdict[str, set[str]] = defaultdict(set)
    drawn = []
    for picture, key in zip(pictures, keys, strict=True):
        if picture.is_new and picture.split is Split.TRAIN:
            drawn.append((picture, key))
        elif not picture.is_new:
            settled.setdefault(key, picture.split)
        if not given or picture.split is Split.TRAIN:
            classes_of[key].update(picture.labels)
    split_of = split_by_hash(classes_of, val_fraction, 0.0 if given else test_fraction, settled)
    for picture, key in drawn:
        picture.split = split_of[key]


def without_leaks(pictures: Sequence[Picture], report: Report, *, given: bool) -> list[Picture]:
    """Equal pixels stay in the first split that has them: a score must not rest on pictures seen in training.

    What is new gives way to what was there, and is not added again under the same labels or path. Where splits are not
    `given`, it goes where its like is.
    """
    copies: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture in sorted(pictures, key=lambda each: (each.is_new, _SPLITS.index(each.split), each.path)):
        copies[picture.digest].append(picture)
    kept = []
    for same in copies.values():
        first = same[0]
        for picture in same:
            entry, same_as = printable(picture.path), printable(first.path)
            twin = next((each for each in same if _is_known(picture, each)), None)
            if twin is not None:
                report.known.add(entry=entry, same_as=printable(twin.path))
            elif given and picture.split is not first.split:
                report.leaks.add(entry=entry, split=picture.split.value, same_as=same_as)
                if picture.labels != first.labels:
                    labels = sorted({*picture.labels, *first.labels})
                    report.leaked_conflicts.add(entry=entry, same_as=same_as, labels=labels)
            else:
                picture.split = first.split
                kept.append(picture)
    return kept


def refuse_classes(pictures: Sequence[Picture], task: str, class_images_min: int) -> None:
    """DatasetError several_labels (or none, for a single-label task), too_few_classes, class_too_small."""
    if task == SINGLE_LABEL:
        _refuse_several(pictures)
    counts: defaultdict[str, Counter[Split]] = defaultdict(Counter)
    for picture in pictures:
        for label in picture.labels:
            counts[label][picture.split] += 1
    needed = 2 if task == SINGLE_LABEL else 1
    if len(counts) < needed:
        detail = f"{len(counts)} classes: {needed} at least are needed, each in a folder of its own or in a table"
        raise DatasetError(detail, code="too_few_classes")
    least = max(1, class_images_min)
    small = [
        f"{name} ({count[Split.TRAIN]} in train, {count[Split.VAL]} in val)"
        for name, count in sorted(counts.items())
        if count[Split.TRAIN] < 1 or count[Split.TRAIN] + count[Split.VAL] < least
    ]
    if small:
        more = f" and {len(small) - 5:,} more" if len(small) > 5 else ""
        detail = f"fewer than {least} images, or none in train: {', '.join(small[:5])}{more}"
        raise DatasetError(detail, code="class_too_small")


def _notes(pictures: Sequence[Picture], tables: Annotations, report: Report) -> list[Annotation]:
    """What is said about each picture; a column next to it comes before a table."""
    said = tables.match([picture.path for picture in pictures])
    report.missing = tables.missing
    notes = []
    for picture in pictures:
        notes.append(picture.note or said.get(picture.path, _NOTHING))
        picture.note = None
    return notes


def _split_at(folders: Sequence[str], *, with_class: bool) -> int | None:
    """Where the split folder is: the innermost one of such a name, that has a class folder below it if it needs one."""
    candidates = folders[:-1] if with_class else folders
    at = [index for index, name in enumerate(candidates) if name.lower() in SPLIT_NAMES]
    return at[-1] if at else None


def _refuse_several(pictures: Sequence[Picture]) -> None:
    wrong = [picture for picture in pictures if len(picture.labels) != 1]
    if wrong:
        labels = ", ".join(wrong[0].labels) or "none"
        detail = (
            f"{len(wrong):,} images do not have exactly one label, the first is {printable(wrong[0].path)}: {labels}"
        )
        raise DatasetError(detail, code="several_labels")


def _united(pictures: Sequence[Picture]) -> list[Picture]:
    """One picture for equal pixels of a split: the folders it lies in are its labels."""
    first_of: dict[tuple[str, Split], Picture] = {}
    for picture in sorted(pictures, key=lambda each: each.path):
        first = first_of.setdefault((picture.digest, picture.split), picture)
        first.labels = tuple(dict.fromkeys((*first.labels, *picture.labels)))
    return list(first_of.values())


def _is_known(picture: Picture, other: Picture) -> bool:
    """The same file again, or the same pixels under the same labels."""
    return picture.is_new and not other.is_new and (other.path == picture.path or other.labels == picture.labels)


def _report_straddling(pictures: Sequence[Picture], keys: Sequence[str], report: Report) -> None:
    splits_of: defaultdict[str, set[Split]] = defaultdict(set)
    names: dict[str, str] = {}
    for picture, key in zip(pictures, keys, strict=True):
        if picture.group is not None:
            splits_of[key].add(picture.split)
            names.setdefault(key, picture.group)
    for key, splits in splits_of.items():
        if len(splits) > 1:
            report.straddling_groups.add(group=printable(names[key]), splits=sorted(splits))
