"""Splits that nobody gave: drawn by hash, so that they depend on no order and stay when pictures are added.

What is drawn for is a unit: a picture, or a group of pictures that belong together, under a hexadecimal hash.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from itertools import chain

from bpt_core.pictures import Picture, Split


def split_by_hash(
    classes_of: Mapping[str, Collection[str]],
    val_fraction: float,
    test_fraction: float,
    settled: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """Hash of a unit -> classes it occurs in, gives hash -> split; `settled` ones keep theirs.

    Every class keeps a unit in train, and has one in val if it has two or more (rarely not, where it shares its few
    with other classes, or where all are settled).
    """
    settled = settled or {}
    split_of: dict[str, Split] = {}
    hashes_of: defaultdict[str, list[str]] = defaultdict(list)
    for unit in sorted(classes_of):
        share = int(unit[:16], 16) / 2**64
        late = Split.TEST if share < val_fraction + test_fraction else Split.TRAIN
        split_of[unit] = settled.get(unit) or (Split.VAL if share < val_fraction else late)
        for name in classes_of[unit]:
            hashes_of[name].append(unit)

    def of(name: str, split: Split) -> list[str]:
        return [unit for unit in hashes_of[name] if split_of[unit] is split]

    def is_spare(unit: str) -> bool:
        return all(len(of(name, Split.TRAIN)) > 1 for name in classes_of[unit])

    def movable(units: Iterable[str]) -> Iterable[str]:
        return (unit for unit in units if unit not in settled)

    for name in sorted(hashes_of):
        if not of(name, Split.TRAIN):
            chosen = next(iter(movable(reversed(hashes_of[name]))), None)
            if chosen is not None:
                split_of[chosen] = Split.TRAIN
    for name in sorted(hashes_of):
        if not of(name, Split.VAL):
            candidates = chain(filter(is_spare, of(name, Split.TRAIN)), of(name, Split.TEST))
            chosen = next(iter(movable(candidates)), None)
            if chosen is not None:
                split_of[chosen] = Split.VAL
    return split_of


def units(pictures: Collection[Picture]) -> list[str]:
    """Of each picture the hash of its unit: its own without a group, one for all that are tied together.

    Pictures of a group are tied, and so are equal pixels: together they may tie several groups.
    """
    tied = _Ties()
    keys = []
    for picture in pictures:
        key = picture.digest if picture.group is None else sha256(f"group:{picture.group}".encode()).hexdigest()
        keys.append(key)
        if picture.group is not None:
            tied.tie(key, picture.digest)
    return [tied.name(key) for key in keys]


class _Ties:
    """Union-find; a set is named by a member that the order of tying does not decide: the least group or picture."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def name(self, key: str) -> str:
        path = []
        while (above := self._above.get(key, key)) != key:
            path.append(key)
            key = above
        for each in path:
            self._above[each] = key
        return key

    def tie(self, one: str, other: str) -> None:
        one, other = sorted((self.name(one), self.name(other)))
        if one != other:
            self._above[other] = one
