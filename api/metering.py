"""Counting what is predicted online, without a write for each request."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from uuid import UUID

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from bpt_store import usage
from bpt_store.db import Database

logger = logging.getLogger(__name__)


class Meter:
    """Writes down every `seconds` what was counted meanwhile, and the rest when it is closed.

    A process that is killed loses what it has not written; nothing is ever written twice.
    """

    def __init__(self, database: Database, seconds: float) -> None:
        self._database, self._seconds = database, seconds
        self._images: Counter[UUID] = Counter()
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_for_ever, name="meter", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write()

    def count(self, customer_id: UUID, images: int) -> None:
        with self._guard:
            self._images[customer_id] += images

    def write(self) -> None:
        """What cannot be written is kept for the next time, unless the database may have it already."""
        with self._guard:
            counted, self._images = self._images, Counter()
        for customer_id, images in counted.items():
            may_be_there = False
            try:
                with self._database.customer(customer_id) as session:
                    usage.add(session, customer_id, online_images=images)
                    may_be_there = True  # from the commit on, which may be done and its answer lost
            except IntegrityError:
                logger.info("usage of a customer who is gone")
            except SQLAlchemyError as error:
                logger.warning("usage not written", extra={"reason": str(error), "is_lost": may_be_there})
                if not may_be_there:
                    self.count(customer_id, images)

    def _write_for_ever(self) -> None:
        while not self._ended.wait(self._seconds):
            self.write()
