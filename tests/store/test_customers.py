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


def test_the_first_administrators_key_is_made_once(database: Database) -> None:
    with database.system() as session:
        token = customers.bootstrap(session)
    assert token is not None
    with database.system() as session:
        assert customers.bootstrap(session) is None
        identity = customers.authenticate(session, token)
    assert identity.customer_id is None
    assert identity.scopes == {"admin"}


def test_two_customers_cannot_have_one_name(database: Database, customer_id: UUID) -> None:
    with pytest.raises(Conflict) as caught, database.system() as session:
        customers.create(session, "acme")
    assert caught.value.code == "name_taken"
