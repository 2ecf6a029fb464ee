"""The heartbeat of one attempt, in a thread of its own, so that a slow download does not cost the job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from bpt_store import jobs
from bpt_store.errors import LeaseLost
from bpt_store.jobs import Fence
from bpt_store.models import JobState
from worker.context import Worker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # how often a lease and a wish to stop are looked at


class Lease:
    """Renews while its block runs. `is_lost` once another attempt took over, or once the database could not be
    reached for so long that the lease is about to run out; `is_unwanted` while the job is to be cancelled
    or paused.
    """

    def __init__(self, worker: Worker, fence: Fence) -> None:
        self._worker, self._fence = worker, fence
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
        self._renewed_at = time.monotonic()
        self._lost = False
        self.is_unwanted = False

    @property
    def is_lost(self) -> bool:
        settings = self._worker.settings
        margin = min(settings.heartbeat_seconds, settings.lease_seconds / 4)
        return self._lost or time.monotonic() - self._renewed_at > settings.lease_seconds - margin

    @contextmanager
    def guarding(self, kill: Callable[[], None]) -> Iterator[None]:
        """While the block runs, `kill` is called once the lease is lost, even if all else waits for the database."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK_SECONDS):
                if self.is_lost:
                    kill()
                    return

        guard = threading.Thread(target=watch, name="guard", daemon=True)
        guard.start()
        try:
            yield
        finally:
            ended.set()
            guard.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _renew_for_ever(self) -> None:
        settings = self._worker.settings
        while not self._lost and not self._ended.wait(settings.heartbeat_seconds):
            asked_at = time.monotonic()  # the lease counts from before the question, not from the answer
            try:
                with self._worker.database.customer(self._fence.customer_id) as session:
                    state = jobs.renew(session, self._fence, settings.lease_seconds)
            except LeaseLost:
                self._lost = True
            except SQLAlchemyError as error:
                logger.warning("lease not renewed", extra={"reason": str(error)})
            else:
                self._renewed_at = asked_at
                self.is_unwanted = state is not JobState.RUNNING
