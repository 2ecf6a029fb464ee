"""What a customer is told of a job that waits or runs: why, how many come before it, and when it will be done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests import archives
from tests.service import Customer, Service, eventually


@pytest.fixture
def customer(service: Service) -> Customer:
    return service.new_customer()


def test_jobs_wait_in_the_order_of_their_priority_and_say_where_they_stand(
    service: Service, customer: Customer
) -> None:
    dataset = customer.upload(archives.flowers())
    long: dict[str, Any] = {"epochs": 5000, "head_fit_epochs": 2, "views": 1}
    running = customer.tune(dataset, hyperparameters=long)
    progress = eventually(lambda: customer.job(running)["progress"], what="an epoch")
    assert progress["epoch"] >= 1
    later = customer.tune(dataset, priority="low")
    sooner = customer.tune(dataset, priority="high")
    seen = [customer.job(job) for job in (later, sooner)]
    assert [job["priority"] for job in seen] == ["low", "high"]
    assert [(job["waiting"]["reason"], job["waiting"]["ahead"]) for job in seen] == [
        ("behind_others", 1),
        ("workers_busy", 0),
    ]
    now = customer.job(running)
    assert now["waiting"] is None
    assert datetime.fromisoformat(now["estimated_finish_at"]) > datetime.now(UTC) + timedelta(minutes=1)
    with customer.http() as http:
        listed = http.get("/v1/tuning-jobs").json()["data"]
        assert [job["waiting"] for job in listed] == [None] * 3
        for job in (running, later, sooner):
            http.post(f"/v1/tuning-jobs/{job['id']}/cancel")
    assert customer.finished(running)["state"] == "cancelled"
    assert customer.job(later)["waiting"] is customer.job(later)["estimated_finish_at"] is None


def test_a_priority_that_is_none_is_refused(customer: Customer) -> None:
    body = {"dataset": "ds_0199c0de000070008000000000000000", "prompt_set": "a", "priority": "urgent"}
    with customer.http() as http:
        reply = http.post("/v1/tuning-jobs", json=body)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
