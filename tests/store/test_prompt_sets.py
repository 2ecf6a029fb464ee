"""Prompt sets: versions without gaps, names and references."""

from __future__ import annotations

import hashlib
import threading
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Damaged, NotFound
from bpt_store.prompt_sets import Publication


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
