"""kill -9 and friends: an accepted job is finished once, costs at most an epoch, and leaves no process behind."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from functools import partial
from typing import Any

import psutil

from bpt_store.models import JobKind
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings
from bpt_store.up import environment_of
from tests import archives
from tests.service import Customer, Service, eventually, has_ended

EPOCHS = 9
LONG: dict[str, Any] = {"hyperparameters": {"epochs": EPOCHS, "batch_size": 4, "head_fit_epochs": 2, "views": 1}}


def trainer(service: Service) -> psutil.Process:
    """The process of a job, not the one that has started it."""
    found = eventually(lambda: service.processes("worker.trainer")[1:] or None, what="a trainer")
    return found[0]


def epochs(customer: Customer, job: dict[str, Any]) -> list[tuple[int, int]]:
    """(attempt, epoch) of each epoch told so far."""
    with customer.http() as http:
        events = http.get(f"/v1/tuning-jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
    return [(event["attempt"], event["data"]["epoch"]) for event in events if event["type"] == "epoch"]


def wait_for_epoch(customer: Customer, job: dict[str, Any], count: int) -> None:
    eventually(lambda: len(epochs(customer, job)) >= count or None, seconds=120, what=f"{count} epochs")


def assert_went_on_from_the_checkpoint(customer: Customer, job: dict[str, Any]) -> None:
    """Every epoch was told, and the second attempt lost at most one."""
    told = epochs(customer, job)
    assert {epoch for _, epoch in told} == set(range(1, EPOCHS + 1))
    first = [epoch for attempt, epoch in told if attempt == 1]
    second = [epoch for attempt, epoch in told if attempt == 2]
    assert second[0] in (first[-1], first[-1] + 1)
    assert second == list(range(second[0], EPOCHS + 1))


def test_a_killed_trainer_costs_at_most_an_epoch(service: Service, customer: Customer, dataset: dict[str, Any]) -> None:
    job = customer.tune(dataset, **LONG)
    wait_for_epoch(customer, job, 3)
    trainer(service).kill()
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"], finished["failures"]) == ("succeeded", 2, 1)
    assert_went_on_from_the_checkpoint(customer, job)
    events = customer.events(job)
    requeued = [event for event in events if event["type"] == "state" and event["data"]["state"] == "queued"][1]
    assert "-9" in requeued["data"]["reason"]
    with customer.http() as http:
        versions = http.get("/v1/prompt-sets/flowers/versions").json()["data"]
    assert [version["version"] for version in versions] == [1]


def test_a_trainer_that_is_killed_three_times_fails_its_job_which_says_why(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, **LONG)

    def attempts() -> int:
        return int(customer.job(job)["attempt"])

    for attempt in (1, 2, 3):
        eventually(partial(lambda number: attempts() == number or None, attempt), what=f"attempt {attempt}")
        trainer(service).kill()
    failed = customer.finished(job)
    assert (failed["state"], failed["attempt"], failed["failures"]) == ("failed", 3, 3)
    assert failed["error"]["code"] == "trainer_crashed"
    assert "status -9, for the 3. time" in failed["error"]["detail"]
    with customer.http() as http:
        assert http.get("/v1/prompt-sets/flowers").json()["latest_version"] is None


def test_a_killed_supervisor_takes_its_trainer_along_and_another_goes_on(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, **LONG)
    wait_for_epoch(customer, job, 2)
    child = trainer(service)
    workers = service.processes("--queues tune")
    for worker in workers:
        worker.kill()
    eventually(lambda: has_ended(child) or None, seconds=2, what="the end of the trainer")
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"]) == ("succeeded", 2)
    assert_went_on_from_the_checkpoint(customer, job)
    left = (service.data_dir / "work").glob(f"{job['id'].removeprefix('job_')}-*")
    eventually(lambda: not list(left) or None, what="cleaning up after both attempts")


def test_a_stopped_worker_gives_its_job_back_at_once_and_no_failure_is_counted(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, **LONG)
    wait_for_epoch(customer, job, 2)
    child = trainer(service)
    main = service.processes("--queues tune")[0]
    main.send_signal(signal.SIGTERM)
    assert psutil.wait_procs([child, main], timeout=10)[1] == []
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"], finished["failures"]) == ("succeeded", 2, 0)
    assert_went_on_from_the_checkpoint(customer, job)


def test_a_frozen_worker_is_replaced_and_changes_nothing_when_it_wakes(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, **LONG)
    wait_for_epoch(customer, job, 2)
    frozen = [*service.processes("--queues tune"), trainer(service)]
    for process in frozen:
        process.suspend()
    try:
        eventually(
            lambda: customer.job(job)["state"] == "queued" or None, seconds=30, what="the sweep taking the job back"
        )
        before = customer.job(job)
    finally:
        for process in frozen:
            process.resume()
    finished = customer.finished(job)
    assert finished["state"] == "succeeded"
    assert finished["attempt"] == before["attempt"] + 1
    with customer.http() as http:
        assert len(http.get("/v1/prompt-sets/flowers/versions").json()["data"]) == 1


def test_a_running_job_is_cancelled_within_seconds_and_publishes_nothing(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    job = customer.tune(dataset, hyperparameters={"epochs": 5000})
    wait_for_epoch(customer, job, 1)
    child = trainer(service)
    with customer.http() as http:
        assert http.post(f"/v1/tuning-jobs/{job['id']}/cancel").json()["state"] == "cancelling"
    assert customer.finished(job, seconds=10)["state"] == "cancelled"
    assert not child.is_running()
    with customer.http() as http:
        assert http.get("/v1/prompt-sets/flowers").json()["latest_version"] is None


def test_a_killed_ingest_worker_doubles_nothing(service: Service, customer: Customer) -> None:
    workers = service.processes("--queues ingest")
    for worker in workers:
        worker.suspend()
    with customer.http() as http:
        reply = http.post(
            "/v1/datasets",
            params={"name": "d"},
            content=archives.flowers(),
            headers={"Content-Type": "application/zip"},
        )
    for worker in workers:
        worker.kill()
    url = reply.headers["Location"]

    def ready() -> dict[str, Any] | None:
        with customer.http() as http:
            dataset: dict[str, Any] = http.get(url).json()
        return dataset if dataset["state"] == "ready" else None

    dataset = eventually(ready, what="ingest by another worker")
    own = dataset["id"].removeprefix("ds_")

    def left() -> list[str]:
        return sorted(key.rpartition(".")[2] for key in service.objects() if own in key)

    eventually(lambda: left() == ["bin", "parquet", "parquet"] or None, what="one shard, its index and thumbnails")


def test_a_killed_api_is_back_and_has_forgotten_nothing(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    for process in service.processes("api.app"):
        process.kill()

    def answers() -> bool | None:
        try:
            with urllib.request.urlopen(f"{service.url}/readyz", timeout=2) as reply:
                return json.load(reply)["status"] == "ok" or None
        except OSError:
            return None

    eventually(answers, what="the API's return")
    with customer.http() as http:
        assert http.get(f"/v1/datasets/{dataset['id']}").json()["state"] == "ready"


def test_a_job_whose_doorbell_was_lost_is_rung_for_again(
    service: Service, customer: Customer, dataset: dict[str, Any]
) -> None:
    """The row is committed and no message was ever sent: as if the API had died between the two."""
    job = customer.finished(customer.tune(dataset))
    copied = service.rows(
        "INSERT INTO jobs (customer_id, kind, state, dataset_id, dataset_version, prompt_set_id, payload) "
        "SELECT customer_id, kind, 'queued', dataset_id, dataset_version, prompt_set_id, payload FROM jobs "
        "WHERE id = :id RETURNING id",
        id=job["id"].removeprefix("job_"),
    )[0][0]
    assert customer.finished({"id": f"job_{copied.hex}"})["state"] == "succeeded"


def test_a_hundred_doorbells_are_one_attempt(service: Service, customer: Customer, dataset: dict[str, Any]) -> None:
    environment = environment_of(service.data_dir)
    settings = Settings.model_validate(
        {
            name: environment[f"BPT_{name.upper()}"]
            for name in ("database_url", "system_database_url", "redis_url", "objects_url")
        }
    )
    job = customer.tune(dataset)
    with celery_app(settings) as app:
        assert all(Doorbell(app).ring(JobKind.TUNE) for _ in range(100))
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"]) == ("succeeded", 1)
    time.sleep(1)
    assert customer.job(job)["attempt"] == 1
