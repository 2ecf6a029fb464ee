"""What is wrong with a customer's pictures and classes, said so that the customer can act."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

import numpy as np

from bpt_core.archive import Tally, fold, printable
from bpt_core.dataset import SINGLE_LABEL, UNLABELLED, Split
from bpt_core.finding import GROUP_ITEMS, Group, many, named, of_classes, of_groups, percent
from bpt_core.finding import Finding as Finding
from bpt_core.finding import Severity as Severity
from bpt_core.looks import fact, flat, looks, sizes
from bpt_core.near_duplicates import alike
from bpt_core.pictures import Picture

COPIES_WARNING = 0.05  # share of pictures that copies add
CONFLICTS_SERIOUS = 0.02  # share of pictures; no tuning gets above the rest
# The hash of a drawing of few colours on plain ground tells where things lie, not what they are. Drawn boxes and discs
# have less than 1 bit of entropy; of 40,000 photographs one in 10,000 has less than 2.
HASH_ENTROPY_MIN = 2.0
FEW_IMAGES = 10  # of a class in train
HARDLY_ANY_IMAGES = 3  # with two, nothing tells what varies from what the class is
HARDLY_ANY_SERIOUS = 0.1  # share of classes; one rare class among many spoils itself only
IMBALANCE_WARNING, IMBALANCE_SERIOUS = 10, 100  # largest class over the smallest, in train

# White space and what stands for it. "+", "#", "&" and the like tell classes apart; so does a hyphen before a number
# or at the end ("-1", "A-"), and whatever stands between two digits.
_SEPARATOR = re.compile(r"""[\s_.,:;'"()\[\]/\\‐–—](?!\d)|(?<!\d)[\s_.,:;'"()\[\]/\\‐–—]|(?<=[^\W\d])-(?!$)|-(?=\D)""")


class Verdict(StrEnum):
    GOOD = "good to tune"
    CARE = "tune with care"
    FIX = "fix first"


def verdict(findings: Iterable[Finding]) -> Verdict:
    severities = {finding.severity for finding in findings}
    if Severity.SERIOUS in severities:
        return Verdict.FIX
    return Verdict.CARE if Severity.WARNING in severities else Verdict.GOOD


