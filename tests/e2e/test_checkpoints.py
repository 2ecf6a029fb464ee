"""From a job that is still running to a version that serves, and from that version to the next job."""

from __future__ import annotations

import base64
import time
from typing import Any

import psutil

from tests import archives
from tests.service import Customer, Service, eventually

LONG: dict[str, Any] = {"hyperparameters": {"epochs": 12, "batch_size": 4, "head_fit_epochs": 2, "views": 1}}


def checkpoints(customer: Customer, job: dict[str, Any]) -> list[dict[str, Any]]:
    with customer.http() as http:
        found: list[dict[str, Any]] = http.get(f"/v1/tuning-jobs/{job['id']}/checkpoints").json()["data"]
    return found


def trainer(service: Service) -> psutil.Process:
    found = eventually(lambda: service.processes("worker.trainer")[1:] or None, what="a trainer")
    return found[0]


def test_a_checkpoint_serves_before_its_job_ends_and_a_damaged_one_to_resume_from_costs_an_epoch(
    service: Service,
) -> None:
    customer = service.new_customer()
    dataset = customer.upload(archives.flowers())
    job = customer.tune(dataset, **LONG)
    eventually(lambda: len(checkpoints(customer, job)) >= 3 or None, seconds=120, what="three epochs")
    child = trainer(service)
    child.suspend()
    time.sleep(0.5)  # what it has told already is written down
    with customer.http() as http:
        told = customer.job(job)["progress"]["epoch"]
        assert [each["epoch"] for each in checkpoints(customer, job)] == list(range(told, 0, -1))
        early = http.post(f"/v1/tuning-jobs/{job['id']}/checkpoints/2/publish")
        assert (early.status_code, early.json()["version"], early.json()["job_epoch"]) == (201, 1, 2)
        answer = http.post(
            "/v1/predictions",
            json={"prompt_sets": ["flowers:1"], "images": [{"data": base64.b64encode(archives.picture()).decode()}]},
        )
        assert answer.status_code == 200, answer.text

    newest = [key for key in service.objects() if f"checkpoint-{told}." in key and job["id"][4:] in key]
    path = service.data_dir / "objects" / newest[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    child.kill()
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"], finished["failures"]) == ("succeeded", 2, 1)
    with customer.http() as http:
        events = http.get(f"/v1/tuning-jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
    lost = [event["data"] for event in events if event["type"] == "checkpoint_lost"]
    assert [(each["epoch"], "damaged" in each["reason"]) for each in lost] == [(told, True)]
    second = [event["data"]["epoch"] for event in events if event["type"] == "epoch" and event["attempt"] == 2]
    assert second == list(range(told, 13))
    left = checkpoints(customer, job)
    assert [each["epoch"] for each in left] == list(range(12, 0, -1))
    assert {each["attempt"] for each in left if each["epoch"] >= told} == {2}

    with customer.http() as http:
        again = http.post(f"/v1/tuning-jobs/{job['id']}/checkpoints/2/publish")
        assert (again.status_code, again.json()["version"]) == (200, 1)
    still = {"epochs": 1, "warmup_epochs": 0, "learning_rate": 1e-8, "head_fit_epochs": 0, "views": 1}
    begun = customer.tune(dataset, "more", continue_from="flowers:2", method={}, hyperparameters=still)
    finished_again = customer.finished(begun)
    assert finished_again["state"] == "succeeded", finished_again["error"]
    assert abs(finished_again["result"]["val"]["loss"] - finished["result"]["val"]["loss"]) < 1e-5
    with customer.http() as http:
        version = http.get("/v1/prompt-sets/more/versions/1").json()
    assert version["continued_from"] == finished_again["continue_from"]
    assert (version["continued_from"]["version"], version["continued_from"]["head"]) == (2, "carried")
