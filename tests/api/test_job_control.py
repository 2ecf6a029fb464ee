"""Pausing, resuming and trying again over HTTP; budgets; what is told of a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, text

from api.app import create_app
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_store import checkpoints, customers, ids, jobs, prompt_sets
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.jobs import Fence
from bpt_store.models import Dataset, DatasetState, DatasetVersion, DoomedObject, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Role, Settings

RECIPE = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0)
PAYLOAD = {"backbone": "vit_tiny_patch8_64.mae", "prompt_set": "p", "recipe": RECIPE.to_dict(), "parameters": 0}


@pytest.fixture
def open_client(settings: Settings, database: Database, customer_id: UUID) -> Iterator[Callable[..., TestClient]]:
    clients: list[TestClient] = []

    def open_client(scopes: list[Scope] | None = None, customer: UUID = customer_id) -> TestClient:
        with database.system() as session:
            _, token = customers.create_key(session, customer, "tests", scopes or list(CUSTOMER_SCOPES))
        few = settings.model_copy(update={"role": Role.API, "queued_jobs_limit": 2})
        clients.append(TestClient(create_app(few), headers={"Authorization": f"Bearer {token}"}))
        return clients[-1].__enter__()

    yield open_client
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def dataset_id(database: Database, customer_id: UUID) -> UUID:
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="d", state=DatasetState.READY, latest=1)
        session.add(dataset)
        session.flush()
        session.add(
            DatasetVersion(
                **{"customer_id": customer_id, "dataset_id": dataset.id, "number": 1, "state": DatasetState.READY},
                **{"task": "single-label", "class_names": ["a", "b"], "images": 30},
                splits={"train": 20, "val": 5, "test": 5},
            )
        )
        return dataset.id


@pytest.fixture
def create(database: Database, customer_id: UUID, dataset_id: UUID) -> Callable[[], str]:
    def create() -> str:
        with database.customer(customer_id) as session:
            job = jobs.create(
                session, customer_id, JobKind.TUNE, dataset_id=dataset_id, dataset_version=1, payload=PAYLOAD
            )
            return ids.public(ids.JOB, job.id)

    return create


def claim(database: Database) -> Fence:
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "w", 30.0)
    assert job is not None
    return jobs.fence_of(job)


def rows(database: Database) -> dict[str, int]:
    """What there is of jobs, and of what they stored."""
    tables = ("jobs", "job_events", "job_checkpoints", "prompt_set_versions")
    with database.system() as session:
        return {table: session.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in tables}


def ask(http: TestClient, job: str, verb: str) -> tuple[int, str]:
    """-> status, and the job's state or the code of the problem."""
    reply = http.post(f"/v1/tuning-jobs/{job}/{verb}")
    body: dict[str, Any] = reply.json()
    return reply.status_code, body["state"] if reply.status_code < 300 else body["code"]


def test_a_job_is_paused_resumed_and_tried_again(
    open_client: Callable[..., TestClient], database: Database, customer_id: UUID, create: Callable[[], str]
) -> None:
    http, job = open_client(), create()
    assert [ask(http, job, verb) for verb in ("pause", "pause")] == [(200, "paused")] * 2
    assert ask(http, job, "retry") == (409, "job_unfinished")
    assert [ask(http, job, verb) for verb in ("resume", "resume")] == [(200, "queued")] * 2
    fence = claim(database)
    assert [ask(http, job, verb) for verb in ("pause", "pause")] == [(200, "pausing")] * 2
    assert ask(http, job, "resume") == (409, "job_pausing")
    with database.customer(customer_id) as session:
        jobs.give_back(session, fence, "stopped")
    shown = http.get(f"/v1/tuning-jobs/{job}").json()
    assert (shown["state"], shown["failures"], shown["worked_seconds"] > 0) == ("paused", 0, True)
    assert [each["id"] for each in http.get("/v1/tuning-jobs", params={"state": "paused"}).json()["data"]] == [job]
    assert ask(http, job, "resume") == (200, "queued")
    fence = claim(database)
    assert ask(http, job, "cancel") == (200, "cancelling")
    assert [ask(http, job, verb) for verb in ("pause", "resume")] == [(409, "job_cancelling")] * 2
    with database.customer(customer_id) as session:
        jobs.give_back(session, fence, "stopped")
    assert [ask(http, job, verb) for verb in ("pause", "resume", "cancel")] == [(409, "job_terminal")] * 3
    assert ask(http, job, "retry") == (200, "queued")
    with database.customer(customer_id) as session:
        jobs.succeed(session, claim(database), {"stopped_by": "budget"})
    assert ask(http, job, "retry") == (409, "job_succeeded")
    assert http.get(f"/v1/tuning-jobs/{job}").json()["stopped_by"] == "budget"


