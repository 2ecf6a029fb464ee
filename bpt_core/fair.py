"""A queue in which nobody waits behind another's crowd."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out for each customer; between customers one item in turn. Not thread-safe."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # whose turn is next comes first

    def __bool__(self) -> bool:
        return bool(self._of)

    def put(self, customer: Hashable, item: Item) -> None:
        self._of.setdefault(customer, deque()).append(item)

    def take(self) -> Iterator[Item]:
        """The items in their order; each is gone from the queue once it is given out."""
        while self._of:
            customer, items = next(iter(self._of.items()))
            item = items.popleft()
            if items:
                self._of.move_to_end(customer)
            else:
                del self._of[customer]
            yield item
