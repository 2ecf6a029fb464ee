"""The life of a job on a real database: claims, leases, fences, ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import customers, jobs, resuming, scheduling
from bpt_store.db import Database
from bpt_store.errors import Conflict, LeaseLost, LimitReached, NotFound
from bpt_store.jobs import Fence
from bpt_store.models import Job, JobKind, JobState

LEASE = 30.0


@pytest.fixture
def queued(database: Database, customer_id: UUID) -> Callable[[], UUID]:
    def make() -> UUID:
        with database.customer(customer_id) as session:
            return jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={}).id

    return make


def claim(database: Database, lease_seconds: float = LEASE) -> Fence | None:
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", lease_seconds)
        return jobs.fence_of(job) if job is not None else None


def must_claim(database: Database, lease_seconds: float = LEASE) -> Fence:
    fence = claim(database, lease_seconds)
    assert fence is not None
    return fence


def show(database: Database, customer_id: UUID, job_id: UUID) -> Job:
    with database.customer(customer_id) as session:
        return jobs.get(session, job_id, JobKind.TUNE)


def crash(database: Database, fence: Fence, max_failures: int = 3) -> None:
    with database.customer(fence.customer_id) as session:
        jobs.crash(session, fence, "trainer_crashed", "it died", max_failures=max_failures, backoff_seconds=0)


def test_the_oldest_job_is_claimed_first_and_none_twice(database: Database, queued: Callable[[], UUID]) -> None:
    first, second = queued(), queued()
    claimed = [must_claim(database).job_id, must_claim(database).job_id]
    assert claimed == [first, second]
    assert claim(database) is None


def test_many_workers_at_once_claim_each_job_once(database: Database, queued: Callable[[], UUID]) -> None:
    made = {queued() for _ in range(12)}
    claimed: list[UUID] = []

    def work() -> None:
        while (fence := claim(database)) is not None:
            claimed.append(fence.job_id)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(claimed) == len(made)
    assert set(claimed) == made


def test_a_customer_with_fewer_running_jobs_comes_first(database: Database, queued: Callable[[], UUID]) -> None:
    queued(), queued()
    must_claim(database)
    with database.system() as session:
        other = customers.create(session, "other").id
    with database.customer(other) as session:
        late = jobs.create(session, other, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={}).id
    assert must_claim(database).job_id == late


def test_a_claim_of_one_kind_leaves_the_others(database: Database, queued: Callable[[], UUID]) -> None:
    queued()
    with database.system() as session:
        assert jobs.claim(session, JobKind.INGEST, "w", LEASE) is None


def test_a_renewed_lease_is_kept_and_an_expired_one_is_taken(database: Database, queued: Callable[[], UUID]) -> None:
    queued()
    fence = must_claim(database, lease_seconds=-1)
    with database.customer(fence.customer_id) as session:
        assert jobs.renew(session, fence, LEASE) is JobState.RUNNING
    assert requeue(database) == 0
    with database.customer(fence.customer_id) as session:
        jobs.renew(session, fence, -1)
    assert requeue(database) == 1
    again = must_claim(database)
    assert (again.job_id, again.attempt) == (fence.job_id, 2)


def requeue(database: Database, max_failures: int = 3) -> int:
    with database.system() as session:
        return jobs.requeue_expired(session, max_failures=max_failures, backoff_seconds=0)


def test_a_replaced_attempt_can_write_nothing_more(
    database: Database, customer_id: UUID, queued: Callable[[], UUID]
) -> None:
    job_id = queued()
    late = must_claim(database, lease_seconds=-1)
    requeue(database)
    must_claim(database)
    before = show(database, customer_id, job_id)
    for write in (
        lambda session: jobs.renew(session, late, LEASE),
        lambda session: jobs.record(session, late, "epoch", {"epoch": 1}),
        lambda session: resuming.keep_checkpoint(session, late, {"key": "k"}),
        lambda session: jobs.succeed(session, late, {}),
        lambda session: jobs.fail(session, late, "c", "d"),
        lambda session: jobs.cancelled(session, late),
        lambda session: jobs.give_back(session, late, "r"),
        lambda session: jobs.crash(session, late, "c", "d", max_failures=1, backoff_seconds=0),
    ):
        with pytest.raises(LeaseLost), database.customer(customer_id) as session:
            write(session)
    after = show(database, customer_id, job_id)
    assert (after.state, after.attempt, after.last_event) == (JobState.RUNNING, 2, before.last_event)


def test_nothing_can_be_written_after_the_end(database: Database, queued: Callable[[], UUID]) -> None:
    queued()
    fence = must_claim(database)
    with database.customer(fence.customer_id) as session:
        jobs.succeed(session, fence, {"fine": True})
    with pytest.raises(LeaseLost), database.customer(fence.customer_id) as session:
        jobs.succeed(session, fence, {"fine": False})
    assert show(database, fence.customer_id, fence.job_id).result == {"fine": True}


def test_the_third_crash_is_the_last(database: Database, customer_id: UUID, queued: Callable[[], UUID]) -> None:
    job_id = queued()
    for attempt in (1, 2, 3):
        fence = must_claim(database)
        assert fence.attempt == attempt
        crash(database, fence)
    job = show(database, customer_id, job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "trainer_crashed"
    assert claim(database) is None


def test_lost_leases_count_as_crashes(database: Database, customer_id: UUID, queued: Callable[[], UUID]) -> None:
    job_id = queued()
    for _ in range(2):
        must_claim(database, lease_seconds=-1)
        requeue(database, max_failures=2)
    job = show(database, customer_id, job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_job_given_back_waits_again_without_a_failure(database: Database, queued: Callable[[], UUID]) -> None:
    queued()
    for _ in range(5):
        fence = must_claim(database)
        with database.customer(fence.customer_id) as session:
            jobs.give_back(session, fence, "the worker was stopped")
    job = show(database, fence.customer_id, fence.job_id)
    assert (job.state, job.attempt, job.failures) == (JobState.QUEUED, 5, 0)


def test_a_crashed_job_waits_before_it_runs_again(database: Database, queued: Callable[[], UUID]) -> None:
    queued()
    fence = must_claim(database)
    with database.customer(fence.customer_id) as session:
        jobs.crash(session, fence, "c", "d", max_failures=3, backoff_seconds=60)
    assert claim(database) is None


def test_a_waiting_job_is_cancelled_at_once(database: Database, customer_id: UUID, queued: Callable[[], UUID]) -> None:
    job_id = queued()
    with database.customer(customer_id) as session:
        assert jobs.cancel(session, job_id, JobKind.TUNE).state is JobState.CANCELLED
    assert claim(database) is None


def test_a_running_job_is_wound_down_and_never_runs_again(
    database: Database, customer_id: UUID, queued: Callable[[], UUID]
) -> None:
    job_id = queued()
    fence = must_claim(database)
    with database.customer(customer_id) as session:
        assert jobs.cancel(session, job_id, JobKind.TUNE).state is JobState.CANCELLING
        assert jobs.renew(session, fence, LEASE) is JobState.CANCELLING
        assert jobs.cancel(session, job_id, JobKind.TUNE).state is JobState.CANCELLING
    with database.customer(customer_id) as session:
        jobs.cancelled(session, fence)
    with pytest.raises(Conflict) as caught, database.customer(customer_id) as session:
        jobs.cancel(session, job_id, JobKind.TUNE)
    assert caught.value.code == "job_terminal"


@pytest.mark.parametrize("ending", ["crash", "give back", "lease"])
def test_a_job_being_cancelled_ends_cancelled_however_its_worker_ends(
    database: Database, customer_id: UUID, queued: Callable[[], UUID], ending: str
) -> None:
    job_id = queued()
    fence = must_claim(database, lease_seconds=-1)
    with database.customer(customer_id) as session:
        jobs.cancel(session, job_id, JobKind.TUNE)
    if ending == "crash":
        crash(database, fence)
    elif ending == "give back":
        with database.customer(customer_id) as session:
            jobs.give_back(session, fence, "stopped")
    else:
        requeue(database)
    assert show(database, customer_id, job_id).state is JobState.CANCELLED


def test_events_are_numbered_without_a_gap_over_all_attempts(
    database: Database, customer_id: UUID, queued: Callable[[], UUID]
) -> None:
    job_id = queued()
    for epoch in (1, 2):
        fence = must_claim(database)
        with database.customer(customer_id) as session:
            jobs.record(session, fence, "epoch", {"epoch": epoch})
        with suppress(InterruptedError), database.customer(customer_id) as session:
            jobs.record(session, fence, "epoch", {"epoch": 99})
            raise InterruptedError  # the transaction rolls back, and the event's number with it
        crash(database, fence)
    with database.customer(customer_id) as session:
        events = jobs.events_after(session, job_id, 0, 100)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.data["epoch"] for event in events if event.type == "epoch"] == [1, 2]
        assert [event.number for event in jobs.events_after(session, job_id, 3, 2)] == [4, 5]


def test_newer_checkpoints_doom_all_but_the_one_before_and_the_end_dooms_all(
    database: Database, customer_id: UUID, queued: Callable[[], UUID]
) -> None:
    job_id = queued()
    fence = must_claim(database)
    for key in ("one", "two", "three"):
        with database.customer(customer_id) as session:
            resuming.keep_checkpoint(session, fence, {"key": key})
    assert doomed(database) == ["one"]
    with database.customer(customer_id) as session:
        jobs.succeed(session, fence, {})
    assert doomed(database) == ["one", f"jobs/{job_id.hex}/"]


def test_parts_are_kept_in_order_once_each_and_given_up_at_the_end(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        job_id = jobs.create(
            session, customer_id, JobKind.BATCH_PREDICT, dataset_id=uuid4(), dataset_version=1, payload={}
        ).id
    fence = claim_batch(database)

    def keep(key: str) -> None:
        with database.customer(customer_id) as session:
            resuming.keep_part(session, fence, {"key": key})

    def kept() -> list[str]:
        with database.customer(customer_id) as session:
            return [part["key"] for part in resuming.parts(jobs.get(session, job_id, JobKind.BATCH_PREDICT))]

    assert kept() == []
    for key in ("1/one", "1/two", "1/two"):  # a commit whose answer was lost is made again
        keep(key)
    assert kept() == ["1/one", "1/two"]
    crash(database, fence)
    with pytest.raises(LeaseLost):
        keep("1/late")
    late, fence = fence, claim_batch(database)
    keep("2/three")
    assert kept() == ["1/one", "1/two", "2/three"]
    with pytest.raises(LeaseLost), database.customer(customer_id) as session:
        resuming.keep_part(session, late, {"key": "1/late"})
    assert (kept(), doomed(database)) == (["1/one", "1/two", "2/three"], [])
    with database.customer(customer_id) as session:
        jobs.succeed(session, fence, {})
    assert doomed(database) == [f"jobs/{job_id.hex}/"]


def claim_batch(database: Database) -> Fence:
    with database.system() as session:
        job = jobs.claim(session, JobKind.BATCH_PREDICT, "a worker", LEASE)
    assert job is not None
    return jobs.fence_of(job)


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_a_batch_prediction_is_deleted_with_its_results_once_it_has_ended(
    database: Database, customer_id: UUID, end: str
) -> None:
    with database.customer(customer_id) as session:
        job_id = jobs.create(
            session, customer_id, JobKind.BATCH_PREDICT, dataset_id=uuid4(), dataset_version=1, payload={}
        ).id

    def delete() -> None:
        with database.customer(customer_id) as session:
            jobs.delete(session, job_id, JobKind.BATCH_PREDICT)

    for prepare in (lambda: None, lambda: claim_batch(database)):
        fence = prepare()
        with pytest.raises(Conflict) as caught:
            delete()
        assert caught.value.code == "job_unfinished"
    assert fence is not None
    with database.customer(customer_id) as session:
        if end == "succeed":
            jobs.succeed(session, fence, {})
        else:
            jobs.fail(session, fence, "out_of_memory", "no room")
    results = jobs.results_prefix(job_id)
    # What an attempt stored that then failed is nobody's.
    assert (results in doomed(database)) is (end == "fail")
    delete()
    assert results in doomed(database)
    with pytest.raises(NotFound):
        delete()
    with database.system() as session:
        assert session.scalar(text("SELECT count(*) FROM job_events")) == 0


def doomed(database: Database) -> list[str]:
    with database.system() as session:
        return list(session.scalars(text("SELECT key FROM doomed_objects ORDER BY id")))


def test_a_limit_on_unfinished_jobs_holds(database: Database, customer_id: UUID, queued: Callable[[], UUID]) -> None:
    queued(), queued()
    with pytest.raises(LimitReached) as caught, database.customer(customer_id) as session:
        jobs.create(
            session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={}, unfinished_limit=2
        )
    assert caught.value.code == "queue_limit"


def test_only_what_could_have_been_claimed_is_rung_for(database: Database, queued: Callable[[], UUID]) -> None:
    with database.system() as session:
        assert scheduling.kinds_waiting(session, 0) == []
    queued()
    with database.system() as session:
        assert scheduling.kinds_waiting(session, 0) == [JobKind.TUNE]
        assert scheduling.kinds_waiting(session, 60) == []
    must_claim(database)
    with database.system() as session:
        assert scheduling.kinds_waiting(session, 0) == []


def test_an_unknown_job_is_not_found(database: Database, customer_id: UUID) -> None:
    with pytest.raises(NotFound), database.customer(customer_id) as session:
        jobs.get(session, uuid4(), JobKind.TUNE)


def test_queue_depths_show_how_many_wait_and_for_how_long(database: Database, queued: Callable[[], UUID]) -> None:
    queued(), queued(), queued()
    must_claim(database)
    with database.system() as session:
        found = {(depth.kind, depth.state): depth for depth in scheduling.depths(session)}
    assert found[JobKind.TUNE, JobState.QUEUED].jobs == 2
    assert found[JobKind.TUNE, JobState.QUEUED].oldest_wait_seconds is not None
    assert found[JobKind.TUNE, JobState.RUNNING].jobs == 1
