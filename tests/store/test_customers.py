"""Keys: what holds, what no longer does, and that secrets are not kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from bpt_store import customers
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.errors import Conflict, NotFound, Unauthenticated


def make_key(database: Database, customer_id: UUID, expires_at: datetime | None = None) -> tuple[UUID, str]:
    with database.system() as session:
        key, token = customers.create_key(session, customer_id, "k", [Scope.PREDICT], expires_at)
        return key.id, token


def test_a_key_says_who_and_what_for(database: Database, customer_id: UUID) -> None:
    key_id, token = make_key(database, customer_id)
    with database.system() as session:
        identity = customers.authenticate(session, token)
    assert (identity.key_id, identity.customer_id) == (key_id, customer_id)
    assert identity.scopes == {"predict"}


def test_secrets_are_not_in_the_database(database: Database, customer_id: UUID) -> None:
    _, token = make_key(database, customer_id)
    secret = token.split("_", 2)[2]
    with database.system() as session:
        rows = str(list(session.execute(text("SELECT * FROM api_keys"))))
    assert secret not in rows


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: "",
        lambda token: "bpt_",
        lambda token: token[:-1],
        lambda token: token + "x",
        lambda token: token.replace("bpt_", "abc_"),
        lambda token: "bpt_" + "0" * 32 + "_" + token.split("_", 2)[2],
        lambda token: "bpt_" + "g" * 32 + "_x",
        lambda token: token.replace("_", "-"),
        lambda token: token[:-1] + "\udcff",
    ],
)
def test_anything_but_the_token_itself_is_refused(database: Database, customer_id: UUID, spoil: object) -> None:
    _, token = make_key(database, customer_id)
    assert callable(spoil)
    with pytest.raises(Unauthenticated), database.system() as session:
        customers.authenticate(session, spoil(token))


def test_an_expired_key_is_refused(database: Database, customer_id: UUID) -> None:
    _, token = make_key(database, customer_id, datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(Unauthenticated), database.system() as session:
        customers.authenticate(session, token)


def test_a_revoked_key_is_refused_from_the_next_request_on(database: Database, customer_id: UUID) -> None:
    key_id, token = make_key(database, customer_id)
    for _ in range(2):
        with database.system() as session:
            customers.revoke_key(session, customer_id, key_id)
    with pytest.raises(Unauthenticated), database.system() as session:
        customers.authenticate(session, token)


def test_somebody_elses_key_cannot_be_revoked(database: Database, customer_id: UUID) -> None:
    key_id, _ = make_key(database, customer_id)
    with database.system() as session:
        other = customers.create(session, "other").id
    with pytest.raises(NotFound), database.system() as session:
        customers.revoke_key(session, other, key_id)


def test_two_customers_cannot_have_one_name(database: Database, customer_id: UUID) -> None:
    with pytest.raises(Conflict) as caught, database.system() as session:
        customers.create(session, "acme")
    assert caught.value.code == "name_taken"


# --- rotation --------------------------------------------------------------------------------------------------


def holds(database: Database, token: str) -> bool:
    try:
        with database.system() as session:
            customers.authenticate(session, token)
    except Unauthenticated:
        return False
    return True


def test_a_rotated_key_and_the_new_one_both_hold_until_the_overlap_is_over(
    database: Database, customer_id: UUID
) -> None:
    old_id, old = make_key(database, customer_id)
    with database.system() as session:
        key, new = customers.rotate_key(session, old_id, overlap_seconds=60)
        assert (key.customer_id, key.name, key.scopes, key.expires_at) == (customer_id, "k", ["predict"], None)
    assert holds(database, old)
    assert holds(database, new)
    with database.system() as session:
        customers.rotate_key(session, old_id, overlap_seconds=0)  # no longer after all
    assert not holds(database, old)
    assert holds(database, new)


def test_a_rotation_makes_no_key_live_longer_than_it_was_to(database: Database, customer_id: UUID) -> None:
    ends = datetime.now(UTC) + timedelta(minutes=5)
    old_id, _ = make_key(database, customer_id, ends)
    with database.system() as session:
        key, _ = customers.rotate_key(session, old_id, overlap_seconds=3600)
        assert customers.get_key(session, old_id).expires_at == ends
        assert key.expires_at is not None
        assert key.expires_at - ends < timedelta(minutes=1)  # five minutes from now again


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_a_key_that_has_ended_is_not_rotated(database: Database, customer_id: UUID, ended: str) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    key_id, _ = make_key(database, customer_id, past if ended == "expired" else None)
    if ended == "revoked":
        with database.system() as session:
            customers.revoke_key(session, customer_id, key_id)
    with pytest.raises(Conflict) as caught, database.system() as session:
        customers.rotate_key(session, key_id, overlap_seconds=60)
    assert caught.value.code == "key_ended"


def test_an_administrators_key_is_not_among_those_of_customers(database: Database) -> None:
    with database.system() as session:
        key, _ = customers.create_key(session, None, "administrator", [Scope.ADMIN])
    with pytest.raises(NotFound), database.system() as session:
        customers.get_key(session, key.id)


# --- last use --------------------------------------------------------------------------------------------------


def writes(database: Database, key_id: UUID) -> tuple[object, object]:
    """(when the key was last used, the transaction that wrote the row)."""
    with database.system() as session:
        found = session.execute(text("SELECT last_used_at, xmin::text FROM api_keys WHERE id = :id"), {"id": key_id})
        used, written = found.one()
        return used, written


def test_the_last_use_of_a_key_is_written_once_a_minute_and_not_with_each_request(
    database: Database, customer_id: UUID
) -> None:
    key_id, token = make_key(database, customer_id)
    assert writes(database, key_id)[0] is None
    assert holds(database, token)
    first = writes(database, key_id)
    assert first[0] is not None
    assert holds(database, token)
    assert writes(database, key_id) == first
    with database.system() as session:
        session.execute(text("UPDATE api_keys SET last_used_at = now() - interval '61 seconds'"))
    old = writes(database, key_id)
    assert holds(database, token)
    assert writes(database, key_id) > old


def test_a_refused_request_is_no_use_of_a_key(database: Database, customer_id: UUID) -> None:
    key_id, token = make_key(database, customer_id)
    assert not holds(database, token + "x")
    assert writes(database, key_id)[0] is None


def test_no_request_waits_for_another_that_notes_the_use(database: Database, customer_id: UUID) -> None:
    _, token = make_key(database, customer_id)
    with database.system() as noting:
        customers.authenticate(noting, token)
        with database.system() as session:
            session.execute(text("SET LOCAL lock_timeout = '1s'"))
            assert customers.authenticate(session, token).customer_id == customer_id
