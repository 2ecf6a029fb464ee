"""Datasets: what an upload leaves behind, and when one may be deleted."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import datasets, jobs
from bpt_store.db import Database
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import Dataset, DatasetState, JobKind


def begin(database: Database, customer_id: UUID) -> Dataset:
    with database.customer(customer_id) as session:
        return datasets.begin_upload(session, customer_id, "birds", {}, ".zip")


def finish(database: Database, customer_id: UUID, dataset_id: UUID) -> UUID:
    with database.customer(customer_id) as session:
        return datasets.finish_upload(session, dataset_id, sha256="00", size_bytes=1, payload={}).id


def count(database: Database, table: str) -> int:
    with database.system() as session:
        return int(session.scalars(text(f"SELECT count(*) FROM {table}")).one())


def claim_ingest(database: Database) -> jobs.Fence:
    with database.system() as session:
        job = jobs.claim(session, JobKind.INGEST, "w", 30)
    assert job is not None
    return jobs.fence_of(job)


def test_a_finished_upload_is_a_queued_ingest_job(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    job_id = finish(database, customer_id, dataset.id)
    assert claim_ingest(database).job_id == job_id
    with database.customer(customer_id) as session:
        assert datasets.get(session, dataset.id).state is DatasetState.VALIDATING


def test_an_abandoned_upload_leaves_no_row_and_dooms_its_objects(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    with database.customer(customer_id) as session:
        datasets.abandon_upload(session, dataset.id)
    assert count(database, "datasets") == 0
    with database.system() as session:
        assert session.scalars(text("SELECT key FROM doomed_objects")).one() == datasets.prefix(dataset.id)


def test_uploads_whose_process_died_are_swept_and_the_others_are_left(database: Database, customer_id: UUID) -> None:
    old, young, done = (begin(database, customer_id) for _ in range(3))
    finish(database, customer_id, done.id)
    with database.system() as session:
        session.execute(
            text("UPDATE datasets SET created_at = now() - interval '2 hours' WHERE id = ANY(:ids)"),
            {"ids": [old.id, done.id]},
        )
        assert datasets.abandon_expired_uploads(session, 3600) == 1
    with database.customer(customer_id) as session:
        assert datasets.get(session, young.id)
        assert datasets.get(session, done.id)
        with pytest.raises(NotFound):
            datasets.get(session, old.id)
    with pytest.raises(NotFound):
        finish(database, customer_id, old.id)


def test_a_dataset_in_use_cannot_be_deleted(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    with pytest.raises(Conflict), database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    finish(database, customer_id, dataset.id)
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert caught.value.code == "dataset_in_use"
    with database.customer(customer_id) as session:
        jobs.fail(session, claim_ingest(database), "archive_invalid", "not a zip")
    with database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert count(database, "datasets") == 0


def test_a_failed_ingest_fails_its_dataset_and_dooms_the_archive(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    finish(database, customer_id, dataset.id)
    with database.customer(customer_id) as session:
        jobs.fail(session, claim_ingest(database), "archive_invalid", "not a zip")
    with database.customer(customer_id) as session:
        found = datasets.get(session, dataset.id)
        keys = set(session.scalars(text("SELECT key FROM doomed_objects")))
    assert (found.state, found.error) == (DatasetState.FAILED, {"code": "archive_invalid", "detail": "not a zip"})
    assert datasets.prefix(dataset.id) in keys


def test_an_ingest_that_crashed_too_often_fails_its_dataset(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    finish(database, customer_id, dataset.id)
    with database.customer(customer_id) as session:
        jobs.crash(session, claim_ingest(database), "ingest_crashed", "oh", max_failures=1, backoff_seconds=0)
    with database.customer(customer_id) as session:
        assert datasets.get(session, dataset.id).state is DatasetState.FAILED


@pytest.mark.parametrize("state", [DatasetState.UPLOADING, DatasetState.VALIDATING, DatasetState.FAILED])
def test_only_a_ready_dataset_can_be_tuned_on(database: Database, customer_id: UUID, state: DatasetState) -> None:
    dataset = begin(database, customer_id)
    with database.customer(customer_id) as session:
        datasets.get(session, dataset.id).state = state
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        datasets.get_ready(session, dataset.id)
    assert caught.value.code == "dataset_not_ready"


def test_an_unknown_dataset_is_not_found(database: Database, customer_id: UUID) -> None:
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        datasets.get(session, uuid4())


def test_a_dataset_without_labels_is_ready_and_cannot_be_tuned_on(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        dataset = datasets.begin_upload(session, customer_id, "photos", {}, ".zip", datasets.UNLABELLED)
        report = {"images": {"packed": 7}, "counts": {}}
        datasets.become_ready(session, dataset.id, task=datasets.UNLABELLED, class_names=[], shards=[], report=report)
    with database.customer(customer_id) as session:
        found = datasets.get_ready(session, dataset.id)
        assert [datasets.images(found, split) for split in (None, "train", "val", "test")] == [7, 0, 0, 7]
        with pytest.raises(Conflict) as caught:
            datasets.get_labelled(session, dataset.id)
    assert caught.value.code == "dataset_unlabelled"


def test_images_are_counted_by_split(database: Database, customer_id: UUID) -> None:
    counts = {"a": {"train": 3, "val": 1, "test": 0}, "b": {"train": 2, "val": 1, "test": 4}}
    dataset = begin(database, customer_id)
    with database.customer(customer_id) as session:
        report = {"images": {"packed": 11}, "counts": counts}
        task = datasets.SINGLE_LABEL
        datasets.become_ready(session, dataset.id, task=task, class_names=["a", "b"], shards=[], report=report)
        found = datasets.get_labelled(session, dataset.id)
        assert [datasets.images(found, split) for split in (None, "train", "val", "test")] == [11, 5, 2, 4]


def test_a_dataset_that_a_batch_prediction_needs_cannot_be_deleted(database: Database, customer_id: UUID) -> None:
    dataset = begin(database, customer_id)
    with database.customer(customer_id) as session:
        datasets.get(session, dataset.id).state = DatasetState.READY
        job = jobs.create(session, customer_id, JobKind.BATCH_PREDICT, dataset_id=dataset.id, payload={})
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert caught.value.code == "dataset_in_use"
    with database.customer(customer_id) as session:
        jobs.cancel(session, job.id, JobKind.BATCH_PREDICT)
        datasets.delete(session, dataset.id)
    assert count(database, "datasets") == 0
