"""Batch predictions: references are settled when the job is created."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import batch_predictions, customers, jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.errors import Damaged, LimitReached, NotFound
from bpt_store.models import DatasetVersion, Job, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.scheduling import Priority


def publish(database: Database, customer_id: UUID, name: str, artifact: bytes) -> None:
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, name)
        publication = Publication(artifact, "vit", "fingerprint", ["a", "b"], {}, 1, {})
        prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)


def create(
    database: Database, customer_id: UUID, *references: str, limit: int = 10, priority: Priority = Priority.NORMAL
) -> Job:
    with database.customer(customer_id) as session:
        return batch_predictions.create(
            session,
            customer_id,
            DatasetVersion(dataset_id=uuid4(), number=1),
            references,
            split=None,
            top_k=5,
            images=3,
            custom={},
            priority=priority,
            unfinished_limit=limit,
        )


def versions(job: Job) -> list[tuple[str, int]]:
    return [(used["name"], used["version"]) for used in job.payload["prompt_sets"]]


def test_references_become_versions_and_those_of_the_same_one_count_once(database: Database, customer_id: UUID) -> None:
    for name, artifact in (("birds", b"one"), ("birds", b"two"), ("quality", b"three")):
        publish(database, customer_id, name, artifact)
    job = create(database, customer_id, "quality", "birds", "birds:2", "birds:1")
    assert versions(job) == [("quality", 1), ("birds", 2), ("birds", 1)]
    publish(database, customer_id, "birds", b"newer")
    with database.customer(customer_id) as session:
        again = jobs.get(session, job.id, JobKind.BATCH_PREDICT)
        assert batch_predictions.artifacts(session, again) == [b"three", b"two", b"one"]


def test_the_one_of_higher_priority_is_claimed_first(database: Database, customer_id: UUID) -> None:
    publish(database, customer_id, "birds", b"one")
    made = [create(database, customer_id, "birds", priority=priority).id for priority in Priority]
    claimed = []
    for _ in made:
        with database.system() as session:
            job = jobs.claim(session, JobKind.BATCH_PREDICT, "w", 30)
        assert job is not None
        claimed.append(job.id)
    assert claimed == made[::-1]


def test_an_unknown_or_foreign_prompt_set_leaves_nothing(database: Database, customer_id: UUID) -> None:
    with database.system() as session:
        other = customers.create(session, "other").id
    publish(database, other, "theirs", b"secret")
    publish(database, customer_id, "mine", b"one")
    for reference in ("theirs", "theirs:1", "mine:2", "mine@production", "No Name", ""):
        with pytest.raises(NotFound):
            create(database, customer_id, "mine", reference)
    with database.system() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0


def test_a_prompt_set_that_is_another_by_now_is_not_used(database: Database, customer_id: UUID) -> None:
    publish(database, customer_id, "birds", b"one")
    job = create(database, customer_id, "birds")
    with database.customer(customer_id) as session:
        session.execute(text("DELETE FROM prompt_sets"))
    publish(database, customer_id, "birds", b"another")
    with pytest.raises(Damaged), database.customer(customer_id) as session:
        batch_predictions.artifacts(session, job)


def test_the_limit_on_unfinished_jobs_is_one_of_this_kind(database: Database, customer_id: UUID) -> None:
    publish(database, customer_id, "birds", b"one")
    with database.customer(customer_id) as session:
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
    create(database, customer_id, "birds", limit=1)
    with pytest.raises(LimitReached):
        create(database, customer_id, "birds", limit=1)