def by_item(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """Item id -> codes of the findings it is in, in the order of `findings`; pictures without any are not there."""
    codes: defaultdict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for item in finding.pictures:
            codes[item].append(finding.code)
    return dict(codes)


def examine(pictures: Sequence[Picture], class_names: Sequence[str], *, task: str) -> list[Finding]:
    """Findings, the most severe first, then those with the largest share; whatever the order of `pictures`."""
    if not pictures:
        return []
    ordered = sorted(pictures, key=lambda picture: (picture.path, picture.digest))
    findings = [*looks(ordered), *sizes(ordered), *_copies(ordered, task), *_near_copies(ordered, task)]
    if task != UNLABELLED:
        findings += [*_classes(ordered, class_names), *_splits(ordered, class_names), *_similar_names(class_names)]
    rank = list(Severity)
    return sorted(findings, key=lambda finding: (-rank.index(finding.severity), -finding.share, finding.code))


def _copies(pictures: Sequence[Picture], task: str) -> Iterator[Finding]:
    """Pictures of equal pixels. Where several labels may be true, copies are copies whatever their labels."""
    same: defaultdict[tuple[str, ...], list[Picture]] = defaultdict(list)
    for picture in pictures:
        labels = sorted(picture.labels) if task == SINGLE_LABEL else ()
        same[(picture.digest, *labels)].append(picture)
    groups = [members for members in same.values() if len(members) > 1]
    surplus = sum(len(members) - 1 for members in groups)
    if groups:
        share = surplus / len(pictures)
        leaks = sum(_leaks(members) for members in groups)
        label = " under the same label" if task == SINGLE_LABEL else ""
        yield of_groups(
            "exact_duplicates",
            Severity.WARNING if share > COPIES_WARNING or leaks else Severity.INFO,
            f"Exact copies: {many(surplus, 'picture')}, {percent(share)} of all, repeat another one{label}. "
            f"Copies add nothing new and count more than the rest; keep one of each.{_of_leaks(leaks)}",
            [(members, {}) for members in groups],
            share,
        )
    if task == SINGLE_LABEL:
        yield from _label_conflicts(pictures)


def _label_conflicts(pictures: Sequence[Picture]) -> Iterator[Finding]:
    groups: list[Group] = [
        (members, {"labels": _labels(members)})
        for members in _by_digest(pictures)
        if len({frozenset(picture.labels) for picture in members}) > 1
    ]
    if groups:
        total = _size(groups)
        share = total / len(pictures)
        yield of_groups(
            "label_conflict",
            Severity.SERIOUS if share > CONFLICTS_SERIOUS else Severity.WARNING,
            f"The same picture under different labels: {many(total, 'picture')}, {percent(share)} of all, in "
            f"{many(len(groups), 'group')}. Whatever is predicted for them, some of it counts as wrong; decide on one "
            "label for each, or upload the dataset as one of several labels.",
            groups,
            share,
        )


def _near_copies(pictures: Sequence[Picture], task: str) -> Iterator[Finding]:
    """Pictures alike but not equal. Equal ones count as one, but where one is named, all of them are."""
    copies = _by_digest(pictures)
    first = [members[0] for members in copies]
    kept = np.flatnonzero(~flat(first) & (fact(first, "entropy") >= HASH_ENTROPY_MIN))
    groups: list[Group] = []
    conflicts: list[Group] = []
    for indices, distance in alike(np.array([first[index].facts.hash for index in kept], dtype=np.uint64)):
        parts = [copies[index] for index in kept[indices]]
        members = [part[0] for part in parts] + [picture for part in parts for picture in part[1:]]
        about = {"distance": distance, "splits": _splits_of(members)}
        groups.append((members, about))
        if task == SINGLE_LABEL and len({frozenset(picture.labels for picture in part) for part in parts}) > 1:
            conflicts.append((members, {**about, "labels": _labels(members)}))
    if groups:
        groups.sort(key=lambda group: not _leaks(group[0]))
        total, leaks = _size(groups), sum(_leaks(members) for members, _ in groups)
        share = total / len(pictures)
        yield of_groups(
            "near_duplicates",
            Severity.WARNING if leaks else Severity.INFO,
            f"Almost the same: {many(total, 'picture')}, {percent(share)} of all, in {many(len(groups), 'group')}, "
            f"as by another size or compression. They add little; keep one of each group.{_of_leaks(leaks)}",
            groups,
            share,
        )
    if conflicts:
        total = _size(conflicts)
        yield of_groups(
            "near_duplicate_label_conflict",
            Severity.WARNING,
            f"Almost the same picture under different labels: {many(total, 'picture')} in "
            f"{many(len(conflicts), 'group')}. One of the labels is probably wrong; look at them and correct it.",
            conflicts,
            total / len(pictures),
        )


def _classes(pictures: Sequence[Picture], class_names: Sequence[str]) -> Iterator[Finding]:
    train = {name: count[Split.TRAIN] for name, count in _counts(pictures, class_names).items()}
    rising = sorted(train, key=lambda name: (train[name], name))
    few = [name for name in rising if train[name] < FEW_IMAGES]
    if few:
        share = len(few) / len(train)
        hardly_any = sum(train[name] < HARDLY_ANY_IMAGES for name in few)
        serious = train[few[0]] == 0 or hardly_any > HARDLY_ANY_SERIOUS * len(train)
        yield of_classes(
            "few_images",
            Severity.SERIOUS if serious else Severity.WARNING,
            f"Few training pictures: {many(len(few), 'class', 'classes')} with fewer than {FEW_IMAGES} "
            f"({named([f'{name} {train[name]}' for name in few])}). What varies within a class cannot be learned from "
            f"so few. Add pictures ({FEW_IMAGES} at least, better 50), or leave the class out.",
            [{"class": printable(name), "train": train[name]} for name in few],
            share,
        )
    present = [name for name in rising if train[name]]
    small = [name for name in present if train[present[-1]] > IMBALANCE_WARNING * train[name]]
    if small:
        largest, ratio = train[present[-1]], train[present[-1]] / train[small[0]]
        yield of_classes(
            "class_imbalance",
            Severity.SERIOUS if ratio > IMBALANCE_SERIOUS else Severity.WARNING,
            f"Uneven classes: {printable(present[-1])} has {many(largest, 'training picture')}, {ratio:,.0f} times as "
            f"many as {printable(small[0])}; {many(len(small), 'class', 'classes')} in all with less than "
            f"1/{IMBALANCE_WARNING} of that. Small classes will be overlooked; add pictures to them.",
            [{"class": printable(name), "train": train[name]} for name in small],
            len(small) / len(train),
        )


def _splits(pictures: Sequence[Picture], class_names: Sequence[str]) -> Iterator[Finding]:
    counts = _counts(pictures, class_names)
    without = {split: [name for name in counts if not counts[name][split]] for split in (Split.VAL, Split.TEST)}
    if names := without[Split.VAL]:
        yield of_classes(
            "class_without_val",
            Severity.WARNING,
            f"No val picture: {many(len(names), 'class', 'classes')} ({named(names)}). The best epoch and the "
            "threshold for unknown pictures are chosen without them. Add a few pictures of each to val.",
            [{"class": printable(name)} for name in names],
            len(names) / len(counts),
        )
    if not any(picture.split is Split.TEST for picture in pictures):
        yield Finding(
            "no_test_split",
            Severity.INFO,
            "No test pictures: there will be no scores from pictures that had no part in tuning. Put about a tenth of "
            "the pictures into a folder or split named test.",
            Tally(),
        )
    elif names := without[Split.TEST]:
        yield of_classes(
            "class_without_test",
            Severity.INFO,
            f"No test picture: {many(len(names), 'class', 'classes')} ({named(names)}). The test scores say nothing "
            "about them. Add a few pictures of each to test.",
            [{"class": printable(name)} for name in names],
            len(names) / len(counts),
        )


def _similar_names(class_names: Sequence[str]) -> Iterator[Finding]:
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name in class_names:
        same[_core(name)].append(name)
    groups = [names for names in same.values() if len(names) > 1]
    if groups:
        total = sum(map(len, groups))
        yield of_classes(
            "similar_class_names",
            Severity.WARNING,
            f"Class names that differ only by case, blanks or punctuation: {many(total, 'class', 'classes')} "
            f"({named([' / '.join(names) for names in groups])}). If they mean the same, one class is tuned as "
            "several; give it one name.",
            [{"names": [printable(name) for name in names]} for names in groups],
            total / len(class_names),
        )


def _core(name: str) -> str:
    return fold(_SEPARATOR.sub("", unicodedata.normalize("NFKC", name).strip())) or name


def _counts(pictures: Sequence[Picture], class_names: Sequence[str]) -> dict[str, Counter[Split]]:
    counts: dict[str, Counter[Split]] = {name: Counter() for name in class_names}
    for picture in pictures:
        for label in picture.labels:
            counts.setdefault(label, Counter())[picture.split] += 1
    return counts


def _by_digest(pictures: Iterable[Picture]) -> list[list[Picture]]:
    same: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        same[picture.digest].append(picture)
    return list(same.values())


def _size(groups: Iterable[Group]) -> int:
    return sum(len(members) for members, _ in groups)


def _splits_of(pictures: Iterable[Picture]) -> list[str]:
    splits = {picture.split for picture in pictures}
    return [split.value for split in Split if split in splits]


def _leaks(pictures: Iterable[Picture]) -> bool:
    """Whether scores would rest on what was seen in training."""
    splits = _splits_of(pictures)
    return Split.TRAIN in splits and len(splits) > 1


def _of_leaks(groups: int) -> str:
    if not groups:
        return ""
    return (
        f" {many(groups, 'group')} with pictures both in train and in val or test will make the scores look better "
        "than they are; keep each group in one split."
    )


def _labels(pictures: Iterable[Picture]) -> list[str]:
    labels = sorted({label for picture in pictures for label in picture.labels})
    return [printable(label) for label in labels[:GROUP_ITEMS]]
