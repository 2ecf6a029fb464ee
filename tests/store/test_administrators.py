"""Administrators' keys: the first one, and that one always holds for good."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from bpt_store import administrators, customers
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.errors import Conflict, NotFound, Unauthenticated

SOON = datetime.now(UTC) + timedelta(days=1)


def make_key(database: Database, expires_at: datetime | None = None) -> tuple[UUID, str]:
    with database.system() as session:
        key, token = administrators.create_key(session, "k", expires_at)
        return key.id, token


def test_the_first_administrators_key_is_made_once(database: Database) -> None:
    with database.system() as session:
        token = administrators.bootstrap(session)
    assert token is not None
    with database.system() as session:
        assert administrators.bootstrap(session) is None
        identity = customers.authenticate(session, token)
    assert identity.customer_id is None
    assert identity.scopes == {"admin"}


def test_who_has_only_keys_that_have_ended_begins_again(database: Database) -> None:
    make_key(database, datetime.now(UTC) - timedelta(days=1))
    with database.system() as session:
        assert administrators.bootstrap(session) is not None
        assert administrators.bootstrap(session) is None


def test_the_last_key_that_holds_for_good_cannot_be_revoked(database: Database) -> None:
    (only, token), _ = make_key(database), make_key(database, SOON)
    with pytest.raises(Conflict) as refused, database.system() as session:
        administrators.revoke_key(session, only)
    assert refused.value.code == "last_admin_key"
    with database.system() as session:
        assert customers.authenticate(session, token).scopes == {Scope.ADMIN}
    other, _ = make_key(database)
    with database.system() as session:
        assert administrators.revoke_key(session, only).revoked_at is not None
    with pytest.raises(Unauthenticated), database.system() as session:
        customers.authenticate(session, token)
    with pytest.raises(Conflict), database.system() as session:
        administrators.revoke_key(session, other)


def test_the_last_one_is_rotated_and_its_successor_holds_for_good(database: Database) -> None:
    only, token = make_key(database)
    with database.system() as session:
        key, new = administrators.rotate_key(session, only, overlap_seconds=3600)
        assert key.expires_at is None
    with database.system() as session:
        for each in (token, new):
            assert customers.authenticate(session, each).customer_id is None
    with pytest.raises(Conflict), database.system() as session:
        administrators.revoke_key(session, key.id)  # the old one holds for an hour only


def test_a_rotation_that_would_leave_none_for_good_is_refused(database: Database) -> None:
    """As they may be in a database from before."""
    ending, _ = make_key(database, SOON)
    with pytest.raises(Conflict) as refused, database.system() as session:
        administrators.rotate_key(session, ending, overlap_seconds=0)
    assert refused.value.code == "last_admin_key"
    with database.system() as session:
        assert [key.expires_at for key in session.scalars(administrators.keys())] == [SOON]


def test_two_that_end_each_others_key_at_once_leave_one(database: Database) -> None:
    one, two = make_key(database)[0], make_key(database)[0]
    refused: list[Conflict] = []

    def revoke(key_id: UUID) -> None:
        try:
            with database.system() as session:
                administrators.revoke_key(session, key_id)
                session.execute(text("SELECT pg_sleep(0.1)"))
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=revoke, args=(key_id,)) for key_id in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


def test_a_customers_key_is_none_of_administrators(database: Database, customer_id: UUID) -> None:
    make_key(database)
    with database.system() as session:
        theirs, token = customers.create_key(session, customer_id, "k", [Scope.PREDICT])
    for act in (administrators.get_key, administrators.revoke_key):
        with pytest.raises(NotFound), database.system() as session:
            act(session, theirs.id)
    with pytest.raises(NotFound), database.system() as session:
        administrators.rotate_key(session, theirs.id, overlap_seconds=0)
    with database.system() as session:
        assert customers.authenticate(session, token).customer_id == customer_id