def test_what_is_not_there_or_not_allowed_is_refused(
    open_client: Callable[..., TestClient], database: Database, create: Callable[[], str]
) -> None:
    job = create()
    with database.system() as session:
        stranger = customers.create(session, "stranger").id
    for verb in ("pause", "resume", "retry"):
        assert ask(open_client([Scope.JOBS_READ]), job, verb) == (403, "insufficient_scope")
        assert ask(open_client(customer=stranger), job, verb) == (404, "not_found")


def test_a_failed_job_shows_what_it_said_last_until_it_is_tried_again(
    open_client: Callable[..., TestClient], database: Database, customer_id: UUID, create: Callable[[], str]
) -> None:
    http, job = open_client(), create()
    with database.customer(customer_id) as session:
        jobs.fail(session, claim(database), "diverged", "no number", log=["one", "two"])
    shown = http.get(f"/v1/tuning-jobs/{job}").json()
    assert shown["error"] == {"code": "diverged", "detail": "no number", "log": ["one", "two"]}
    http.post(f"/v1/tuning-jobs/{job}/retry")
    shown = http.get(f"/v1/tuning-jobs/{job}").json()
    assert (shown["error"], shown["finished_at"], shown["failures"]) == (None, None, 0)


def test_another_try_needs_the_dataset_and_room_in_the_queue(
    open_client: Callable[..., TestClient],
    database: Database,
    customer_id: UUID,
    dataset_id: UUID,
    create: Callable[[], str],
) -> None:
    http, job = open_client(), create()
    http.post(f"/v1/tuning-jobs/{job}/cancel")
    others = [create(), create()]
    ask(http, others[0], "pause")
    assert ask(http, job, "retry") == (429, "queue_limit")
    for other in others:
        http.post(f"/v1/tuning-jobs/{other}/cancel")
    with database.system() as session:
        session.execute(text("DELETE FROM datasets WHERE id = :id"), {"id": dataset_id})
    assert ask(http, job, "retry") == (404, "not_found")
    assert http.get(f"/v1/tuning-jobs/{job}").json()["state"] == "cancelled"


def test_another_try_makes_the_prompt_set_again_that_was_deleted_meanwhile(
    open_client: Callable[..., TestClient], dataset_id: UUID
) -> None:
    http, path = open_client(), "/v1/prompt-sets/birds"
    body = {"dataset": ids.public(ids.DATASET, dataset_id), "prompt_set": "birds"}
    job = http.post("/v1/tuning-jobs", json=body).json()["id"]
    assert http.delete(path).json()["code"] == "prompt_set_in_use"
    http.post(f"/v1/tuning-jobs/{job}/cancel")
    assert http.delete(path).status_code == 204
    assert ask(http, job, "retry") == (200, "queued")
    assert http.delete(path).json()["code"] == "prompt_set_in_use"


