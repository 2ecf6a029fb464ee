"""Connections to PostgreSQL under two of its three roles: bpt_customer (walled in) and bpt_system (sees all)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from bpt_store.settings import Settings

# Bounded waiting: a database that is away gives an error within seconds, never a hang.
_CONNECT = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 5, "keepalives_interval": 2}


class CustomerSession(Session):
    """A session whose every transaction is limited to one customer by row-level security."""


@event.listens_for(CustomerSession, "after_begin")
def _limit_to_customer(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    connection.execute(
        text("SELECT set_config('app.customer_id', :customer_id, true)"),
        {"customer_id": str(session.info["customer_id"])},
    )


class Database:
    """Sessions that commit when their block ends well and roll back when it does not."""

    def __init__(self, settings: Settings) -> None:
        self._customer_engine = _engine(settings.database_url.get_secret_value())
        self._system_engine = _engine(settings.system_database_url.get_secret_value())
        # Objects stay readable after the commit: what is returned is data, not a live row.
        self._customer_sessions = sessionmaker(self._customer_engine, class_=CustomerSession, expire_on_commit=False)
        self._system_sessions = sessionmaker(self._system_engine, expire_on_commit=False)

    @contextmanager
    def customer(self, customer_id: UUID) -> Iterator[Session]:
        """One transaction on behalf of one customer."""
        with self._customer_sessions(info={"customer_id": customer_id}) as session, session.begin():
            yield session

    @contextmanager
    def system(self) -> Iterator[Session]:
        """One transaction that sees every customer: key lookup, claim, sweep, administration."""
        with self._system_sessions() as session, session.begin():
            yield session

    def close(self) -> None:
        self._customer_engine.dispose()
        self._system_engine.dispose()


def _engine(url: str) -> Engine:
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_timeout": 5, "pool_size": 10, "max_overflow": 10}
    return create_engine(url, connect_args=_CONNECT, **options)
