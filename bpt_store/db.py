"""Connections to PostgreSQL under two of its three roles: bpt_customer (walled in) and bpt_system (sees all)."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from bpt_store.errors import StoreError
from bpt_store.settings import Settings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Bounded waiting: a database that is away gives an error within seconds, never a hang.
CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
}
# Who freezes in the middle of a transaction keeps its locks for a minute only.
_NOT_FOR_EVER = {"options": "-c idle_in_transaction_session_timeout=60000"}
_PATIENCE_SECONDS = 5
_TELL = "tell of a refusal"
UNASKED_SECONDS = 1.0  # a connection may have lain idle, and is not pinged
_IDLE_SINCE = "idle since"
_ANSWER_SECONDS = 10.0  # nothing here asks for more than milliseconds of work


class CustomerSession(Session):
    """A session whose every transaction is limited to one customer by row-level security."""


@event.listens_for(CustomerSession, "after_begin")
def _limit_to_customer(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    connection.execute(
        text("SELECT set_config('app.customer_id', :customer_id, true)"),
        {"customer_id": str(session.info["customer_id"])},
    )


def tell_of_refusal(session: Session, action: Callable[[Session], None]) -> None:
    """Do `action` in a transaction of its own, if a StoreError ends this one: what it writes would be rolled back."""
    session.info.setdefault(_TELL, []).append(action)


class Database:
    """Sessions that commit when their block ends well and roll back when it does not."""

    def __init__(self, settings: Settings) -> None:
        self._customer_engine = _pooled(settings.database_url.get_secret_value())
        self._system_engine = _pooled(settings.system_database_url.get_secret_value())
        # Objects stay readable after the commit: what is returned is data, not a live row.
        self._customer_sessions = sessionmaker(self._customer_engine, class_=CustomerSession, expire_on_commit=False)
        self._system_sessions = sessionmaker(self._system_engine, expire_on_commit=False)
        each_committed = self._system_engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lookups = sessionmaker(each_committed, expire_on_commit=False)
        self.long_locks = LongLocks(settings.system_database_url.get_secret_value())

    @contextmanager
    def customer(self, customer_id: UUID) -> Iterator[Session]:
        """One transaction on behalf of one customer."""
        session = self._customer_sessions(info={"customer_id": customer_id})
        try:
            with session, session.begin():
                yield session
        except StoreError:
            self._tell(customer_id, session.info.get(_TELL, ()))
            raise

    @contextmanager
    def system(self) -> Iterator[Session]:
        """One transaction that sees every customer: claim, sweep, administration."""
        with self._system_sessions() as session, session.begin():
            yield session

    @contextmanager
    def lookup(self) -> Iterator[Session]:
        """As `system`, each statement a transaction of its own: one costs one round trip, not three."""
        with self._lookups() as session:
            yield session

    def _tell(self, customer_id: UUID, actions: Sequence[Callable[[Session], None]]) -> None:
        if not actions:
            return
        try:
            with self.customer(customer_id) as session:
                for action in actions:
                    action(session)
        except DBAPIError as error:  # the refusal is what counts
            logger.warning("a refusal was not told of", extra={"reason": str(error)})

    def close(self) -> None:
        self._customer_engine.dispose()
        self._system_engine.dispose()
        self.long_locks.close()


class LongLocks:
    """Advisory locks that outlast transactions, all of them on one connection; they end with the process, however it
    ends.

    Where the connection breaks, what was held on it is held against this process only. So they spare others work that
    would be in vain, and what must hold is for a constraint to hold.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._held: set[int] = set()
        self._guard = Lock()

    def take(self, number: int) -> bool:
        """Whether nobody else held it; waits for the connection only, as long as for any other."""
        if not self._guard.acquire(timeout=_PATIENCE_SECONDS):
            raise PoolTimeout("the connection of the long locks is busy")
        try:
            if number in self._held or not self._ask("SELECT pg_try_advisory_lock(:number)", number):
                return False
            self._held.add(number)
            return True
        finally:
            self._guard.release()

    def release(self, number: int) -> None:
        with self._guard:
            self._held.discard(number)
            if self._connection is None:
                return
            try:
                self._connection.execute(text("SELECT pg_advisory_unlock(:number)"), {"number": number})
            except DBAPIError:
                self._drop()

    def close(self) -> None:
        """Gives all of them back first: PostgreSQL ends a closed connection, and what it holds, in its own time."""
        with self._guard:
            if self._connection is not None:
                with suppress(DBAPIError):
                    self._connection.execute(text("SELECT pg_advisory_unlock_all()"))
            self._held.clear()
            self._drop()

    def _ask(self, query: str, number: int) -> bool:
        """On the connection, or a new one where that is none any more."""
        if self._connection is not None:
            try:
                return bool(self._connection.scalar(text(query), {"number": number}))
            except OperationalError:
                self._drop()
        self._connection = self._engine.connect()
        return bool(self._connection.scalar(text(query), {"number": number}))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(DBAPIError):
                connection.close()


def _pooled(url: str) -> Engine:
    """Whose connections are seen to hold before they are used again: one that lay idle is pinged, and one that was in
    use just now is looked at. Whoever ended it has left something to be read; only a network that went away has not.
    """
    # Last in, first out: a few connections stay in use, and none lies idle for as long as their number is.
    engine = _engine(url, pool_size=10, max_overflow=10, pool_timeout=_PATIENCE_SECONDS, pool_use_lifo=True)

    @event.listens_for(engine, "checkin")
    def note(connection: _Impatient | None, record: ConnectionPoolEntry) -> None:
        if connection is not None:
            record.info[_IDLE_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def look(connection: _Impatient, record: ConnectionPoolEntry, _fairy: object) -> None:
        since = record.info.get(_IDLE_SINCE)
        if since is None or (time.monotonic() - since < UNASKED_SECONDS and not connection.has_news()):
            return
        try:
            engine.dialect.do_ping(connection)  # type: ignore[arg-type]  # psycopg's are, though they do not say so
        except psycopg.Error as error:
            raise InvalidatePoolError from error  # and none that was made before is used again

    return engine


def _engine(url: str, **options: Any) -> Engine:
    # What statements are given stays out of errors, and so out of logs.
    engine = create_engine(url, connect_args={**CONNECT, **_NOT_FOR_EVER}, hide_parameters=True, **options)
    event.listen(engine, "do_connect", _connect)
    return engine


def _connect(_dialect: object, _record: object, arguments: Sequence[Any], options: dict[str, Any]) -> _Impatient:
    return _Impatient.connect(*arguments, **options)


class _Impatient(psycopg.Connection[Any]):
    """Gives up on a server that takes a question and never answers: frozen, or behind a network that swallows packets.

    Neither the kernel nor PostgreSQL would tell.
    """

    def has_news(self) -> bool:
        """Whether something came that nobody asked for, such as the end."""
        if self.closed:
            return True
        unread = select.poll()
        unread.register(self.pgconn.socket, select.POLLIN)
        return bool(unread.poll(0))

    def wait(self, gen: PQGen[Answer], interval: float = 0.1, timeout: float | None = None) -> Answer:
        begun = time.monotonic()
        try:
            return super().wait(gen, interval, timeout or _ANSWER_SECONDS)
        except psycopg.Error:
            if time.monotonic() - begun < (timeout or _ANSWER_SECONDS):
                raise
            self.pgconn.finish()  # whatever still came would be taken for the answer to something else
            raise psycopg.OperationalError(f"PostgreSQL has not answered for {_ANSWER_SECONDS:g} seconds") from None
