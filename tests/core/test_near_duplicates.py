"""Groups by bands and sorting are those that comparing all with all gives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_core.near_duplicates import DISTANCE, NEIGHBOURS, Hashes, alike

BITS = st.sets(st.integers(0, 63), max_size=DISTANCE + 2)


def of(*hashes: int) -> Hashes:
    return np.array(hashes, dtype=np.uint64)


def groups(hashes: Hashes) -> list[tuple[list[int], int]]:
    return [(members.tolist(), distance) for members, distance in alike(hashes)]


def by_brute_force(hashes: list[int]) -> list[tuple[list[int], int]]:
    group_of = {index: {index} for index in range(len(hashes))}
    links = []
    for one, other in combinations(range(len(hashes)), 2):
        distance = (hashes[one] ^ hashes[other]).bit_count()
        if distance <= DISTANCE:
            links.append((one, distance))
            united = group_of[one] | group_of[other]
            group_of.update(dict.fromkeys(united, united))
    found = {min(group): sorted(group) for group in group_of.values() if len(group) > 1}
    return [(group, max(distance for one, distance in links if one in group)) for _, group in sorted(found.items())]


@st.composite
def families(draw: st.DrawFn) -> list[int]:
    """Hashes, each a few bits from one before it."""
    hashes = [draw(st.integers(0, 2**64 - 1))]
    for _ in range(draw(st.integers(0, 30))):
        start = draw(st.sampled_from([*hashes, draw(st.integers(0, 2**64 - 1))]))
        hashes.append(start ^ sum(1 << bit for bit in draw(BITS)))
    return hashes


@settings(max_examples=60, deadline=None)
@given(families())
def test_groups_are_those_of_comparing_all_with_all(hashes: list[int]) -> None:
    assert groups(of(*hashes)) == by_brute_force(hashes)


def test_no_pair_within_the_distance_is_missed_wherever_its_bits_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        start = int(rng.integers(0, 2**64, dtype=np.uint64))
        bits = rng.permutation(64)[: DISTANCE + 1].tolist()
        near = start ^ sum(1 << bit for bit in bits[:DISTANCE])
        far = start ^ sum(1 << bit for bit in bits)
        assert groups(of(start, near)) == [([0, 1], DISTANCE)]
        assert groups(of(start, far)) == []


def test_equal_hashes_are_a_group_at_distance_0() -> None:
    assert groups(of(7 << 30, 2**64 - 1, 7 << 30, 7 << 30)) == [([0, 2, 3], 0)]


def test_who_is_like_one_of_a_group_belongs_to_it() -> None:
    step = (1 << DISTANCE) - 1
    chain = [0, step, step | step << 20, step | step << 20 | step << 40]
    assert groups(of(*chain)) == [([0, 1, 2, 3], DISTANCE)]


@pytest.mark.parametrize("seed", [5, 7])  # chains in which groups are linked to one that is itself just being linked
def test_a_long_chain_is_one_group_in_whatever_order_it_is_linked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = np.uint64(1) << rng.integers(0, 64, (20_000, DISTANCE)).astype(np.uint64)
    chain = np.bitwise_xor.accumulate(np.bitwise_xor.reduce(bits, axis=1))
    assert [len(members) for members, _ in alike(chain)] == [len(chain)]


@pytest.mark.parametrize("hashes", [[], [5]])
def test_less_than_two_hashes_have_no_groups(hashes: list[int]) -> None:
    assert groups(of(*hashes)) == []


def test_strangers_have_no_groups() -> None:
    assert groups(np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)) == []


def test_a_crowd_larger_than_the_neighbourhood_is_still_one_group() -> None:
    crowd = np.random.default_rng(0).permutation(64 * NEIGHBOURS).astype(np.uint64)
    assert [(len(members), distance <= DISTANCE) for members, distance in alike(crowd)] == [(len(crowd), True)]


def test_copies_are_found_among_many_strangers() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    hashes[-100:] = hashes[:100] ^ (np.uint64(1) << rng.integers(0, 64, 100).astype(np.uint64))
    assert groups(hashes) == [([index, 19_900 + index], 1) for index in range(100)]
