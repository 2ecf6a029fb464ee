"""Indexes of dataset versions, kept in memory while they are looked at. They never change, so nothing goes stale."""

from __future__ import annotations

from collections import OrderedDict
from io import BytesIO
from threading import Lock

from bpt_core.items import Items
from bpt_store.objects import Objects

KEPT_BYTES = 256 << 20


class Indexes:
    """The least recently used make room; one that is larger than all the room is read anew each time."""

    def __init__(self, objects: Objects, kept_bytes: int = KEPT_BYTES) -> None:
        self._objects, self._kept_bytes = objects, kept_bytes
        self._kept: OrderedDict[str, Items] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> Items:
        """The index stored under `key`; DatasetError where it is none, FileNotFoundError where it is gone."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        items = Items.read(BytesIO(self._objects.read(key)))
        with self._lock:
            self._kept[key] = items
            self._kept.move_to_end(key)
            while sum(each.nbytes for each in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)
        return items
