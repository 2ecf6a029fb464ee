"""Usage by the day: every number once, whatever is tried again, lost or killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api.metering import Meter
from bpt_store import customers, jobs, uploads, usage
from bpt_store.db import Database
from bpt_store.errors import LeaseLost
from bpt_store.jobs import Fence
from bpt_store.models import Job, JobKind, UsageDay
from bpt_store.quotas import Limits
from bpt_store.settings import Settings
from bpt_store.uploads import Intent
from bpt_store.usage import Cursor, Span
from worker.batch import BatchPredict
from worker.context import Worker
from worker.sweep import sample_usage

LEASE = 20.0


def used(database: Database, customer_id: UUID) -> UsageDay:
    """Of today, the only day there is."""
    with database.customer(customer_id) as session:
        rows, _ = usage.days(session, Span(), None, 9)
    assert len(rows) == 1
    return rows[0]


def today() -> date:
    return datetime.now(UTC).date()


def claimed(database: Database, customer_id: UUID, kind: JobKind, *, seconds_ago: float) -> Job:
    with database.customer(customer_id) as session:
        payload: dict[str, Any] = {"prompt_sets": []}
        jobs.create(session, customer_id, kind, dataset_id=uuid4(), dataset_version=1, payload=payload)
    with database.system() as session:
        job = jobs.claim(session, kind, "a worker", LEASE)
        assert job is not None
        session.execute(
            text("UPDATE jobs SET claimed_at = claimed_at - :ago * interval '1 s' WHERE id = :id"),
            {"ago": seconds_ago, "id": job.id},
        )
    return job


def succeed(database: Database, fence: Fence) -> None:
    with database.customer(fence.customer_id) as session:
        jobs.succeed(session, fence, {})


# --- jobs --------------------------------------------------------------------------------------------------------


def test_seconds_of_workers_count_by_the_kind_of_work_and_an_ingest_costs_nothing(
    database: Database, customer_id: UUID
) -> None:
    for kind, seconds in ((JobKind.TUNE, 40), (JobKind.TUNE, 2), (JobKind.BATCH_PREDICT, 7)):
        succeed(database, jobs.fence_of(claimed(database, customer_id, kind, seconds_ago=seconds)))
    with database.customer(customer_id) as session:
        usage.add_seconds(session, customer_id, JobKind.INGEST, 100)
    found = used(database, customer_id)
    assert found.tuning_seconds == pytest.approx(42, abs=2)
    assert found.batch_seconds == pytest.approx(7, abs=2)


def test_an_attempt_that_was_replaced_counts_to_its_last_heartbeat_and_once(
    database: Database, customer_id: UUID
) -> None:
    fence = jobs.fence_of(claimed(database, customer_id, JobKind.TUNE, seconds_ago=100))
    with database.system() as session:
        session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 s'"))
        assert jobs.requeue_expired(session, max_failures=3, backoff_seconds=0, lease_seconds=LEASE) == 1
    with pytest.raises(LeaseLost):
        succeed(database, fence)
    assert used(database, customer_id).tuning_seconds == pytest.approx(100 - 1 - LEASE, abs=2)
    with database.customer(customer_id) as session:
        worked = session.scalars(text("SELECT worked_seconds FROM jobs")).one()
    assert worked == pytest.approx(used(database, customer_id).tuning_seconds)


def test_an_end_that_is_rolled_back_and_written_again_counts_once(database: Database, customer_id: UUID) -> None:
    fence = jobs.fence_of(claimed(database, customer_id, JobKind.TUNE, seconds_ago=50))
    with suppress(ZeroDivisionError), database.customer(customer_id) as session:
        jobs.succeed(session, fence, {})
        raise ZeroDivisionError
    succeed(database, fence)
    assert used(database, customer_id).tuning_seconds == pytest.approx(50, abs=2)


def test_images_of_a_batch_prediction_count_when_it_succeeds_and_once(
    settings: Settings, database: Database, customer_id: UUID, tmp_path: Path
) -> None:
    job = claimed(database, customer_id, JobKind.BATCH_PREDICT, seconds_ago=3)
    worker = Worker.create(settings)
    result = {"files": {}, "images": 10, "rows": 20, "errors": 3, "metrics": {}}
    finish = BatchPredict().publish(worker, job, tmp_path, result)
    worker.database.close()
    with database.customer(customer_id) as session:
        finish(session)
    with pytest.raises(LeaseLost), database.customer(customer_id) as session:
        finish(session)
    assert used(database, customer_id).batch_images == 17


# --- online ------------------------------------------------------------------------------------------------------


def test_many_add_at_once_and_nothing_is_missing(database: Database, customer_id: UUID) -> None:
    def add(_: int) -> None:
        with database.customer(customer_id) as session:
            usage.add(session, customer_id, online_images=3, tuning_seconds=0.5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(40)))
    assert (used(database, customer_id).online_images, used(database, customer_id).tuning_seconds) == (120, 20)


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_day_is_one_of_utc_wherever_the_database_thinks_it_is(
    database: Database, customer_id: UUID, zone: str
) -> None:
    """At any time it is another day in one of the two zones."""
    before = today()
    with database.customer(customer_id) as session:
        session.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
        usage.add(session, customer_id, online_images=1)
    assert before <= used(database, customer_id).day <= today()


def test_what_is_predicted_online_is_written_now_and_then_and_at_the_end(database: Database, customer_id: UUID) -> None:
    meter = Meter(database, 3600)
    meter.begin()
    for images in (2, 3):
        meter.count(customer_id, images)
    meter.write()
    meter.write()
    assert used(database, customer_id).online_images == 5
    meter.count(customer_id, 4)
    meter.close()
    assert used(database, customer_id).online_images == 9


@contextmanager
def failing(owner: Engine, when: str) -> Iterator[None]:
    """The connection that writes usage is killed, before its statement is done or amid its commit."""
    function = "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql SECURITY INVOKER AS $$ BEGIN "
    with owner.begin() as connection:
        connection.execute(text(f"{function} PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"))
        connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER die AFTER INSERT OR UPDATE ON usage_days {when} FOR EACH ROW "
                "EXECUTE FUNCTION die()"
            )
        )
    yield
    with owner.begin() as connection:
        connection.execute(text("DROP TRIGGER die ON usage_days"))


@pytest.mark.parametrize(("when", "kept"), [("NOT DEFERRABLE", 5), ("DEFERRABLE INITIALLY DEFERRED", 0)])
def test_what_was_not_written_is_kept_unless_it_may_be_there(
    database: Database, owner: Engine, customer_id: UUID, when: str, kept: int
) -> None:
    """A commit whose answer was lost may have been one: counted never rather than twice."""
    meter = Meter(database, 3600)
    meter.count(customer_id, 5)
    with failing(owner, when):
        meter.write()
    meter.count(customer_id, 1)
    meter.close()
    assert used(database, customer_id).online_images == kept + 1


def test_usage_of_a_customer_who_is_gone_holds_up_nobody(database: Database, customer_id: UUID) -> None:
    meter = Meter(database, 3600)
    meter.count(uuid4(), 5)
    meter.count(customer_id, 1)
    meter.write()
    meter.close()
    assert used(database, customer_id).online_images == 1


# --- stored bytes ------------------------------------------------------------------------------------------------


def test_the_sweep_notes_once_a_day_what_a_customer_stores(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    def announce(session: Session, size_bytes: int) -> None:
        plenty = Limits(datasets=9, images=9, stored_bytes=1 << 40)
        intent, kind = Intent(name="d"), "application/zip"
        uploads.begin(session, customer_id, intent, kind, limits=plenty, seconds=60, size_bytes=size_bytes)

    worker = Worker.create(settings)
    for size in (700, 800):
        with database.customer(customer_id) as session:
            announce(session, size)
        assert sample_usage(worker) is False
    worker.database.close()
    assert (used(database, customer_id).stored_bytes, used(database, customer_id).online_images) == (700, 0)
    with database.system() as session:
        assert usage.unsampled(session, 9) == []
        session.execute(text("UPDATE usage_days SET day = day - 1"))
        assert usage.unsampled(session, 9) == [customer_id]
    with database.customer(customer_id) as session:
        usage.sample(session, customer_id)
        announce(session, 100)
        usage.sample(session, customer_id)
        rows, _ = usage.days(session, Span(), None, 9)
    assert [row.stored_bytes for row in rows] == [1500, 700]


# --- lists -------------------------------------------------------------------------------------------------------


def test_pages_hold_every_row_once_the_newest_day_first(database: Database) -> None:
    with database.system() as session:
        owners = [customers.create(session, name).id for name in "abc"]
        for owner in owners:
            for day in range(1, 5):
                session.add(UsageDay(customer_id=owner, day=date(2026, 11, day)))

    def pages(span: Span, limit: int) -> Sequence[tuple[date, UUID]]:
        found: list[tuple[date, UUID]] = []
        after, has_more = None, True
        while has_more:
            with database.system() as session:
                rows, has_more = usage.days(session, span, after, limit)
            found += [(row.day, row.customer_id) for row in rows]
            after = Cursor(*found[-1])
        return found

    everything = pages(Span(), 100)
    assert everything == sorted({(date(2026, 11, day), owner) for owner in owners for day in range(1, 5)}, reverse=True)
    for limit in (1, 5, 12):
        assert pages(Span(), limit) == everything
    some = Span(first=date(2026, 11, 2), last=date(2026, 11, 3), customer_id=owners[1])
    assert pages(some, 1) == [(date(2026, 11, day), owners[1]) for day in (3, 2)]
