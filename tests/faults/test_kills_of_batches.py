"""kill -9 in the middle of a batch prediction: each row is there once, and what was stored is not done again."""

from __future__ import annotations

import json
from typing import Any

import psutil
import pytest

from benchmarks.prompt_sets import random_prompt_set
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from tests import archives
from tests.published import publish
from tests.service import SHORT_TIMES, Customer, Service, eventually

PHOTOS, PART = 240, int(SHORT_TIMES["BPT_BATCH_PART_IMAGES"])


@pytest.fixture(scope="module")
def album(service: Service) -> tuple[Customer, dict[str, Any]]:
    """A customer with the prompt sets `one` and `two`, and a dataset of photos without labels."""
    customer, backbone = service.new_customer(), load_backbone(DEFAULT_BACKBONE)
    for seed, name in enumerate(("one", "two")):
        publish(customer, random_prompt_set(backbone, seed=seed), name=name)
    photos = customer.upload(
        archives.pictures(*(f"{number % 3}/{number}.jpg" for number in range(PHOTOS))), task="unlabelled"
    )
    assert photos["state"] == "ready", photos
    return customer, photos


def predictor(service: Service) -> psutil.Process:
    """The process of a job, not the one that has started it."""
    found = eventually(lambda: service.processes("worker.predictor")[1:] or None, what="a predictor")
    return found[0]


def done(customer: Customer, job: dict[str, Any]) -> list[tuple[int, int]]:
    """(attempt, images) of each part told so far."""
    with customer.http() as http:
        events = http.get(f"/v1/batch-predictions/{job['id']}/events", params={"limit": 100}).json()["data"]
    return [(event["attempt"], event["data"]["done"]) for event in events if event["type"] == "progress"]


def wait_for_images(customer: Customer, job: dict[str, Any], attempt: int, count: int) -> None:
    eventually(
        lambda: [images for number, images in done(customer, job) if number == attempt and images >= count] or None,
        what=f"{count} images in attempt {attempt}",
    )


def test_a_batch_prediction_goes_on_behind_its_last_part_whoever_is_killed_and_has_each_row_once(
    service: Service, album: tuple[Customer, dict[str, Any]]
) -> None:
    customer, photos = album
    job = customer.predict_batch(photos, "one", "two", top_k=1)
    wait_for_images(customer, job, 1, 20)
    predictor(service).kill()
    wait_for_images(customer, job, 2, 60)
    for worker in service.processes("--queues batch_predict"):
        worker.kill()
    finished = customer.finished(job)
    assert (finished["state"], finished["attempt"]) == ("succeeded", 3), finished
    # Whatever was told was stored: no part is done twice, none is left out.
    told = done(customer, job)
    assert {attempt for attempt, _ in told} == {1, 2, 3}
    assert [images for _, images in told] == list(range(PART, PHOTOS + 1, PART))
    with customer.http() as http:
        lines = http.get(f"/v1/batch-predictions/{job['id']}/results").text.splitlines()
    rows = [json.loads(line) for line in lines]
    found = [(row["image"], row["prompt_set"]) for row in rows]
    expected = {(f"{number % 3}/{number}.jpg", name) for number in range(PHOTOS) for name in ("one:1", "two:1")}
    assert (len(found), set(found)) == (2 * PHOTOS, expected)
    assert not [row for row in rows if row["error"] or len(row["scores"]) != 1]
    # Photos without labels: nothing can be measured.
    expected_result = {"images": PHOTOS, "rows": 2 * PHOTOS, "errors": 0, "files": {}, "metrics": {}}
    assert finished["result"] | {"files": {}} == expected_result
    own = job["id"].removeprefix("job_")

    def left() -> list[str]:
        return [key for key in service.objects() if own in key]

    results = [f"batch-predictions/{own}/3/results.{name}" for name in ("csv", "jsonl", "parquet")]
    eventually(lambda: left() == results or None, what="deletion of the parts")


def test_a_running_batch_prediction_is_cancelled_within_seconds_and_leaves_nothing(
    service: Service, album: tuple[Customer, dict[str, Any]]
) -> None:
    customer, photos = album
    job = customer.predict_batch(photos, "one", "two")
    wait_for_images(customer, job, 1, 1)
    child, url = predictor(service), f"/v1/batch-predictions/{job['id']}"
    with customer.http() as http:
        assert http.delete(url).json()["code"] == "job_unfinished"
        assert http.get(f"{url}/results").json()["code"] == "job_unfinished"
        assert http.post(f"{url}/cancel").json()["state"] == "cancelling"
        assert customer.finished(job, seconds=10)["state"] == "cancelled"
        assert not child.is_running()
        assert http.get(f"{url}/results").json()["code"] == "job_unfinished"
        assert http.delete(url).status_code == 204
        assert http.get(url).status_code == 404
    own = job["id"].removeprefix("job_")
    eventually(lambda: not [key for key in service.objects() if own in key] or None, what="deletion of the parts")
