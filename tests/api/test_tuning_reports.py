"""GET /v1/tuning-jobs/{id}/report: when it is there, and what it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from bpt_core.review import unavailable
from bpt_store import customers, ids, jobs
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.settings import Role, Settings

IMAGE = {"item": "itm_1", "path": "train/a.png", "split": "train", "given": ["daisy"]}
REPORT: dict[str, Any] = {
    "error": None,
    "label_errors": {
        "total": 2,
        "items": [
            {**IMAGE, "suggested": ["rose"], "confidence": 0.9, "source": "cross-validation"},
            {**IMAGE, "item": None, "split": "test", "suggested": [], "confidence": 0.1, "source": "tuned"},
        ],
    },
    "hardest": [{**IMAGE, "predicted": ["rose", "lily"], "loss": 3.5}],
    "confused_pairs": [{"split": "test", "true": "daisy", "predicted": "rose", "images": 3, "rate": 0.5}],
    "sampled": {"images": 20_000, "of": 30_000},
    "left_out": [{"class": "lily", "images": 4, "reason": "too few"}],
}


@pytest.fixture
def http(settings: Settings, database: Database, customer_id: UUID) -> Iterator[TestClient]:
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "tests", CUSTOMER_SCOPES)
    app = create_app(settings.model_copy(update={"role": Role.API}))
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def test_the_report_is_there_once_the_job_has_succeeded(
    http: TestClient, database: Database, customer_id: UUID
) -> None:
    dataset_id = uuid4()

    def reports(report: dict[str, Any] | None, end: str) -> list[tuple[int, dict[str, Any]]]:
        """What is answered while a job waits, while it runs, and after its end."""
        found: list[tuple[int, dict[str, Any]]] = []

        def ask() -> None:
            reply = http.get(f"/v1/tuning-jobs/{ids.public(ids.JOB, job_id)}/report")
            found.append((reply.status_code, reply.json()))

        with database.customer(customer_id) as session:
            job_id = jobs.create(
                session, customer_id, JobKind.TUNE, dataset_id=dataset_id, dataset_version=3, payload={}
            ).id
        ask()
        with database.system() as session:
            job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
        assert job is not None
        ask()
        with database.customer(customer_id) as session:
            if report is not None:
                jobs.keep_report(session, jobs.fence_of(job), report)
            if end == "succeed":
                jobs.succeed(session, jobs.fence_of(job), {})
            else:
                jobs.fail(session, jobs.fence_of(job), "diverged", "no number")
        ask()
        return found

    waiting, running, (status, answer) = reports(REPORT, "succeed")
    assert [(each[0], each[1]["code"]) for each in (waiting, running)] == [(409, "job_unfinished")] * 2
    assert status == 200
    assert (answer.pop("dataset"), answer.pop("dataset_version")) == (ids.public(ids.DATASET, dataset_id), 3)
    assert answer.pop("job").startswith("job_")
    assert answer.pop("left_out") == [{"class_name": "lily", "images": 4, "reason": "too few"}]
    assert answer == {name: value for name, value in REPORT.items() if name != "left_out"}

    assert reports(unavailable(), "succeed")[-1][1]["error"]["code"] == "report_failed"
    for end, why in (("succeed", "older"), ("fail", "failed")):
        status, answer = reports(None, end)[-1]
        assert (status, answer["code"]) == (404, "not_found")
        assert why in answer["detail"]


def test_a_job_that_is_none_and_a_stranger_get_nothing(http: TestClient) -> None:
    reply = http.get(f"/v1/tuning-jobs/{ids.public(ids.JOB, uuid4())}/report")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert http.get("/v1/tuning-jobs/nonsense/report").status_code == 404
    assert http.get("/v1/tuning-jobs/job_1/report", headers={"Authorization": "Bearer no"}).status_code == 401
