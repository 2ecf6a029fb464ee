"""Residency: what is pinned stays, what is idle makes room, what is asked for by many is loaded once."""

from __future__ import annotations

import threading

import pytest
import torch

from benchmarks.prompt_sets import random_prompt_set
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.errors import ArtifactError
from bpt_core.residency import Residency

# A linear probe of three classes in float32: three pages of 32 numbers.
PAGE_BYTES, PAGES = 32 * 4, 3


def probes(backbone: Backbone, count: int) -> list[PromptSet]:
    return [random_prompt_set(backbone, depth=None, seed=seed) for seed in range(count)]


def room_for(backbone: Backbone, sets: int, host_bytes: int = 0) -> Residency:
    return Residency(backbone, torch.float32, device_bytes=(1 + sets * PAGES) * PAGE_BYTES, host_bytes=host_bytes)


def touch(residency: Residency, key: str, prompt_set: PromptSet) -> None:
    resident = residency.acquire(key) or residency.load(key, prompt_set)
    assert resident is not None
    residency.release(resident)


def test_the_set_unused_for_longest_makes_room(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 2), probes(backbone, 3)
    for key in (0, 1, 0, 2):
        touch(residency, str(key), sets[key])
    assert [residency.acquire(key) is not None for key in ("0", "1", "2")] == [True, False, True]
    assert (residency.occupancy().evictions, residency.occupancy().resident) == (1, 2)


def test_a_pinned_set_is_never_evicted(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 2), probes(backbone, 4)
    pinned = residency.load("0", sets[0])
    assert pinned is not None
    before = residency.pool[torch.from_numpy(pinned.pages)].clone()
    for key in (1, 2, 3):
        touch(residency, str(key), sets[key])
    assert torch.equal(residency.pool[torch.from_numpy(pinned.pages)], before)
    assert torch.equal(before, sets[0].head_weight)
    residency.release(pinned)
    touch(residency, "1", sets[1])
    assert residency.acquire("0") is None


def test_pinned_twice_is_released_twice(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 1), probes(backbone, 2)
    first, second = residency.load("0", sets[0]), residency.acquire("0")
    assert first is not None
    assert first is second
    residency.release(first)
    assert residency.load("1", sets[1], wait=False) is None
    residency.release(first)
    assert residency.load("1", sets[1], wait=False) is not None


def test_a_load_waits_until_something_is_released(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 1), probes(backbone, 2)
    pinned = residency.load("0", sets[0])
    assert pinned is not None
    loaded = threading.Event()

    def load() -> None:
        residency.load("1", sets[1])
        loaded.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert not loaded.wait(0.1)
    residency.release(pinned)
    assert loaded.wait(10)
    thread.join()


def test_many_that_ask_at_once_load_once(backbone: Backbone) -> None:
    residency, (prompt_set,) = room_for(backbone, 2), probes(backbone, 1)
    fetched: list[int] = []
    together = threading.Barrier(8)

    def fetch() -> PromptSet:
        fetched.append(1)
        return prompt_set

    def load() -> None:
        together.wait()
        residency.load("0", fetch)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(fetched), residency.occupancy().resident) == (1, 1)


def test_a_load_that_fails_leaves_room_and_can_be_tried_again(backbone: Backbone) -> None:
    residency, (prompt_set,) = room_for(backbone, 1), probes(backbone, 1)

    def fetch() -> PromptSet:
        raise ArtifactError("damaged")

    with pytest.raises(ArtifactError, match="damaged"):
        residency.load("0", fetch)
    assert residency.load("0", prompt_set) is not None


def test_what_the_host_still_has_is_not_fetched_again(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 1, host_bytes=2 * PAGES * PAGE_BYTES), probes(backbone, 4)

    def forbidden() -> PromptSet:
        raise AssertionError

    for key in (0, 1):
        touch(residency, str(key), sets[key])
    resident = residency.load("0", forbidden)
    assert resident is not None
    assert torch.equal(residency.pool[torch.from_numpy(resident.pages)], sets[0].head_weight)
    assert residency.occupancy().reloads == 1
    residency.release(resident)
    for key in (2, 3):  # the host has room for two
        touch(residency, str(key), sets[key])
    with pytest.raises(AssertionError):
        residency.load("1", forbidden)


def test_a_set_larger_than_all_room_is_refused(backbone: Backbone) -> None:
    residency = room_for(backbone, 1)
    with pytest.raises(ArtifactError) as refused:
        residency.load("0", random_prompt_set(backbone, length=1, classes=3))
    assert refused.value.code == "prompt_set_too_large"


def test_all_pages_come_back(backbone: Backbone) -> None:
    residency, sets = room_for(backbone, 5), probes(backbone, 40)
    for key, prompt_set in enumerate(sets):
        touch(residency, str(key), prompt_set)
    found = residency.occupancy()
    assert (found.pages, found.pages_free, found.resident) == (5 * PAGES, 0, 5)
    residents = [residency.acquire(str(key)) for key in range(35, 40)]
    used = [page for resident in residents if resident for page in resident.pages.tolist()]
    assert sorted(used) == list(range(1, 5 * PAGES + 1))
