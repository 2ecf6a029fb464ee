"""The audit log: written with the change or not at all, never changed after, and without a customer's text."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.orm import Session

from bpt_store import aliases, audit, customers, ids, prompt_sets
from bpt_store.audit import Action, Actor, Filters
from bpt_store.db import Database
from bpt_store.models import AuditEntry, JobState
from bpt_store.prompt_sets import Publication

ACTOR = Actor(uuid4(), f"req_{'a' * 24}")
RESOURCE = ids.public(ids.DATASET, uuid4())


def record(database: Database, customer_id: UUID, actor: Actor = ACTOR, **more: Any) -> None:
    with database.customer(customer_id) as session:
        audit.act_as(session, actor)
        audit.record(session, **{"action": Action.DATASET_DELETED, "resource": RESOURCE, **more})


def entries(database: Database, customer_id: UUID, **filters: Any) -> list[AuditEntry]:
    with database.system() as session:
        return list(session.scalars(audit.entries(customer_id, Filters(**filters)).order_by(AuditEntry.id)))


def test_an_entry_tells_who_what_when_and_by_which_request(database: Database, customer_id: UUID) -> None:
    facts = {"state": JobState.PAUSED, "version": 3, "key": ids.public(ids.KEY, uuid4()), "none": None}
    record(database, customer_id, before={}, after=facts)
    (entry,) = entries(database, customer_id)
    assert (entry.customer_id, entry.actor, entry.request_id) == (customer_id, ACTOR.key_id, ACTOR.request_id)
    assert (entry.action, entry.resource) == ("dataset.deleted", RESOURCE)
    assert (entry.before, entry.after) == ({}, {**facts, "state": "paused"})
    assert abs(entry.at - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_entry_is_there_exactly_if_the_change_is(database: Database, customer_id: UUID) -> None:
    with suppress(ZeroDivisionError), database.customer(customer_id) as session:
        audit.act_as(session, ACTOR)
        audit.record(session, Action.DATASET_DELETED, RESOURCE)
        raise ZeroDivisionError
    assert entries(database, customer_id) == []


def test_what_nobody_asked_for_is_not_in_it(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        audit.record(session, Action.DATASET_DELETED, RESOURCE)
    assert entries(database, customer_id) == []


@pytest.mark.parametrize("said", ["birds", "ps_birds", "acme, Inc.", "key_" + "0" * 31, ["datasets:read"]])
def test_text_that_may_be_a_customers_is_not_let_in(database: Database, customer_id: UUID, said: object) -> None:
    with pytest.raises(AssertionError):
        record(database, customer_id, after={"name": said})
    assert entries(database, customer_id) == []


def test_of_a_request_id_that_the_caller_chose_only_the_hash_is_kept(database: Database, customer_id: UUID) -> None:
    for request_id in ("acme-1", "req_acme", None):
        record(database, customer_id, Actor(uuid4(), request_id))
    first, second, none = [entry.request_id for entry in entries(database, customer_id)]
    assert first == "sha256:7974d1de1641df0234e124a5d0f4acfa"
    assert second is not None
    assert "acme" not in second
    assert none is None


STATEMENTS = ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_it_is_append_only_for_everybody(database: Database, owner: Engine, customer_id: UUID, statement: str) -> None:
    record(database, customer_id)
    for session in (database.customer(customer_id), database.system()):
        with pytest.raises(ProgrammingError, match="permission denied"), session as opened:
            opened.execute(text(statement))
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE audit_log NO FORCE ROW LEVEL SECURITY"))
    with pytest.raises(DBAPIError, match="append-only"), owner.begin() as connection:
        connection.execute(text(statement))
    assert len(entries(database, customer_id)) == 1


def test_it_outlives_the_customer_and_does_not_know_his_name(database: Database, customer_id: UUID) -> None:
    with database.system() as session:
        audit.act_as(session, ACTOR)
        audit.record(session, Action.CUSTOMER_CREATED, ids.public(ids.CUSTOMER, customer_id), customer_id=customer_id)
        customers.delete(session, customer_id, "acme", look_again_seconds=0)
    assert [entry.action for entry in entries(database, customer_id)] == ["customer.created"]
    with database.system() as session:
        assert "acme" not in str(session.execute(text("SELECT audit_log::text FROM audit_log")).all())


def test_entries_are_found_by_what_who_and_when(database: Database, customer_id: UUID) -> None:
    other = Actor(uuid4(), None)
    record(database, customer_id)
    record(database, customer_id, other, action=Action.JOB_CREATED, resource="job_1")
    first, second = entries(database, customer_id)

    def found(**filters: Any) -> list[UUID]:
        return [entry.id for entry in entries(database, customer_id, **filters)]

    assert found(action=Action.JOB_CREATED) == found(actor=other.key_id) == found(resource="job_1") == [second.id]
    assert found(since=second.at) == [second.id]
    assert found(until=second.at) == [first.id]
    assert found(action=Action.JOB_CREATED, actor=ACTOR.key_id) == []
    assert entries(database, uuid4()) == []


def test_moves_of_an_alias_are_told_by_their_versions_and_only_if_it_moved(
    database: Database, customer_id: UUID
) -> None:
    def act(session: Session) -> None:
        audit.act_as(session, ACTOR)

    with database.customer(customer_id) as session:
        act(session)
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        for _ in range(2):
            publication = Publication(b"artifact", "backbone", "fingerprint", ["a", "b"], {}, 1, {})
            prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=uuid4())
        for version in (1, 2, 2):
            aliases.move(session, prompt_set.id, "production", version, actor="key")
        aliases.rollback(session, prompt_set.id, "production", actor="key")
        aliases.remove(session, prompt_set.id, "production", actor="key")
        told = session.execute(select(AuditEntry.action, AuditEntry.before, AuditEntry.after).order_by(AuditEntry.id))
        moves = [(action.rpartition(".")[2], before["version"], after["version"]) for action, before, after in told]
    assert moves == [("moved", None, 1), ("moved", 1, 2), ("moved", 2, 1), ("removed", 1, None)]
