"""Damaged artifacts: who finds one marks it, nobody is served by it, and the same bytes bring it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text

from bpt_store import aliases, audit, customers, ids, jobs, logs, prompt_sets, quarantine
from bpt_store.audit import Filters
from bpt_store.batch_predictions import _resolved, artifacts
from bpt_store.db import Database
from bpt_store.errors import Conflict, Damaged
from bpt_store.models import AuditEntry, JobKind, PromptSetVersion
from bpt_store.prompt_sets import Publication

Spoil = Callable[[str], None]


@pytest.fixture
def birds(database: Database, customer_id: UUID) -> UUID:
    """Versions 1 and 2; `production` points at the second."""
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds")
        for data in (b"one", b"two"):
            made = Publication(data, "vit", "f", ["a", "b"], {}, 1, {})
            prompt_sets.publish(session, birds.id, made, job_id=None, dataset_id=None)
        aliases.move(session, birds.id, "production", 2, actor="key")
        return birds.id


@pytest.fixture
def spoil(database: Database, customer_id: UUID, birds: UUID) -> Spoil:
    def write(content: str) -> None:
        with database.customer(customer_id) as session:
            session.execute(
                text("UPDATE prompt_set_versions SET artifact = :content WHERE version = 2"),
                {"content": content.encode()},
            )

    return write


def read(database: Database, customer_id: UUID, reference: str = "birds:2") -> bytes:
    with database.customer(customer_id) as session:
        return prompt_sets.artifact(session, prompt_sets.resolve(session, reference)[1])


def second(database: Database, customer_id: UUID) -> PromptSetVersion:
    with database.customer(customer_id) as session:
        return prompt_sets.resolve(session, "birds:2")[1]


def log_of(database: Database, customer_id: UUID) -> list[AuditEntry]:
    with database.system() as session:
        return list(session.scalars(audit.entries(customer_id, Filters())))


def quarantined(database: Database) -> int:
    with database.system() as session:
        return quarantine.count(session)


def test_whoever_reads_damaged_bytes_puts_the_version_into_quarantine_once(
    database: Database, customer_id: UUID, birds: UUID, spoil: Spoil, caplog: pytest.LogCaptureFixture
) -> None:
    spoil("tWo")
    token = logs.request_id.set("req_" + "1" * 24)
    try:
        for _ in range(2):
            with pytest.raises(Damaged, match="birds:2"):
                read(database, customer_id)
    finally:
        logs.request_id.reset(token)
    row = second(database, customer_id)
    assert (row.quarantined_at is not None, row.quarantine_reason) == (True, quarantine.ALTERED)
    [entry] = log_of(database, customer_id)
    assert (entry.action, entry.resource) == ("prompt_set.version.quarantined", ids.public(ids.PROMPT_SET, birds))
    assert (entry.actor, entry.after, entry.request_id) == (audit.SERVICE, {"version": 2}, "req_" + "1" * 24)
    assert [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR] == [
        "a version is in quarantine"
    ]
    assert quarantined(database) == 1
    assert read(database, customer_id, "birds:1") == b"one"


def test_bytes_that_were_garbled_on_the_way_only_are_refused_and_put_nothing_into_quarantine(
    database: Database, customer_id: UUID, birds: UUID
) -> None:
    with pytest.raises(Damaged), database.customer(customer_id) as session:
        raise quarantine.altered(session, prompt_sets.resolve(session, "birds:2")[1])
    assert second(database, customer_id).quarantined_at is None
    assert log_of(database, customer_id) == []


def test_what_cannot_be_read_is_in_quarantine_although_it_is_what_was_published(
    database: Database, customer_id: UUID, birds: UUID
) -> None:
    with pytest.raises(Damaged, match="birds:2"), database.customer(customer_id) as session:
        raise quarantine.unreadable(session, prompt_sets.resolve(session, "birds:2")[1], "no header")
    assert "no header" in str(second(database, customer_id).quarantine_reason)
    with pytest.raises(Damaged, match=r"birds:2 is in quarantine since 20.*no header"):
        read(database, customer_id)


def test_aliases_stay_and_none_moves_to_it(database: Database, customer_id: UUID, birds: UUID, spoil: Spoil) -> None:
    spoil("tWo")
    with pytest.raises(Damaged):
        read(database, customer_id, "birds@production")
    with database.customer(customer_id) as session:
        assert aliases.get(session, birds, "production").version == 2
        aliases.move(session, birds, "production", 1, actor="key")
    with pytest.raises(Conflict) as refused, database.customer(customer_id) as session:
        aliases.move(session, birds, "staging", 2, actor="key")
    assert refused.value.code == "version_quarantined"
    with pytest.raises(Conflict) as refused, database.customer(customer_id) as session:
        aliases.rollback(session, birds, "production", actor="key")
    assert refused.value.code == "version_quarantined"


def test_no_batch_prediction_begins_with_it_and_one_that_waits_finds_it(
    database: Database, customer_id: UUID, birds: UUID, spoil: Spoil
) -> None:
    with database.customer(customer_id) as session:
        payload = {"prompt_sets": _resolved(session, ["birds:2"])}
        job = jobs.create(
            session, customer_id, JobKind.BATCH_PREDICT, dataset_id=birds, dataset_version=1, payload=payload
        )
    spoil("tWo")
    with pytest.raises(Damaged), database.customer(customer_id) as session:
        artifacts(session, job)
    assert second(database, customer_id).quarantined_at is not None
    with pytest.raises(Damaged), database.customer(customer_id) as session:
        _resolved(session, ["birds:1", "birds:2"])


def test_the_same_bytes_bring_it_back_and_others_do_not(
    database: Database, customer_id: UUID, birds: UUID, spoil: Spoil
) -> None:
    spoil("tWo")
    with pytest.raises(Damaged):
        read(database, customer_id)
    with pytest.raises(Conflict) as refused, database.customer(customer_id) as session:
        prompt_sets.release(session, "birds", 2, b"tWo")
    assert refused.value.code == "artifact_mismatch"
    assert second(database, customer_id).quarantined_at is not None
    with database.customer(customer_id) as session:
        assert prompt_sets.release(session, "birds", 2, b"two")[1] is True
    assert read(database, customer_id) == b"two"
    assert (second(database, customer_id).quarantine_reason, quarantined(database)) == (None, 0)
    with database.customer(customer_id) as session:
        assert prompt_sets.release(session, "birds", 2, b"two")[1] is False


def test_it_is_released_once_the_stored_bytes_are_right_again_and_not_before(
    database: Database, customer_id: UUID, birds: UUID, spoil: Spoil
) -> None:
    spoil("tWo")
    for _ in range(2):  # found out by the attempt itself, and still so
        with pytest.raises(Damaged), database.customer(customer_id) as session:
            prompt_sets.release(session, "birds", 2)
        assert second(database, customer_id).quarantined_at is not None
    spoil("two")
    with pytest.raises(Damaged):  # what has been repaired stays away until somebody says that it has
        read(database, customer_id)
    with database.customer(customer_id) as session:
        assert prompt_sets.release(session, "birds", 2)[1] is True
    assert read(database, customer_id) == b"two"


def test_it_is_put_back_before_anybody_has_found_out(
    database: Database, customer_id: UUID, birds: UUID, spoil: Spoil
) -> None:
    spoil("tWo")
    with database.customer(customer_id) as session:
        assert prompt_sets.release(session, "birds", 2, b"two")[1] is True
    assert read(database, customer_id) == b"two"


def test_others_cannot_put_anything_back(database: Database, customer_id: UUID, birds: UUID, spoil: Spoil) -> None:
    spoil("tWo")
    with database.system() as session:
        other = customers.create(session, "other").id
    with pytest.raises(Exception, match="no prompt set"), database.customer(other) as session:
        prompt_sets.release(session, "birds", 2, b"two")
