"""Datasets and their versions: how they come to be, become ready or fail, and when they may be deleted."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import datasets, ids, jobs
from bpt_store.datasets import Contents, Reference
from bpt_store.db import Database
from bpt_store.errors import Conflict, LimitReached, NotFound
from bpt_store.models import Dataset, DatasetState, DatasetVersion, Job, JobKind
from bpt_store.quotas import Limits

PLENTY = Limits(datasets=100, images=1_000, stored_bytes=1_000_000)
SOURCE = {"parts": [{"key": "uploads/1/whole", "sha256": "00", "bytes": 5}], "media_type": "application/zip"}
SOURCE_WITH_HASH = {**SOURCE, "sha256": "00"}


def create(database: Database, customer_id: UUID) -> Dataset:
    with database.customer(customer_id) as session:
        return datasets.create(session, customer_id, "birds", {"task": "auto"}, SOURCE_WITH_HASH)[0]


def add(database: Database, customer_id: UUID, dataset_id: UUID, **more: Any) -> DatasetVersion:
    with database.customer(customer_id) as session:
        return datasets.add_version(session, dataset_id, **(more or {"changes": {"remove": ["itm_1"]}}))[0]


def contents(*keys: str, task: str = "single-label", size: int = 10) -> Contents:
    objects = {
        "shards": [{"key": key, "sha256": key, "bytes": size} for key in keys],
        "items": {"key": "items", "sha256": "i", "bytes": 1},
        "thumbnails": {"key": "thumbnails", "sha256": "t", "bytes": 2},
    }
    counts = {"a": {"train": 3, "val": 1, "test": 0}, "b": {"train": 2, "val": 1, "test": 4}}
    report = {
        "images": {"packed": 11},
        "splits": {"train": 5, "val": 2, "test": 4},
        "counts": counts,
        "verdict": "good to tune",
    }
    return Contents(task, ["a", "b"], objects, report)


def claim(database: Database) -> jobs.Fence:
    with database.system() as session:
        job = jobs.claim(session, JobKind.INGEST, "w", 30)
    assert job is not None
    return jobs.fence_of(job)


def finish(
    database: Database, customer_id: UUID, dataset_id: UUID, number: int = 1, made: Contents | None = None
) -> DatasetVersion:
    """As the ingest job does at its end."""
    fence = claim(database)
    with database.customer(customer_id) as session:
        jobs.succeed(session, fence, {})
        return datasets.become_ready(session, dataset_id, number, made or contents("s1"), PLENTY)


def fail(database: Database, customer_id: UUID) -> None:
    fence = claim(database)
    with database.customer(customer_id) as session:
        jobs.fail(session, fence, "archive_invalid", "not a zip")


def ready(database: Database, customer_id: UUID) -> Dataset:
    dataset = create(database, customer_id)
    finish(database, customer_id, dataset.id)
    return get(database, customer_id, dataset.id)


def get(database: Database, customer_id: UUID, dataset_id: UUID) -> Dataset:
    with database.customer(customer_id) as session:
        return datasets.get(session, dataset_id)


def version(database: Database, customer_id: UUID, dataset_id: UUID, number: int) -> DatasetVersion:
    with database.customer(customer_id) as session:
        return datasets.version(session, dataset_id, number, whole=True)


def doomed(database: Database) -> list[str]:
    with database.system() as session:
        return list(session.scalars(text("SELECT key FROM doomed_objects WHERE key NOT LIKE 'jobs/%' ORDER BY id")))


def count(database: Database, table: str) -> int:
    with database.system() as session:
        return int(session.scalars(text(f"SELECT count(*) FROM {table}")).one())


# --- the first version -----------------------------------------------------------------------------------------


def test_a_new_dataset_has_a_version_to_be_made_and_a_queued_job_for_it(database: Database, customer_id: UUID) -> None:
    dataset = create(database, customer_id)
    assert (dataset.state, dataset.latest, dataset.options) == (DatasetState.VALIDATING, None, {"task": "auto"})
    made = version(database, customer_id, dataset.id, 1)
    assert (made.state, made.base, made.changes) == (DatasetState.VALIDATING, None, None)
    assert (made.source, made.source_sha256, made.source_bytes) == (SOURCE_WITH_HASH, "00", 5)
    with database.system() as session:
        job = session.get_one(Job, claim(database).job_id)
    assert (job.dataset_id, job.dataset_version) == (dataset.id, 1)


def test_what_is_absent_is_null_to_the_database_too(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    with database.system() as session:
        row = session.execute(text("SELECT source IS NULL, changes IS NULL, error IS NULL FROM dataset_versions"))
        assert tuple(row.one()) == (True, True, True)
    assert dataset.latest == 1


def test_a_link_is_a_source_without_bytes(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        dataset, _ = datasets.create(session, customer_id, "d", {}, {"url": "s3://ours/x"})
    made = version(database, customer_id, dataset.id, 1)
    assert (made.source, made.source_sha256, made.source_bytes) == ({"url": "s3://ours/x"}, None, 0)


def test_a_dataset_beyond_the_quota_is_refused(database: Database, customer_id: UUID) -> None:
    create(database, customer_id)
    with pytest.raises(LimitReached), database.customer(customer_id) as session:
        datasets.create(session, customer_id, "d", {}, SOURCE, limits=Limits(1, 1, 1))
    with database.customer(customer_id) as session:
        datasets.create(session, customer_id, "d", {}, SOURCE, limits=Limits(2, 1, 1))


def test_a_finished_ingest_makes_the_version_ready_and_gives_up_what_it_was_made_of(
    database: Database, customer_id: UUID
) -> None:
    dataset = ready(database, customer_id)
    made = version(database, customer_id, dataset.id, 1)
    assert (dataset.state, dataset.latest, made.state) == (DatasetState.READY, 1, DatasetState.READY)
    assert (made.task, made.class_names, made.images) == ("single-label", ["a", "b"], 11)
    assert (made.stored_bytes, made.verdict) == (13, "good to tune")
    assert (made.splits, made.counts) == (contents().report["splits"], contents().report["counts"])
    assert made.report == contents().report
    assert made.source is None
    assert (made.source_sha256, made.source_bytes) == ("00", 5)
    assert doomed(database) == ["uploads/1/whole"]


def test_a_failed_ingest_fails_its_dataset_and_leaves_no_object(database: Database, customer_id: UUID) -> None:
    dataset = create(database, customer_id)
    fail(database, customer_id)
    made = version(database, customer_id, dataset.id, 1)
    assert get(database, customer_id, dataset.id).state is made.state is DatasetState.FAILED
    assert made.error == {"code": "archive_invalid", "detail": "not a zip"}
    assert made.source is None
    assert doomed(database) == ["uploads/1/whole", datasets.prefix(dataset.id)]


def test_an_ingest_that_crashed_too_often_fails_its_dataset(database: Database, customer_id: UUID) -> None:
    dataset = create(database, customer_id)
    with database.customer(customer_id) as session:
        jobs.crash(session, claim(database), "ingest_crashed", "oh", max_failures=1, backoff_seconds=0)
    assert get(database, customer_id, dataset.id).state is DatasetState.FAILED


# --- the versions after it -------------------------------------------------------------------------------------


def test_the_next_version_is_made_from_the_newest_ready_one(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    made = add(database, customer_id, dataset.id, changes={"remove": ["itm_1"]}, base=1)
    assert (made.number, made.base, made.changes, made.source) == (2, 1, {"remove": ["itm_1"]}, None)
    assert get(database, customer_id, dataset.id).latest == 1
    finish(database, customer_id, dataset.id, 2)
    assert get(database, customer_id, dataset.id).latest == 2
    assert version(database, customer_id, dataset.id, 1).state is DatasetState.READY


def test_a_version_that_failed_leaves_the_dataset_as_it_was_and_its_number_used(
    database: Database, customer_id: UUID
) -> None:
    dataset = ready(database, customer_id)
    add(database, customer_id, dataset.id)
    fail(database, customer_id)
    assert version(database, customer_id, dataset.id, 2).state is DatasetState.FAILED
    found = get(database, customer_id, dataset.id)
    assert (found.state, found.latest) == (DatasetState.READY, 1)
    assert datasets.prefix(dataset.id) not in doomed(database)
    made = add(database, customer_id, dataset.id)
    assert (made.number, made.base) == (3, 1)


def test_a_version_stores_only_what_no_earlier_one_has(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    add(database, customer_id, dataset.id)
    assert finish(database, customer_id, dataset.id, 2, contents("s1", "s2")).stored_bytes == 10


def test_no_version_is_added_to_what_is_not_ready_or_has_moved_or_is_unfinished(
    database: Database, customer_id: UUID
) -> None:
    def code(dataset_id: UUID, base: int | None = None) -> str:
        with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
            datasets.add_version(session, dataset_id, changes={}, base=base)
        return caught.value.code

    dataset = create(database, customer_id)
    assert code(dataset.id) == "dataset_not_ready"
    finish(database, customer_id, dataset.id)
    assert code(dataset.id, base=2) == "version_moved"
    add(database, customer_id, dataset.id)
    assert code(dataset.id, base=1) == "version_unfinished"
    finish(database, customer_id, dataset.id, 2)
    assert code(dataset.id, base=1) == "version_moved"
    assert count(database, "dataset_versions") == 2


def test_versions_are_listed_newest_first(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    for number in (2, 3):
        add(database, customer_id, dataset.id)
        finish(database, customer_id, dataset.id, number)
    with database.customer(customer_id) as session:
        assert [row.number for row in datasets.versions(session, dataset.id, limit=2)] == [3, 2]
        assert [row.number for row in datasets.versions(session, dataset.id, before=2, limit=2)] == [1]


def test_a_dataset_is_shown_as_its_newest_ready_version_or_the_first(database: Database, customer_id: UUID) -> None:
    young, old = create(database, customer_id), None
    fail(database, customer_id)
    old = ready(database, customer_id)
    add(database, customer_id, old.id)
    finish(database, customer_id, old.id, 2)
    add(database, customer_id, old.id)
    rows = [get(database, customer_id, one) for one in (young.id, old.id)]
    with database.customer(customer_id) as session:
        shown = datasets.shown(session, rows)
    assert {identifier: row.number for identifier, row in shown.items()} == {young.id: 1, old.id: 2}


# --- references ------------------------------------------------------------------------------------------------


def test_a_reference_names_the_newest_ready_version_or_a_certain_one(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    add(database, customer_id, dataset.id)
    finish(database, customer_id, dataset.id, 2)
    add(database, customer_id, dataset.id)
    with database.customer(customer_id) as session:
        assert datasets.get_ready(session, Reference(dataset.id)).number == 2
        assert datasets.get_ready(session, Reference(dataset.id, 1)).number == 1
        with pytest.raises(Conflict) as caught:
            datasets.get_ready(session, Reference(dataset.id, 3))
        with pytest.raises(NotFound):
            datasets.get_ready(session, Reference(dataset.id, 4))
        with pytest.raises(NotFound):
            datasets.get_ready(session, Reference(dataset.id, 0))
    assert caught.value.code == "dataset_not_ready"


@pytest.mark.parametrize("number", [None, 3])
def test_a_reference_is_written_as_it_is_read(number: int | None) -> None:
    reference = Reference(uuid4(), number)
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("tail", [":", ":x", ":-1", ":1.0", ":1:2", ": 1", ":1234567890", ":²"])
def test_what_is_no_reference_names_nothing(tail: str) -> None:
    with pytest.raises(NotFound):
        Reference.parse(ids.public(ids.DATASET, uuid4()) + tail)


@pytest.mark.parametrize("failed", [True, False])
def test_only_a_ready_dataset_can_be_used(database: Database, customer_id: UUID, failed: bool) -> None:
    dataset = create(database, customer_id)
    if failed:
        fail(database, customer_id)
    for number in (None, 1):
        with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
            datasets.get_ready(session, Reference(dataset.id, number))
        assert caught.value.code == "dataset_not_ready"


def test_a_dataset_without_labels_is_ready_and_cannot_be_tuned_on(database: Database, customer_id: UUID) -> None:
    dataset = create(database, customer_id)
    finish(database, customer_id, dataset.id, 1, contents("s", task=datasets.UNLABELLED))
    with database.customer(customer_id) as session:
        assert datasets.get_ready(session, Reference(dataset.id))
        with pytest.raises(Conflict) as caught:
            datasets.get_labelled(session, Reference(dataset.id))
    assert caught.value.code == "dataset_unlabelled"


def test_images_are_counted_by_split(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    with database.customer(customer_id) as session:
        found = datasets.get_labelled(session, Reference(dataset.id))
    assert [datasets.images(found, split) for split in (None, "train", "val", "test")] == [11, 5, 2, 4]


def test_an_unknown_dataset_is_not_found(database: Database, customer_id: UUID) -> None:
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        datasets.get(session, uuid4())


# --- deletion --------------------------------------------------------------------------------------------------


def test_a_dataset_in_use_cannot_be_deleted(database: Database, customer_id: UUID) -> None:
    dataset = create(database, customer_id)
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert caught.value.code == "dataset_in_use"
    finish(database, customer_id, dataset.id)
    with database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert count(database, "datasets") == count(database, "dataset_versions") == 0
    assert doomed(database)[-1] == datasets.prefix(dataset.id)


def test_a_dataset_that_a_batch_prediction_needs_cannot_be_deleted(database: Database, customer_id: UUID) -> None:
    dataset = ready(database, customer_id)
    with database.customer(customer_id) as session:
        job = jobs.create(
            session, customer_id, JobKind.BATCH_PREDICT, dataset_id=dataset.id, dataset_version=1, payload={}
        )
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        datasets.delete(session, dataset.id)
    assert caught.value.code == "dataset_in_use"
    with database.customer(customer_id) as session:
        jobs.cancel(session, job.id, JobKind.BATCH_PREDICT)
        datasets.delete(session, dataset.id)
    assert count(database, "datasets") == 0
