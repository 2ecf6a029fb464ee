"""Prompt sets: versions without gaps, names and references."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import aliases, jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Conflict, Damaged, NotFound, StoreError
from bpt_store.models import JobKind
from bpt_store.prompt_sets import Label, Publication


def publish(database: Database, customer_id: UUID, name: str, artifact: bytes = b"artifact") -> int:
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, name)
        publication = Publication(artifact, "backbone", "fingerprint", ["a", "b"], {}, 1, {})
        return prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None).version


def test_versions_count_from_one_for_each_name(database: Database, customer_id: UUID) -> None:
    found = [publish(database, customer_id, name) for name in ("birds", "birds", "cars", "birds")]
    assert found == [1, 2, 1, 3]


def test_versions_published_at_once_have_no_gap_and_no_double(database: Database, customer_id: UUID) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(publish(database, customer_id, "birds"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 9))


def test_a_name_means_the_newest_version_that_is_not_archived(database: Database, customer_id: UUID) -> None:
    for content in (b"one", b"two", b"three"):
        publish(database, customer_id, "birds", content)
    with database.customer(customer_id) as session:
        session.execute(text("UPDATE prompt_set_versions SET archived_at = now() WHERE version = 3"))
    with database.customer(customer_id) as session:
        _, newest = prompt_sets.resolve(session, "birds")
        _, third = prompt_sets.resolve(session, "birds:3")
        assert prompt_sets.artifact(session, newest) == b"two"
        assert newest.artifact_sha256 == hashlib.sha256(b"two").hexdigest()
        assert (newest.version, third.version) == (2, 3)
        assert prompt_sets.newest_versions(session, [newest.prompt_set_id]) == {newest.prompt_set_id: 2}


@pytest.mark.parametrize(
    "reference", ["birds:4", "cars", "birds:", "birds:0", "birds:-1", "birds:x", "", "birds@production", "bi\x00rds"]
)
def test_what_names_nothing_is_not_found(database: Database, customer_id: UUID, reference: str) -> None:
    publish(database, customer_id, "birds")
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        prompt_sets.resolve(session, reference)


def test_stored_bytes_that_changed_are_never_given_out(database: Database, customer_id: UUID) -> None:
    publish(database, customer_id, "birds")
    with database.customer(customer_id) as session:
        session.execute(text("UPDATE prompt_set_versions SET artifact = 'artifacT'"))
    with pytest.raises(Damaged), database.customer(customer_id) as session:
        prompt_sets.artifact(session, prompt_sets.resolve(session, "birds")[1])


def test_a_prompt_set_without_a_version_resolves_to_nothing(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        prompt_sets.get_or_create(session, customer_id, "birds")
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        prompt_sets.resolve(session, "birds")


def code_of(database: Database, customer_id: UUID, verb: Callable[..., object], *given: object) -> str:
    """What a verb in a transaction of its own is refused with."""
    with pytest.raises(StoreError) as caught, database.customer(customer_id) as session:
        verb(session, *given)
    return caught.value.code


def test_a_prompt_set_is_made_once_and_labelled_part_by_part(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        made = prompt_sets.create(session, customer_id, "birds", Label("of the lake", {"team": "a"}))
        assert prompt_sets.get_or_create(session, customer_id, "birds").id == made.id
    assert code_of(database, customer_id, prompt_sets.create, customer_id, "birds") == "name_taken"
    for label, found in (
        (Label(), ("of the lake", {"team": "a"})),
        (Label(metadata={"team": "b"}), ("of the lake", {"team": "b"})),
        (Label(description=""), (None, {"team": "b"})),
    ):
        with database.customer(customer_id) as session:
            label.put_on(prompt_sets.get(session, "birds"))
        with database.customer(customer_id) as session:
            row = prompt_sets.get(session, "birds")
            assert (row.description, row.custom) == found


def test_the_number_of_a_deleted_version_is_never_given_again(database: Database, customer_id: UUID) -> None:
    for _ in range(3):
        publish(database, customer_id, "birds")
    for number in (3, 1):
        with database.customer(customer_id) as session:
            prompt_sets.archive(session, "birds", number)
            prompt_sets.delete_version(session, "birds", number)
    assert publish(database, customer_id, "birds") == 4
    with database.customer(customer_id) as session:
        assert prompt_sets.versions(session, prompt_sets.get(session, "birds").id) == [2, 4]


def test_what_an_alias_points_at_is_not_archived_and_what_is_not_archived_is_not_deleted(
    database: Database, customer_id: UUID
) -> None:
    for _ in range(2):
        publish(database, customer_id, "birds")
    with database.customer(customer_id) as session:
        birds = prompt_sets.get(session, "birds").id
        aliases.move(session, birds, "production", 1, actor="key")
    refused = (prompt_sets.archive, 1), (prompt_sets.delete_version, 1), (prompt_sets.delete_version, 2)
    assert [code_of(database, customer_id, verb, "birds", number) for verb, number in refused] == [
        *("version_in_use", "version_in_use", "version_not_archived")
    ]
    with database.customer(customer_id) as session:
        first = prompt_sets.archive(session, "birds", 2).archived_at
        assert prompt_sets.archive(session, "birds", 2).archived_at == first is not None
        assert prompt_sets.resolve(session, "birds")[1].version == 1
        assert prompt_sets.resolve(session, "birds:2")[1].version == 2
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        aliases.move(session, birds, "production", 2, actor="key")
    with database.customer(customer_id) as session:
        assert prompt_sets.unarchive(session, "birds", 2).archived_at is None
        assert prompt_sets.resolve(session, "birds")[1].version == 2


def test_a_prompt_set_that_is_in_use_is_not_deleted(database: Database, customer_id: UUID) -> None:
    publish(database, customer_id, "birds")
    with database.customer(customer_id) as session:
        birds = prompt_sets.get(session, "birds").id
        aliases.move(session, birds, "production", 1, actor="key")
        facts: dict[str, Any] = {"dataset_id": uuid4(), "dataset_version": 1, "payload": {}, "prompt_set_id": birds}
        job = jobs.create(session, customer_id, JobKind.TUNE, **facts)
    assert code_of(database, customer_id, prompt_sets.delete, "birds") == "prompt_set_in_use"
    with database.customer(customer_id) as session:
        aliases.remove(session, birds, "production", actor="key")
    assert code_of(database, customer_id, prompt_sets.delete, "birds") == "prompt_set_in_use"
    with database.customer(customer_id) as session:
        jobs.cancel(session, job.id, JobKind.TUNE)
        prompt_sets.delete(session, "birds")
    assert code_of(database, customer_id, prompt_sets.get, "birds") == "not_found"
    assert publish(database, customer_id, "birds") == 1


def test_a_prompt_set_is_not_deleted_under_a_job_that_is_being_asked_for(database: Database, customer_id: UUID) -> None:
    ends: list[str] = []

    def delete() -> None:
        with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
            prompt_sets.delete(session, "birds")
        ends.append(caught.value.code)

    publish(database, customer_id, "birds")
    deleting = threading.Thread(target=delete)
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds").id
        deleting.start()
        deleting.join(0.3)  # it waits for us
        facts: dict[str, Any] = {"dataset_id": uuid4(), "dataset_version": 1, "payload": {}, "prompt_set_id": birds}
        jobs.create(session, customer_id, JobKind.TUNE, **facts)
    deleting.join()
    assert ends == ["prompt_set_in_use"]
