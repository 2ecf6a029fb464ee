"""A customer is deleted: every row now, every object with the sweep, also what is stored a moment later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from bpt_store import customers, datasets, jobs, uploads
from bpt_store.db import Database
from bpt_store.errors import Invalid, LeaseLost, NotFound
from bpt_store.models import Base, Job, JobKind
from bpt_store.objects import Objects
from bpt_store.quotas import Limits
from bpt_store.settings import Settings
from bpt_store.uploads import Intent
from worker.context import Worker
from worker.ingest import Ingest
from worker.supervisor import run
from worker.sweep import _delete_doomed

PLENTY = Limits(datasets=9, images=9, stored_bytes=9)
LOOK_AGAIN_SECONDS = 3600.0


@dataclass
class Theirs:
    """What a customer has; `keys` are the objects."""

    customer_id: UUID
    dataset_id: UUID
    upload_id: UUID
    job: Job
    keys: list[str]


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker.create(settings)
    yield worker
    worker.database.close()


@pytest.fixture
def theirs(database: Database, customer_id: UUID, worker: Worker, tmp_path: Path) -> Theirs:
    """One object of each kind that customers have, and a running job of each kind."""
    with database.customer(customer_id) as session:
        dataset, _ = datasets.create(session, customer_id, "d", {}, {"parts": []})
        upload = uploads.begin(
            session, customer_id, Intent(name="u"), "application/zip", limits=PLENTY, seconds=60, part_bytes=1
        )
        for kind in (JobKind.TUNE, JobKind.BATCH_PREDICT):
            jobs.create(session, customer_id, kind, dataset_id=dataset.id, dataset_version=1, payload={})
    claimed = {}
    for kind in JobKind:
        with database.system() as session:
            job = jobs.claim(session, kind, "w", 30)
        assert job is not None
        claimed[kind] = job
    tuning, batch = claimed[JobKind.TUNE], claimed[JobKind.BATCH_PREDICT]
    keys = [
        uploads.new_key(upload.id, "1"),
        f"{datasets.prefix(dataset.id)}shard.parquet",
        f"{jobs.work_prefix(tuning.id)}1/checkpoint",
        f"{jobs.work_prefix(batch.id)}1/part",
        f"{jobs.results_prefix(batch.id)}1/predictions",
    ]
    for key in keys:
        put(worker.objects, tmp_path, key)
    return Theirs(customer_id, dataset.id, upload.id, claimed[JobKind.INGEST], keys)


def put(objects: Objects, directory: Path, key: str) -> None:
    (directory / "file").write_bytes(b"content")
    objects.put_file(key, directory / "file")


def delete(database: Database, customer_id: UUID, name: str = "acme") -> None:
    with database.system() as session:
        customers.delete(session, customer_id, name, look_again_seconds=LOOK_AGAIN_SECONDS)


def tables_with_rows_of(database: Database, customer_id: UUID) -> set[str]:
    found = set()
    for table in Base.metadata.tables.values():
        column = "id" if table.name == "customers" else "customer_id"
        with database.system() as session:
            query = text(f"SELECT count(*) FROM {table.name} WHERE {column} = :id")
            if session.scalar(query, {"id": customer_id}):
                found.add(table.name)
    return found


def test_every_row_goes_at_once_and_every_object_with_the_sweep(
    database: Database, theirs: Theirs, worker: Worker, tmp_path: Path
) -> None:
    put(worker.objects, tmp_path, "datasets/of-somebody-else/shard")
    assert sorted(worker.objects.keys("")) == sorted([*theirs.keys, "datasets/of-somebody-else/shard"])
    delete(database, theirs.customer_id)
    assert tables_with_rows_of(database, theirs.customer_id) == {"doomed_objects"}
    _delete_doomed(worker)
    assert worker.objects.keys("") == ["datasets/of-somebody-else/shard"]
    with pytest.raises(NotFound):
        delete(database, theirs.customer_id)


def test_what_a_worker_that_died_stored_after_the_sweep_is_found_by_the_second_look(
    database: Database, theirs: Theirs, worker: Worker, tmp_path: Path
) -> None:
    delete(database, theirs.customer_id)
    _delete_doomed(worker)
    for key in theirs.keys:
        put(worker.objects, tmp_path, key)
    _delete_doomed(worker)
    assert sorted(worker.objects.keys("")) == sorted(theirs.keys)  # not yet
    with database.system() as session:
        session.execute(
            text("UPDATE doomed_objects SET not_before = not_before - make_interval(secs => :seconds)"),
            {"seconds": LOOK_AGAIN_SECONDS},
        )
    _delete_doomed(worker)
    assert worker.objects.keys("") == []
    assert tables_with_rows_of(database, theirs.customer_id) == set()


def test_an_attempt_that_finds_its_job_gone_gives_up_what_it_has_stored(
    database: Database, theirs: Theirs, worker: Worker, tmp_path: Path
) -> None:
    late = f"{datasets.prefix(theirs.dataset_id)}late.parquet"

    class Late(Ingest):
        """Is at its end when the customer is deleted."""

        def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, object]:
            delete(database, theirs.customer_id)
            _delete_doomed(worker)
            put(worker.objects, tmp_path, late)
            return super().prepare(worker, job, directory)

    run(worker, theirs.job, Late())
    assert worker.objects.keys("") == [late]
    _delete_doomed(worker)
    assert worker.objects.keys("") == []


def test_a_heartbeat_of_a_deleted_customers_job_says_stop(database: Database, theirs: Theirs) -> None:
    delete(database, theirs.customer_id)
    with pytest.raises(LeaseLost), database.customer(theirs.customer_id) as session:
        jobs.renew(session, jobs.fence_of(theirs.job), 30)


@pytest.mark.parametrize("name", ["", "Acme", "acme ", "other"])
def test_without_the_customers_name_nothing_is_deleted(database: Database, theirs: Theirs, name: str) -> None:
    before = tables_with_rows_of(database, theirs.customer_id)
    with pytest.raises(Invalid) as caught:
        delete(database, theirs.customer_id, name)
    assert caught.value.code == "name_mismatch"
    assert tables_with_rows_of(database, theirs.customer_id) == before - {"doomed_objects"}


def test_a_worker_in_the_middle_of_a_transaction_does_not_keep_a_customer_from_being_deleted(
    database: Database, theirs: Theirs
) -> None:
    """One holds the job's row and is about to add an event, the other holds the customer and is about to delete."""
    deleting = threading.Thread(target=delete, args=(database, theirs.customer_id))
    fence = jobs.fence_of(theirs.job)
    with suppress(OperationalError), database.customer(theirs.customer_id) as session:
        jobs.held(session, fence)
        deleting.start()
        with database.system() as looking:
            while not looking.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                assert deleting.is_alive()
        jobs.record(session, fence, "progress", {"done": 1})
    deleting.join()
    assert tables_with_rows_of(database, theirs.customer_id) == {"doomed_objects"}


def test_other_customers_keep_all_they_have(database: Database, theirs: Theirs) -> None:
    with database.system() as session:
        other = customers.create(session, "other").id
    with database.customer(other) as session:
        jobs.create(session, other, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
    before = tables_with_rows_of(database, other)
    delete(database, theirs.customer_id)
    assert tables_with_rows_of(database, other) == before
