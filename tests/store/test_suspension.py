"""Customers who are suspended, and resumed, and limited; nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from bpt_store import customers, datasets, jobs, quotas, scheduling
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.errors import Conflict, LimitReached, NotFound, Suspended, Unauthenticated
from bpt_store.models import Customer, Job, JobKind, JobState
from bpt_store.quotas import Limits

Make = Callable[[UUID], UUID]


@pytest.fixture
def make_job(database: Database) -> Make:
    def make(owner: UUID) -> UUID:
        with database.customer(owner) as session:
            made = jobs.create(session, owner, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
            return made.id

    return make


def other(database: Database, name: str = "other") -> UUID:
    with database.system() as session:
        return customers.create(session, name).id


def suspend(database: Database, customer_id: UUID) -> Customer:
    with database.system() as session:
        return customers.suspend(session, customer_id)


def resume(database: Database, customer_id: UUID) -> Customer:
    with database.system() as session:
        return customers.resume(session, customer_id)


def claim(database: Database) -> Job | None:
    with database.system() as session:
        return jobs.claim(session, JobKind.TUNE, "w", 30)


def test_a_suspended_customers_keys_are_refused_from_the_next_request_on_until_he_is_resumed(
    database: Database, customer_id: UUID
) -> None:
    theirs = other(database)
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "k", [Scope.PREDICT])
        _, wrong = customers.create_key(session, theirs, "k", [Scope.PREDICT])
    first = suspend(database, customer_id).suspended_at
    assert suspend(database, customer_id).suspended_at == first
    with pytest.raises(Suspended), database.system() as session:
        customers.authenticate(session, token)
    with pytest.raises(Unauthenticated), database.system() as session:
        customers.authenticate(session, token + "x")  # who has no secret is told nothing
    with database.system() as session:
        assert customers.authenticate(session, wrong).customer_id == theirs
    resume(database, customer_id)
    with database.system() as session:
        assert customers.authenticate(session, token).customer_id == customer_id


def test_jobs_of_a_suspended_customer_wait_and_those_of_others_do_not(
    database: Database, customer_id: UUID, make_job: Make
) -> None:
    mine = make_job(customer_id)
    suspend(database, customer_id)
    assert claim(database) is None
    with database.system() as session:
        assert scheduling.kinds_waiting(session, 0) == []  # nobody rings for what cannot be claimed
    theirs = make_job(other(database))
    with database.system() as session:
        assert scheduling.kinds_waiting(session, 0) == [JobKind.TUNE]
    claimed = claim(database)
    assert claimed is not None
    assert claimed.id == theirs
    resume(database, customer_id)
    claimed = claim(database)
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == (mine, 1)


def test_a_job_that_runs_while_its_customer_is_suspended_comes_to_its_end(
    database: Database, customer_id: UUID, make_job: Make
) -> None:
    make_job(customer_id)
    job = claim(database)
    assert job is not None
    suspend(database, customer_id)
    with database.customer(customer_id) as session:
        assert jobs.renew(session, jobs.fence_of(job), 30) is JobState.RUNNING
        assert jobs.succeed(session, jobs.fence_of(job), {}).state is JobState.SUCCEEDED


def test_a_job_given_back_while_its_customer_is_suspended_waits(
    database: Database, customer_id: UUID, make_job: Make
) -> None:
    make_job(customer_id)
    job = claim(database)
    assert job is not None
    suspend(database, customer_id)
    with database.customer(customer_id) as session:
        jobs.give_back(session, jobs.fence_of(job), "stopped")
    assert claim(database) is None
    resume(database, customer_id)
    again = claim(database)
    assert again is not None
    assert again.attempt == 2


def test_a_customers_own_limit_of_unfinished_jobs_counts_instead_of_the_services(
    database: Database, customer_id: UUID
) -> None:
    def create(limit: int) -> None:
        with database.customer(customer_id) as session:
            of: dict[str, Any] = {"dataset_id": uuid4(), "dataset_version": 1, "payload": {}}
            jobs.create(session, customer_id, JobKind.TUNE, **of, unfinished_limit=limit)

    def limit(most: int | None) -> None:
        with database.system() as session:
            customers.change(session, customer_id, {"queued_jobs_limit": most})

    create(1)
    limit(2)
    create(1)
    with pytest.raises(LimitReached, match="2 jobs"):
        create(100)
    limit(None)
    create(100)


@pytest.mark.parametrize(
    ("column", "most", "fits", "more"),
    [
        ("quota_datasets", 1, {"datasets": 1}, {"datasets": 2}),
        ("quota_images", 5, {"images": 5}, {"images": 6}),
        ("quota_bytes", 7, {"stored_bytes": 7}, {"stored_bytes": 8}),
    ],
)
def test_a_customers_own_quota_counts_instead_of_the_services(
    database: Database, customer_id: UUID, column: str, most: int, fits: dict[str, int], more: dict[str, int]
) -> None:
    with database.system() as session:
        customers.change(session, customer_id, {column: most})
    for service in (Limits(0, 0, 0), Limits(100, 100, 100)):
        with database.customer(customer_id) as session:
            quotas.check(session, customer_id, service, **fits)
        with pytest.raises(LimitReached), database.customer(customer_id) as session:
            quotas.check(session, customer_id, service, **more)
    with database.system() as session:
        customers.change(session, customer_id, {column: None})
    with pytest.raises(LimitReached), database.customer(customer_id) as session:
        quotas.check(session, customer_id, Limits(0, 0, 0), **fits)


def test_a_quota_below_what_is_there_only_refuses_more(database: Database, customer_id: UUID) -> None:
    plenty = Limits(9, 9, 9)
    with database.customer(customer_id) as session:
        datasets.create(session, customer_id, "d", {}, {"parts": []}, limits=plenty)
    with database.system() as session:
        customers.change(session, customer_id, {"quota_datasets": 0})
    with database.customer(customer_id) as session:
        quotas.check(session, customer_id, plenty, images=1)
        assert quotas.use(session, customer_id).datasets == 1


def test_a_customer_can_be_renamed_but_not_as_another(database: Database, customer_id: UUID) -> None:
    other(database)
    with database.system() as session:
        assert customers.change(session, customer_id, {"name": "new"}).name == "new"
    with pytest.raises(Conflict) as caught, database.system() as session:
        customers.change(session, customer_id, {"name": "other"})
    assert caught.value.code == "name_taken"
    for act in (customers.suspend, customers.resume):
        with pytest.raises(NotFound), database.system() as session:
            act(session, uuid4())
