"""Ends a worker that hears no doorbell although work waits, so that whoever started it starts another.

A connection to the broker can be dead without either end knowing. The sweep rings for work that waits, again and again,
so that a worker with nothing to do that hears nothing for so long is deaf, and not merely unlucky.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from bpt_store import scheduling
from bpt_store.db import Database
from bpt_store.models import JobKind

logger = logging.getLogger(__name__)

_LOOKS = 4  # in the time after which a worker counts as deaf


class Ears:
    """What a worker's parent process knows of its child: since when it has heard nothing. Made before the fork.

    Without locks, which a child that is killed would keep for ever.
    """

    def __init__(self) -> None:
        self._busy = multiprocessing.RawValue("i", 0)
        self._heard_at = multiprocessing.RawValue("d", time.monotonic())  # one clock for all processes of a machine

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Around the answer to a doorbell."""
        self._busy.value = 1
        try:
            yield
        finally:
            self._heard_at.value = time.monotonic()
            self._busy.value = 0

    def silent_seconds(self) -> float:
        """0 while there is something to do."""
        return 0.0 if self._busy.value else time.monotonic() - self._heard_at.value


def wait_until_deaf(
    ears: Ears, database: Database, kinds: Collection[JobKind], deaf_seconds: float, ended: threading.Event
) -> bool:
    """Until work of these kinds has waited for so long unheard -> True, or until it is the end -> False."""
    while not ended.wait(deaf_seconds / _LOOKS):
        if ears.silent_seconds() < deaf_seconds:
            continue
        try:
            with database.system() as session:
                waiting = set(kinds).intersection(scheduling.kinds_waiting(session, deaf_seconds))
        except SQLAlchemyError as error:  # away: that nothing is heard proves nothing
            logger.warning("watchdog cannot look", extra={"reason": str(error)})
            continue
        if waiting and ears.silent_seconds() >= deaf_seconds:
            logger.error("deaf: work waits and no doorbell is heard", extra={"kinds": sorted(waiting)})
            return True
    return False
