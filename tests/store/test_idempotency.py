"""Keys of senders: a lock while a request is under way, a record that commits with what was done, or neither."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from bpt_store import customers, idempotency
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.errors import Conflict, Invalid
from bpt_store.idempotency import Reply, Sender
from bpt_store.settings import Settings

REQUEST, OTHER_REQUEST = b"1" * 32, b"2" * 32
REPLY = Reply(201, b'{"id": "job_1"}', "/v1/tuning-jobs/job_1")


def answered(session: Session, sender: Sender, key: str = "key") -> Reply | None:
    record = idempotency.begin(session, sender, key)
    return None if record is None else idempotency.reply_of(record, sender, key, REQUEST)


def kill(database: Database, connection: Connection | None) -> None:
    """Its server process ends: as if the one that opened it had been killed."""
    assert connection is not None
    process = connection.scalar(text("SELECT pg_backend_pid()"))
    with database.system() as session:
        assert session.scalar(text("SELECT pg_terminate_backend(:process, 5000)"), {"process": process})


def test_an_answer_is_kept_with_what_was_done_and_given_again(database: Database, customer_id: UUID) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        assert answered(session, sender) is None
        idempotency.keep(session, sender, "key", REQUEST, REPLY, 24)
    with database.customer(customer_id) as session:
        assert answered(session, sender) == REPLY
        assert answered(session, sender, "another key") is None


def test_what_is_rolled_back_frees_its_key(database: Database, customer_id: UUID) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        idempotency.begin(session, sender, "key")
        idempotency.keep(session, sender, "key", REQUEST, REPLY, 24)
        session.rollback()
    with database.customer(customer_id) as session:
        assert answered(session, sender) is None


def test_another_request_under_the_same_key_is_refused(database: Database, customer_id: UUID) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        idempotency.keep(session, sender, "key", REQUEST, REPLY, 24)
    with database.customer(customer_id) as session:
        record = idempotency.begin(session, sender, "key")
        assert record is not None
        with pytest.raises(Invalid) as caught:
            idempotency.reply_of(record, sender, "key", OTHER_REQUEST)
    assert caught.value.code == "idempotency_key_reused"


def test_while_a_request_is_under_way_its_twin_is_told_so_and_others_are_not(
    database: Database, customer_id: UUID
) -> None:
    with database.system() as session:
        other_id = customers.create(session, "other").id
    with database.customer(customer_id) as first:
        idempotency.begin(first, Sender.customer(customer_id), "key")
        with pytest.raises(Conflict) as caught, database.customer(customer_id) as second:
            idempotency.begin(second, Sender.customer(customer_id), "key")
        assert caught.value.code == "idempotency_in_progress"
        with database.customer(customer_id) as second:
            assert answered(second, Sender.customer(customer_id), "another key") is None
        with database.customer(other_id) as second:
            assert answered(second, Sender.customer(other_id)) is None


def test_a_transaction_whose_connection_ends_blocks_nobody_and_leaves_nothing(
    database: Database, customer_id: UUID
) -> None:
    """An administrator's, for bpt_system may end its own connections only."""
    sender = Sender.administrator(uuid4(), "bpt_id_secret")

    def begin_and_die() -> None:
        with database.system() as session:
            idempotency.begin(session, sender, "key")
            idempotency.keep(session, sender, "key", REQUEST, REPLY, 24)
            kill(database, session.connection())

    with pytest.raises(DBAPIError):
        begin_and_die()
    with database.system() as session:
        assert answered(session, sender) is None


def test_a_twin_that_got_past_the_lock_keeps_nothing(database: Database, customer_id: UUID) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        assert idempotency.find(session, sender, "key") is None
        with database.customer(customer_id) as twin:
            idempotency.keep(twin, sender, "key", REQUEST, REPLY, 24)
        with pytest.raises(Conflict, match="under way"):
            idempotency.keep(session, sender, "key", REQUEST, Reply(201, b"{}"), 24)
    with database.customer(customer_id) as session:
        assert answered(session, sender) == REPLY


def test_an_expired_record_counts_for_nothing_and_is_swept(database: Database, customer_id: UUID) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        for key in ("key", "swept"):
            idempotency.keep(session, sender, key, OTHER_REQUEST, Reply(200, b"{}"), 24)
        idempotency.keep(session, sender, "young", REQUEST, REPLY, 24)
    with database.system() as session:
        assert idempotency.forget_expired(session) == 0
        session.execute(
            text("UPDATE idempotency_records SET expires_at = now() WHERE request_sha256 = :old"),
            {"old": OTHER_REQUEST},
        )
    with database.customer(customer_id) as session:
        assert answered(session, sender) is None
        idempotency.keep(session, sender, "key", REQUEST, REPLY, 24)
    with database.customer(customer_id) as session:
        assert answered(session, sender) == REPLY
    with database.system() as session:
        assert idempotency.forget_expired(session) == 1
        assert session.scalar(text("SELECT count(*) FROM idempotency_records")) == 2


def test_what_an_administrator_is_told_cannot_be_read_in_the_table(database: Database) -> None:
    with database.system() as session:
        key, token = customers.create_key(session, None, "administrator", [Scope.ADMIN])
        sender = Sender.administrator(key.id, token)
        for name in ("key", "other"):
            idempotency.keep(session, sender, name, REQUEST, Reply(201, b"the secret " * 40), 24)
    with database.system() as session:
        bodies = list(session.scalars(text("SELECT body FROM idempotency_records")))
        found = idempotency.begin(session, sender, "key")
        assert found is not None
        assert idempotency.reply_of(found, sender, "key", REQUEST) == Reply(201, b"the secret " * 40)
    assert not any(b"secret" in body for body in bodies)
    assert bodies[0] != bodies[1]
    assert token.split("_", 2)[2] not in repr(sender)


def test_a_customer_cannot_take_a_key_away_from_another(database: Database, customer_id: UUID) -> None:
    with pytest.raises(IntegrityError, match="idempotency_records_owner"), database.customer(customer_id) as session:
        idempotency.keep(session, Sender(uuid4(), customer_id), "key", REQUEST, REPLY, 24)


# --- locks for longer than a transaction -----------------------------------------------------------------------


def test_a_long_lock_is_held_against_all_until_it_is_released(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    other = Database(settings)  # as another process has it
    number = idempotency.lock_number(Sender.customer(customer_id), "key")
    assert database.long_locks.take(number)
    assert not database.long_locks.take(number)
    assert not other.long_locks.take(number)
    with pytest.raises(Conflict), other.customer(customer_id) as session:
        idempotency.begin(session, Sender.customer(customer_id), "key")
    assert database.long_locks.take(number + 1)
    database.long_locks.release(number)
    assert other.long_locks.take(number)
    assert not database.long_locks.take(number)
    other.close()
    assert database.long_locks.take(number)


def test_a_long_lock_ends_with_its_connection_and_a_new_one_is_made(settings: Settings, database: Database) -> None:
    other = Database(settings)
    assert database.long_locks.take(1)
    kill(database, database.long_locks._connection)
    assert other.long_locks.take(1)
    assert not database.long_locks.take(1)
    assert database.long_locks.take(2)
    database.long_locks.release(1)
    assert not other.long_locks.take(2)
    other.close()


def test_no_connection_is_made_for_long_locks_until_one_is_asked_for(settings: Settings, database: Database) -> None:
    def connections() -> int:
        engine = create_engine(settings.system_database_url.get_secret_value())
        with engine.connect() as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            count = connection.scalar(text(query))
        engine.dispose()
        return int(count or 0)

    before = connections()
    assert database.long_locks.take(1)
    assert connections() == before + 1
