"""`python -m worker.webhooks`: delivers webhooks. Any number may run; each delivery is one's at a time."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from bpt_store import logs, webhook_deliveries
from bpt_store.addresses import Outside
from bpt_store.db import Database
from bpt_store.settings import Settings, load_settings
from bpt_store.webhook_deliveries import Sending
from worker.sender import Outcome, Sender

logger = logging.getLogger(__name__)

AT_ONCE = 64
AT_ONCE_TO_AN_ENDPOINT = 4
_LEASE_TIMEOUTS = 2  # a lease outlives the request that it is for, and the writing down of what came of it
_GONE = 410


class Deliverer:
    """No transaction is open while a request is under way: it is claimed before, and what came of it written after."""

    def __init__(self, settings: Settings, database: Database, outside: Outside) -> None:
        self._settings, self._database = settings, database
        self._sender = Sender(outside, settings.webhook_timeout_seconds, at_once=AT_ONCE)
        self._retry_seconds = [float(pause) for pause in settings.webhook_retry_seconds.split()]
        self._under_way: Counter[UUID] = Counter()  # by endpoint
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended`, and then to the end of what is under way."""
        while not ended.is_set():
            begun = await self.begin()
            if not begun:
                await self._wait(ended)
        await self.finish()
        await self._sender.close()

    async def begin(self) -> int:
        """Begin to deliver what is due, as far as there is room -> how many."""
        self._room.clear()
        try:
            sendings = await asyncio.to_thread(self._claim)
        except (SQLAlchemyError, OSError) as error:
            logger.warning("webhooks cannot be looked for", extra={"reason": str(error)})
            return 0
        for sending in sendings:
            self._under_way[sending.endpoint_id] += 1
            task = asyncio.create_task(self._deliver(sending))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(sendings)

    async def finish(self) -> None:
        """Wait for what is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def _claim(self) -> list[Sending]:
        room = AT_ONCE - self._under_way.total()
        if room <= 0:
            return []
        with self._database.system() as session:
            return webhook_deliveries.claim(
                session,
                room,
                lease_seconds=_LEASE_TIMEOUTS * self._settings.webhook_timeout_seconds,
                most_of_endpoint=AT_ONCE_TO_AN_ENDPOINT,
                busy=[*self._under_way],
            )

    async def _deliver(self, sending: Sending) -> None:
        try:
            outcome = await self._sender.send(sending)
            await asyncio.to_thread(self._write_down, sending, outcome)
        except (SQLAlchemyError, OSError) as error:
            # Its lease runs out, and it is sent again.
            logger.warning("what became of a webhook is lost", extra={"reason": str(error)})
        finally:
            self._under_way[sending.endpoint_id] -= 1
            if not self._under_way[sending.endpoint_id]:
                del self._under_way[sending.endpoint_id]
            self._room.set()

    def _write_down(self, sending: Sending, outcome: Outcome) -> None:
        with self._database.system() as session:
            if outcome.error is None:
                assert outcome.status is not None
                webhook_deliveries.delivered(session, sending, outcome.status)
            elif outcome.status == _GONE:
                webhook_deliveries.gone(session, sending)
            else:
                webhook_deliveries.failed(
                    session,
                    sending,
                    outcome.status,
                    outcome.error,
                    retry_seconds=self._retry_seconds,
                    failing_days=self._settings.webhook_failing_days,
                )

    async def _wait(self, ended: asyncio.Event) -> None:
        """For the end, for something that is done and leaves room, or for the time to look again."""
        waiting = [asyncio.create_task(event.wait()) for event in (ended, self._room)]
        await asyncio.wait(waiting, timeout=self._settings.webhook_poll_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


async def _run(settings: Settings) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    database = Database(settings)
    await Deliverer(settings, database, Outside.of(settings)).run(ended)
    database.close()


def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    asyncio.run(_run(settings))


if __name__ == "__main__":
    main()
