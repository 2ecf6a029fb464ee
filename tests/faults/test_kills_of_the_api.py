"""kill -9 of the API in the middle of a request: the client asks again with the same key, and there is one of it.

The moments are reached without a hook in the service: a row that another transaction holds keeps the API's from its
end, and a trigger of the test's keeps its COMMIT from returning while the API is frozen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from sqlalchemy import Connection, create_engine, text

from bpt_store.up import environment_of
from tests.service import Customer, Service, eventually

KEY = {"Idempotency-Key": "one and the same"}
LOCK = 20_261_122  # the test's own
HOLD_COMMIT = f"""
    CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock({LOCK}); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON idempotency_records
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold_commit()
"""
LET_COMMIT = "DROP TRIGGER hold_commit ON idempotency_records; DROP FUNCTION hold_commit()"


@contextmanager
def connected(service: Service, role: str) -> Iterator[Connection]:
    """One transaction, undone at the end unless it was committed."""
    engine = create_engine(environment_of(service.data_dir)[f"BPT_{role}_DATABASE_URL"])
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def asked(dataset: dict[str, Any], prompt_set: str) -> dict[str, Any]:
    return {
        "dataset": dataset["id"],
        "prompt_set": prompt_set,
        "method": {"type": "bpt-bilinear", "prompts": 4, "rank": 2},
        "hyperparameters": {"epochs": 2, "head_fit_epochs": 2, "views": 1},
    }


@contextmanager
def sent(service: Service, key: str, path: str, body: dict[str, Any]) -> Iterator[Future[httpx.Response]]:
    """A request on its way, that will break."""
    with ThreadPoolExecutor(1) as pool, service.client(key) as http:
        reply = pool.submit(http.post, path, json=body, headers=KEY)
        yield reply
        with pytest.raises(httpx.TransportError):
            reply.result(timeout=30)


def sent_again(service: Service, key: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """As a client does it: until the API is back and what it was at has ended."""

    def look() -> httpx.Response | None:
        try:
            with service.client(key) as http:
                reply = http.post(path, json=body, headers=KEY)
        except httpx.TransportError:
            return None
        if reply.status_code == 409 and reply.json()["code"] == "idempotency_in_progress":
            return None
        return reply

    return eventually(look, what="an answer")


def the_api(service: Service) -> psutil.Process:
    (process,) = service.processes("api.app")
    return process


def waiting(service: Service, kind: str) -> bool | None:
    """Whether a session of the database waits for a lock of this kind."""
    query = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = :kind"
    with connected(service, "SUPERUSER") as connection:
        return connection.scalar(text(query), {"kind": kind}) is not None or None


def jobs_of(customer: Customer) -> list[Any]:
    query = "SELECT id, state FROM jobs WHERE customer_id = :customer AND kind = 'tune'"
    return customer.service.rows(query, customer=customer.uuid)


def kill_between_commit_and_reply(service: Service, key: str, path: str, body: dict[str, Any]) -> None:
    """The API has sent its COMMIT and sleeps while PostgreSQL carries it out; it never learns of it."""
    records = "SELECT count(*) FROM idempotency_records"
    before = service.rows(records)[0][0]
    with connected(service, "OWNER") as owner, connected(service, "SYSTEM") as holder:
        owner.execute(text(HOLD_COMMIT))
        owner.commit()
        try:
            holder.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
            with sent(service, key, path, body):
                eventually(lambda: waiting(service, "advisory"), what="the COMMIT")
                api = the_api(service)
                api.suspend()
                holder.execute(text(f"SELECT pg_advisory_unlock({LOCK})"))
                eventually(lambda: service.rows(records)[0][0] == before + 1 or None, what="what was committed")
                api.kill()
        finally:
            owner.execute(text(LET_COMMIT))
            owner.commit()


def test_killed_before_the_commit_there_is_no_job_and_the_same_key_makes_one(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    body = asked(dataset, "flowers")
    with connected(service, "SYSTEM") as holder:
        holder.execute(
            text("INSERT INTO prompt_sets (customer_id, name) VALUES (:customer, 'flowers')"),
            {"customer": customer.uuid},
        )
        with sent(service, customer.key, "/v1/tuning-jobs", body):
            eventually(lambda: waiting(service, "transactionid"), what="the API at the row that is held")
            the_api(service).kill()
        holder.rollback()
    assert jobs_of(customer) == []
    reply = sent_again(service, customer.key, "/v1/tuning-jobs", body)
    assert reply.status_code == 201, reply.text
    assert [row.id.hex for row in jobs_of(customer)] == [reply.json()["id"].removeprefix("job_")]


def test_killed_after_the_commit_the_same_key_gets_the_answer_that_was_lost(service: Service) -> None:
    name = f"customer {uuid4().hex}"
    kill_between_commit_and_reply(service, service.admin_key, "/v1/customers", {"name": name})
    made = service.rows("SELECT id FROM customers WHERE name = :name", name=name)
    reply = sent_again(service, service.admin_key, "/v1/customers", {"name": name})
    assert (reply.status_code, reply.json()["id"]) == (201, f"cus_{made[0].id.hex}"), reply.text
    assert service.rows("SELECT id FROM customers WHERE name = :name", name=name) == made


def test_killed_between_commit_and_doorbell_the_job_runs_all_the_same_and_once(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    body = asked(dataset, "flowers")
    kill_between_commit_and_reply(service, customer.key, "/v1/tuning-jobs", body)
    (job,) = jobs_of(customer)
    committed = time.monotonic()

    def taken() -> bool | None:
        return service.rows("SELECT state FROM jobs WHERE id = :id", id=job.id)[0].state != "queued" or None

    eventually(taken, seconds=20, what="a worker")
    assert time.monotonic() - committed < 10  # the sweep rings for what waits
    reply = sent_again(service, customer.key, "/v1/tuning-jobs", body)
    assert (reply.status_code, reply.json()["id"]) == (201, f"job_{job.id.hex}"), reply.text
    assert reply.headers["Location"] == f"/v1/tuning-jobs/{reply.json()['id']}"
    finished = customer.finished(reply.json())
    assert (finished["state"], finished["attempt"]) == ("succeeded", 1)
    assert len(jobs_of(customer)) == 1
