"""Connections that are used again: pinged after they lay idle, and never handed out dead."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from bpt_store import db
from bpt_store.db import Database


def process(session: Session) -> int:
    return int(session.scalars(text("SELECT pg_backend_pid()")).one())


def pings(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with each."""
    dialect, seen = database._system_engine.dialect, []
    ping = dialect.do_ping

    def counted(connection: object) -> bool:
        seen.append(connection)
        return bool(ping(connection))  # type: ignore[arg-type]

    monkeypatch.setattr(dialect, "do_ping", counted)
    return seen


def test_a_connection_is_pinged_only_after_it_lay_idle(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database._system_engine.dispose()  # connections of other tests'
    seen = pings(database, monkeypatch)
    monkeypatch.setattr(db, "UNASKED_SECONDS", 600.0)
    with database.system() as session:
        first = process(session)
    with database.system() as session:
        assert process(session) == first
    assert seen == []
    monkeypatch.setattr(db, "UNASKED_SECONDS", 0.0)
    with database.system() as session:
        assert process(session) == first
    assert len(seen) == 1


def test_each_statement_of_a_lookup_is_a_transaction_of_its_own(database: Database) -> None:
    now = text("SELECT now(), pg_current_xact_id()")
    with database.lookup() as session:
        assert session.execute(now).one() != session.execute(now).one()
    with database.system() as session:  # on the same connection
        assert session.execute(now).one() == session.execute(now).one()


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_a_connection_that_the_server_ended_is_replaced_before_it_is_used(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(db, "UNASKED_SECONDS", seconds)
    with database.system() as other:
        process(other)
        with database.system() as session:
            ended = process(session)
        assert other.scalar(text("SELECT pg_terminate_backend(:process, 5000)"), {"process": ended})
        with database.system() as session:
            assert process(session) != ended
