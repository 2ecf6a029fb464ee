"""Who is next: fair between customers, in order within one, within limits; and what the customer is told of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from alembic import command
from sqlalchemy import func, select, text, update

from bpt_store import customers, jobs, scheduling
from bpt_store.db import Database
from bpt_store.models import Customer, Job, JobKind, JobState, QueueShare
from bpt_store.scheduling import EXPECTED_SECONDS, Priority, Reason
from bpt_store.settings import Settings
from migrations.config import alembic_config

LEASE = 30.0


@pytest.fixture
def customer(database: Database) -> Callable[..., UUID]:
    def make(name: str, *, weight: float = 1, limit: int | None = None) -> UUID:
        with database.system() as session:
            row = customers.create(session, name)
            row.weight, row.running_jobs_limit = weight, limit
            return row.id

    return make


def submit(database: Database, owner: UUID, count: int = 1, *, priority: Priority = Priority.NORMAL) -> list[UUID]:
    made = []
    for _ in range(count):
        with database.customer(owner) as session:
            job = jobs.create(
                session, owner, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={}, priority=priority
            )
            made.append(job.id)
    return made


def claim(database: Database, running_limit: int | None = None) -> Job | None:
    with database.system() as session:
        return jobs.claim(session, JobKind.TUNE, "w", LEASE, running_limit=running_limit)


def finish(database: Database, job: Job, worked_seconds: float = EXPECTED_SECONDS) -> None:
    with database.system() as session:
        begun = func.clock_timestamp() - timedelta(seconds=worked_seconds)
        session.execute(update(Job).where(Job.id == job.id).values(claimed_at=begun))
    with database.customer(job.customer_id) as session:
        jobs.succeed(session, jobs.fence_of(job), {})


def turns(database: Database, count: int, seconds: Callable[[UUID], float] = lambda _: EXPECTED_SECONDS) -> list[UUID]:
    """One worker does `count` jobs one after another -> whose they were."""
    order = []
    for _ in range(count):
        job = claim(database)
        assert job is not None
        order.append(job.customer_id)
        finish(database, job, seconds(job.customer_id))
    return order


def test_two_customers_take_turns_however_many_jobs_one_has(database: Database, customer: Callable[..., UUID]) -> None:
    many, few = customer("many"), customer("few")
    submit(database, many, 20)
    assert turns(database, 5) == [many] * 5
    submit(database, few, 3)  # whose turn is first is a matter of milliseconds
    assert turns(database, 8).count(few) == 3
    assert turns(database, 2) == [many] * 2


def test_weights_are_shares_of_the_time_of_workers(database: Database, customer: Callable[..., UUID]) -> None:
    heavy, light = customer("heavy", weight=3), customer("light")
    submit(database, heavy, 30), submit(database, light, 30)
    assert turns(database, 20).count(heavy) == pytest.approx(15, abs=1)


def test_what_counts_is_time_and_not_the_number_of_jobs(database: Database, customer: Callable[..., UUID]) -> None:
    long, short = customer("long"), customer("short")
    submit(database, long, 20), submit(database, short, 60)
    order = Counter(turns(database, 44, lambda owner: 300.0 if owner == long else 30.0))
    assert order[short] / order[long] == pytest.approx(10, rel=0.2)


def test_being_away_earns_no_credit(database: Database, customer: Callable[..., UUID]) -> None:
    busy, away = customer("busy"), customer("away")
    submit(database, away), submit(database, busy, 40)
    turns(database, 20)
    submit(database, away, 10)
    assert turns(database, 10).count(away) == pytest.approx(5, abs=1)


def test_nobody_starves_among_customers_that_never_stop(database: Database, customer: Callable[..., UUID]) -> None:
    owners = [customer(f"customer {n}", weight=10) for n in range(4)]
    light = customer("light", weight=0.5)
    for owner in [*owners, light]:
        submit(database, owner, 60)
    order = turns(database, 110)
    assert order.count(light) >= 1


def test_within_a_customer_priority_comes_first_and_then_age(database: Database, customer: Callable[..., UUID]) -> None:
    owner, other = customer("acme"), customer("other")
    (first, second), (low,), (high,) = (
        submit(database, owner, 2),
        submit(database, owner, priority=Priority.LOW),
        submit(database, owner, priority=Priority.HIGH),
    )
    submit(database, other)
    claimed = []
    while (job := claim(database)) is not None:
        if job.customer_id == owner:
            claimed.append(job.id)
    assert claimed == [high, first, second, low]


def test_a_customer_runs_as_many_jobs_as_he_may_and_others_go_on(
    database: Database, customer: Callable[..., UUID]
) -> None:
    limited, free = customer("limited", limit=2), customer("free")
    submit(database, limited, 5), submit(database, free, 2)
    claimed = [job for _ in range(5) if (job := claim(database)) is not None]
    assert Counter(job.customer_id for job in claimed) == {limited: 2, free: 2}
    finish(database, next(job for job in claimed if job.customer_id == limited))
    again = claim(database)
    assert again is not None
    assert again.customer_id == limited
    assert claim(database) is None


def test_the_limit_of_all_is_for_those_who_have_none_of_their_own(
    database: Database, customer: Callable[..., UUID]
) -> None:
    own, none = customer("own", limit=2), customer("none")
    submit(database, own, 3), submit(database, none, 3)
    claimed = [job for _ in range(6) if (job := claim(database, 1)) is not None]
    assert Counter(job.customer_id for job in claimed) == {own: 2, none: 1}


def test_a_job_that_may_not_run_yet_holds_up_nobody(database: Database, customer: Callable[..., UUID]) -> None:
    crashed, fine = customer("crashed"), customer("fine")
    (early,) = submit(database, crashed)
    with database.system() as session:
        session.get_one(Job, early).available_at = func.now() + timedelta(hours=1)
    (late,) = submit(database, fine)
    job = claim(database)
    assert job is not None
    assert job.id == late
    assert claim(database) is None


def test_a_claim_waits_for_one_of_the_same_customer_and_not_for_the_next_doorbell(
    database: Database, customer: Callable[..., UUID]
) -> None:
    first, second = submit(database, customer("acme"), 2)
    found: list[UUID] = []

    def claim_too() -> None:
        job = claim(database)
        found.extend([job.id] if job else [])

    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "w", LEASE)
        assert job is not None
        other = threading.Thread(target=claim_too)
        other.start()
        while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            assert other.is_alive()
    other.join()
    assert [job.id, *found] == [first, second]


def counted(database: Database) -> dict[tuple[UUID, JobKind], tuple[int, int]]:
    with database.system() as session:
        rows = session.execute(select(QueueShare.customer_id, QueueShare.kind, QueueShare.queued, QueueShare.running))
        return {(owner, kind): (queued, running) for owner, kind, queued, running in rows}


def test_the_database_counts_whatever_happens_to_jobs(database: Database, customer: Callable[..., UUID]) -> None:
    owner = customer("acme")
    key = (owner, JobKind.TUNE)
    made = submit(database, owner, 6)
    assert counted(database)[key] == (6, 0)
    with database.customer(owner) as session:
        jobs.cancel(session, made[5], JobKind.TUNE)
    assert counted(database)[key] == (5, 0)
    claimed = [claim(database) for _ in range(4)]
    assert counted(database)[key] == (1, 4)
    fences = [jobs.fence_of(job) for job in claimed if job is not None]
    with database.customer(owner) as session:
        jobs.succeed(session, fences[0], {})
        jobs.give_back(session, fences[1], "stopped")
        jobs.crash(session, fences[2], "c", "d", max_failures=1, backoff_seconds=0)
        jobs.cancel(session, fences[3].job_id, JobKind.TUNE)
    assert counted(database)[key] == (2, 1)
    with database.customer(owner) as session:
        jobs.cancelled(session, fences[3])
        jobs.delete(session, fences[0].job_id, JobKind.TUNE)
    assert counted(database)[key] == (2, 0)
    with suppress(ZeroDivisionError), database.customer(owner) as session:
        jobs.cancel(session, fences[1].job_id, JobKind.TUNE)
        raise ZeroDivisionError
    assert counted(database)[key] == (2, 0)
    with database.system() as session:
        session.delete(session.get_one(Customer, owner))
    assert key not in counted(database)


def test_counts_begin_with_the_jobs_that_are_there(database: Database, settings: Settings, customer_id: UUID) -> None:
    submit(database, customer_id, 3)
    claim(database)
    assert settings.owner_database_url is not None
    config = alembic_config(settings.owner_database_url.get_secret_value())
    command.downgrade(config, "0004")
    command.upgrade(config, "head")
    assert counted(database) == {(customer_id, JobKind.TUNE): (2, 1)}


# --- what the customer is told -----------------------------------------------------------------------------------


def stands(database: Database, job_id: UUID, running_limit: int | None = None) -> tuple[Reason, int]:
    with database.system() as session:
        found = scheduling.waiting(session, session.get_one(Job, job_id), running_limit)
    return found.reason, found.ahead


def test_a_job_knows_how_many_come_before_it(database: Database, customer: Callable[..., UUID]) -> None:
    mine, other, heavy = customer("mine"), customer("other"), customer("heavy", weight=2)
    submit(database, other, 10), submit(database, heavy, 10)
    own = submit(database, mine, 3)
    predicted = stands(database, own[2])[1]
    claimed = []
    while own[2] not in claimed:
        job = claim(database)
        assert job is not None
        claimed.append(job.id)
        finish(database, job)
    assert abs(predicted - (len(claimed) - 1)) <= 2
    assert predicted >= 6


def test_a_job_knows_why_it_waits(database: Database, customer: Callable[..., UUID]) -> None:
    owner = customer("acme", limit=1)
    first, second = submit(database, owner, 2)
    assert stands(database, first) == (Reason.NO_WORKER, 0)
    assert stands(database, second) == (Reason.BEHIND_OTHERS, 1)
    running = claim(database)
    assert running is not None
    assert stands(database, second) == (Reason.RUNNING_LIMIT, 0)
    (third,) = submit(database, customer("other"))
    assert stands(database, third) == (Reason.WORKERS_BUSY, 0)
    with database.customer(owner) as session:
        jobs.crash(session, jobs.fence_of(running), "c", "d", max_failures=3, backoff_seconds=60)
    assert stands(database, first)[0] == Reason.BACKOFF


def test_when_it_starts_is_told_from_what_jobs_took_lately(database: Database, customer: Callable[..., UUID]) -> None:
    owner = customer("acme")
    done, _, last = submit(database, owner, 3)
    with database.system() as session:
        waiting = scheduling.waiting(session, session.get_one(Job, last))
    assert waiting.start_in_seconds is None
    job = claim(database)
    assert job is not None
    finish(database, job, 100)
    assert job.id == done
    claim(database)
    with database.system() as session:
        waiting = scheduling.waiting(session, session.get_one(Job, last))
        assert session.get_one(Job, last).state is JobState.QUEUED
    assert waiting.start_in_seconds == pytest.approx(100, abs=1)
