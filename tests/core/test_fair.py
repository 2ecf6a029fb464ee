"""The fair queue: first in, first out for each, in turn between them."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from bpt_core.fair import FairQueue


def test_customers_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert list(islice(queue.take(), 4)) == ["a1", "b1", "c1", "a2"]
    queue.put("d", "d1")
    assert list(queue.take()) == ["b2", "a3", "d1"]
    assert not queue


@given(st.lists(st.tuples(st.integers(0, 3), st.integers())))
def test_nothing_is_lost_or_doubled_and_each_keeps_its_order(items: list[tuple[int, int]]) -> None:
    queue: FairQueue[tuple[int, int]] = FairQueue()
    for customer, item in items:
        queue.put(customer, (customer, item))
    taken = list(queue.take())
    for customer in range(4):
        assert [item for item in taken if item[0] == customer] == [item for item in items if item[0] == customer]


@given(st.integers(1, 1000), st.integers(1, 5))
def test_one_item_waits_for_one_of_every_other_customer_at_most(crowd: int, others: int) -> None:
    queue: FairQueue[str] = FairQueue()
    for other in range(others):
        for _ in range(crowd):
            queue.put(other, "crowd")
    queue.put("mine", "mine")
    assert list(islice(queue.take(), others + 1))[-1] == "mine"
