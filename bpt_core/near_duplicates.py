"""Which of many pictures look almost the same, by hashes of 64 bits that differ in few.

Two hashes that differ in at most 5 bits agree in full in at least 2 of 7 bands of bits, whichever bits those are
(the pigeonhole principle). So for each of the 21 pairs of bands the hashes are sorted by these two bands, and only
neighbours with equal bands are compared: time n log n, where comparing all with all takes n².
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.intp]

# With facts.measure's hash: of 40,000 photographs of 160 classes (8e8 pairs), those within 5 bits of each other were
# copies, nothing else; at 6 bits the first strangers come. Of copies compressed anew, halved, blurred, brighter or
# darker 97 % and more are within 5 bits; of those that lost 3 % at the edge, 29 %.
DISTANCE = 5  # bits
NEIGHBOURS = 64  # a hash is compared with so many of those that share two bands with it
_BANDS = ((0, 10), (10, 9), (19, 9), (28, 9), (37, 9), (46, 9), (55, 9))  # first bit, bits


class Alike(NamedTuple):
    members: Indices  # ascending
    distance: int  # bits; the largest between two members that were found to be alike directly


def alike(hashes: Hashes) -> list[Alike]:
    """Groups of two and more indices into `hashes`, linked by pairs at most DISTANCE bits apart; by first member.

    Who is like one of a group belongs to it, so that its ends may differ more. Nothing is missed as long as no more
    than NEIGHBOURS different hashes agree in the same two bands; beyond that each is compared with its nearest in
    order of value only, which bounds the time at the price of some pairs.
    """
    values, of_value = np.unique(hashes, return_inverse=True)
    root, widest = _linked(values)
    root_of = root[of_value]
    order = np.argsort(root_of, kind="stable")
    starts = np.flatnonzero(np.diff(root_of[order], prepend=-1))
    groups = [
        Alike(members, int(widest[of_value[members]].max()))
        for members in np.split(order, starts[1:])
        if len(members) > 1
    ]
    return sorted(groups, key=lambda group: int(group.members[0]))


def _linked(values: Hashes) -> tuple[Indices, NDArray[np.uint8]]:
    """Ascending different hashes [n] -> for each the lowest index of its group, and its widest link (of some)."""
    root = np.arange(len(values))
    widest = np.zeros(len(values), dtype=np.uint8)
    for bands in combinations(_BANDS, 2):
        mask = np.uint64(sum(((1 << bits) - 1) << first for first, bits in bands))
        keys = values & mask
        order = np.argsort(keys, kind="stable")  # by value where the bands are equal
        keys = keys[order]
        at = np.arange(len(values))
        for step in range(1, NEIGHBOURS + 1):
            at = at[: np.searchsorted(at, len(values) - step)]
            at = at[keys[at] == keys[at + step]]
            if not len(at):
                break
            left, right = order[at], order[at + step]
            distance = np.bitwise_count(values[left] ^ values[right])
            near = distance <= DISTANCE
            left, right = left[near], right[near]
            np.maximum.at(widest, left, distance[near])  # one end is enough: both are in the same group
            _link(root, left, right)
    return root, widest


def _link(root: Indices, left: Indices, right: Indices) -> None:
    """Unite the groups of left[i] and right[i], for all i. `root` names the lowest member of each group throughout."""
    while True:
        one, other = root[left], root[right]
        apart = one != other
        if not apart.any():
            return
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(above := root[root], root):
            root[:] = above