def test_a_dataset_that_a_paused_job_needs_cannot_be_deleted(
    open_client: Callable[..., TestClient], dataset_id: UUID, create: Callable[[], str]
) -> None:
    http = open_client()
    ask(http, create(), "pause")
    reply = http.delete(f"/v1/datasets/{ids.public(ids.DATASET, dataset_id)}")
    assert (reply.status_code, reply.json()["code"]) == (409, "dataset_in_use")


def test_a_budget_is_shown_with_the_plan_and_the_job(open_client: Callable[..., TestClient], dataset_id: UUID) -> None:
    http = open_client()
    body = {"dataset": ids.public(ids.DATASET, dataset_id), "prompt_set": "p", "budget": {"max_minutes": 1.5}}
    assert http.post("/v1/tuning-jobs", json={**body, "dry_run": True}).json()["budget"] == {"max_minutes": 1.5}
    made = http.post("/v1/tuning-jobs", json=body)
    assert (made.status_code, made.json()["budget"], made.json()["stopped_by"]) == (201, {"max_minutes": 1.5}, None)
    plain = http.post("/v1/tuning-jobs", json={**body, "budget": None})
    assert (plain.status_code, plain.json()["budget"]) == (201, None)


@pytest.mark.parametrize("budget", [0, -1, 43_201, "NaN", "Infinity", "much", None])
def test_a_budget_that_is_none_is_refused(
    open_client: Callable[..., TestClient], dataset_id: UUID, budget: object
) -> None:
    body = {"dataset": ids.public(ids.DATASET, dataset_id), "prompt_set": "p", "budget": {"max_minutes": budget}}
    reply = open_client().post("/v1/tuning-jobs", json=body)
    assert (reply.status_code, reply.json()["param"]) == (422, "budget.max_minutes")


def test_a_job_that_has_ended_is_deleted_with_all_that_it_kept_and_what_it_published_stays(
    open_client: Callable[..., TestClient], database: Database, customer_id: UUID, create: Callable[[], str]
) -> None:
    http, job = open_client(), create()
    url = f"/v1/tuning-jobs/{job}"
    refused = [http.delete(url)]
    fence = claim(database)
    refused += [http.delete(url)]
    assert [(reply.status_code, reply.json()["code"]) for reply in refused] == [(409, "job_unfinished")] * 2
    with database.customer(customer_id) as session:
        left = checkpoints.Left(1, b"an artifact", 0.5, {}, {})
        checkpoints.keep(session, fence, left, most=2)
        made = prompt_sets.get_or_create(session, customer_id, "p")
        publication = Publication(b"an artifact", "vit", "f", ["a"], RECIPE.to_dict(), 0, {})
        prompt_sets.publish(session, made.id, publication, job_id=fence.job_id, dataset_id=None)
        jobs.succeed(session, fence, {})
        session.execute(delete(DoomedObject))  # a worker that was late may have stored something since
    assert http.delete(url).status_code == 204
    assert rows(database) == {"jobs": 0, "job_events": 0, "job_checkpoints": 0, "prompt_set_versions": 1}
    with database.system() as session:
        doomed = {*session.scalars(select(DoomedObject.key))}
    assert jobs.work_prefix(fence.job_id) in doomed
    assert http.delete(url).status_code == http.get(url).status_code == 404
    assert http.get("/v1/prompt-sets/p/versions").json()["data"][0]["job"] == job


def test_somebody_elses_job_cannot_be_deleted(
    open_client: Callable[..., TestClient], database: Database, create: Callable[[], str]
) -> None:
    http, job = open_client(), create()
    assert ask(http, job, "cancel") == (200, "cancelled")
    with database.system() as session:
        other = customers.create(session, "other").id
    assert open_client(customer=other).delete(f"/v1/tuning-jobs/{job}").status_code == 404
    reader = open_client([scope for scope in CUSTOMER_SCOPES if scope is not Scope.JOBS_WRITE])
    assert reader.delete(f"/v1/tuning-jobs/{job}").status_code == 403
    assert rows(database)["jobs"] == 1
