"""A running job is paused and resumed: it frees its worker, loses at most an epoch, and ends as if nothing had been."""

from __future__ import annotations

from typing import Any

from tests.service import Customer, Service, eventually

EPOCHS = 9
LONG: dict[str, Any] = {"hyperparameters": {"epochs": EPOCHS, "batch_size": 4, "head_fit_epochs": 2, "views": 1}}


def events(customer: Customer, job: dict[str, Any]) -> list[dict[str, Any]]:
    with customer.http() as http:
        found: list[dict[str, Any]] = http.get(f"/v1/tuning-jobs/{job['id']}/events", params={"limit": 100}).json()[
            "data"
        ]
    return found


def epochs(customer: Customer, job: dict[str, Any], attempt: int) -> list[int]:
    return [
        event["data"]["epoch"]
        for event in events(customer, job)
        if event["type"] == "epoch" and event["attempt"] == attempt
    ]


def in_state(customer: Customer, job: dict[str, Any], state: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = customer.job(job)
        return found if found["state"] == state else None

    return eventually(there, seconds=20, what=f"a job that is {state}")


def test_a_paused_job_frees_its_worker_and_goes_on_where_it_was(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, **LONG)
    eventually(lambda: len(epochs(customer, job, 1)) >= 3 or None, seconds=120, what="three epochs")
    with customer.http() as http:
        assert http.post(f"/v1/tuning-jobs/{job['id']}/pause").json()["state"] == "pausing"
        paused = in_state(customer, job, "paused")
        assert 0 < paused["worked_seconds"] < 120
        assert service.processes("worker.trainer")[1:] == []  # only the process that starts others
        other = customer.tune(dataset, "other")
        assert customer.finished(other)["state"] == "succeeded"
        assert customer.job(job)["state"] == "paused"
        assert http.post(f"/v1/tuning-jobs/{job['id']}/resume").json()["state"] == "queued"
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"], finished["failures"]) == ("succeeded", 2, 0)
    assert finished["worked_seconds"] > paused["worked_seconds"]
    first, second = epochs(customer, job, 1), epochs(customer, job, 2)
    assert first == list(range(1, first[-1] + 1))
    assert second[0] in (first[-1], first[-1] + 1)
    assert second == list(range(second[0], EPOCHS + 1))
    told = events(customer, job)
    assert [event["number"] for event in told] == list(range(1, len(told) + 1))
    states = [event["data"]["state"] for event in told if event["type"] == "state"]
    assert states == ["queued", "running", "pausing", "paused", "queued", "running", "succeeded"]


def test_a_budget_ends_a_job_that_would_take_for_ever_and_its_best_is_published(
    customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, hyperparameters={"epochs": 5000, "views": 1}, budget={"max_minutes": 0.15})
    finished = customer.finished(job)
    assert (finished["state"], finished["stopped_by"]) == ("succeeded", "budget"), finished
    assert finished["result"]["stopped_by"] == "budget"
    assert 9 <= finished["worked_seconds"] < 60
    with customer.http() as http:
        assert http.get("/v1/prompt-sets/flowers").json()["latest_version"] == 1


def test_without_time_for_an_epoch_a_job_fails_with_advice_and_can_be_tried_again(
    customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, budget={"max_minutes": 0.0001})
    failed = customer.finished(job)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "budget_exhausted")
    assert "larger budget" in failed["error"]["detail"]
    with customer.http() as http:
        assert http.post(f"/v1/tuning-jobs/{job['id']}/retry").json()["state"] == "queued"
    again = customer.finished(job)
    assert (again["state"], again["attempt"], again["error"]["code"]) == ("failed", 2, "budget_exhausted")
