"""The whole family of methods through the running service, settings that it finds itself, and dry runs."""

from __future__ import annotations

from typing import Any

import pytest

from bpt_core import artifact
from tests import archives
from tests.service import Customer, Service


@pytest.fixture(scope="module")
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture(scope="module")
def dataset(customer: Customer) -> dict[str, Any]:
    return customer.upload(archives.flowers(), "flowers")


def version(customer: Customer, name: str) -> dict[str, Any]:
    with customer.http() as http:
        found: dict[str, Any] = http.get(f"/v1/prompt-sets/{name}/versions/1").json()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"type": "bpt-bilinear", "depth": "deep", "prompts": 3, "rank": 2},
        {"type": "bpt-twhiten", "depth": "deep-top4", "prompts": 3},
        {"type": "spt", "start": "kmeans", "prompts": 3, "pooling": "mean-patches"},
    ],
    ids=lambda method: method["type"],
)
def test_a_prompt_set_of_another_method_is_tuned_and_served(
    customer: Customer, dataset: dict[str, Any], method: dict[str, Any]
) -> None:
    hyperparameters = {"epochs": 2, "head_fit_epochs": 2, "views": 1, "ema": True, "mixup": 0.2}
    job = customer.finished(customer.tune(dataset, method["type"], method=method, hyperparameters=hyperparameters))
    assert job["state"] == "succeeded", job
    assert method.items() <= job["method"].items()
    with customer.http() as http:
        form = {"prompt_sets": method["type"]}
        reply = http.post("/v1/predictions", data=form, files={"images": archives.picture(0, 500)})
        data = http.get(f"/v1/prompt-sets/{method['type']}/versions/1/artifact").content
    assert reply.status_code == 200, reply.text
    prompt_set = artifact.from_bytes(data)
    assert prompt_set.prompts is not None
    blocks = {"deep": 12, "deep-top4": 4}.get(method.get("depth", "shallow"), 1)
    assert prompt_set.prompts.shape == (blocks, 3, 192)


@pytest.mark.slow
def test_auto_settings_are_found_and_settled_in_the_version(customer: Customer, dataset: dict[str, Any]) -> None:
    job = customer.tune(
        dataset,
        "found",
        method={"type": "bpt-bilinear", "prompts": 4, "rank": "auto"},
        hyperparameters={"epochs": 4, "head_fit_epochs": 2, "learning_rate": "auto", "head_weight_decay": "auto"},
        trials=4,
    )
    assert (job["hyperparameters"]["learning_rate"], job["method"]["rank"], job["trials"]) == ("auto", "auto", 4)
    done = customer.finished(job)
    assert done["state"] == "succeeded", done
    trials = done["result"]["trials"]
    assert sorted(row["epochs"] for row in trials) == [1, 1, 1, 4]
    winner = next(row for row in trials if row["epochs"] == 4)
    published = version(customer, "found")
    assert published["hyperparameters"]["learning_rate"] == winner["learning_rate"]
    assert published["method"]["rank"] == winner["rank"]
    assert published["parameters"] == (4 + 192) * winner["rank"]
    epochs = [event["data"]["trials"] for event in customer.events(job) if event["type"] == "epoch"]
    assert epochs == [4, 1, 1, 1]


@pytest.mark.slow
def test_a_version_tells_how_it_was_made(customer: Customer, dataset: dict[str, Any]) -> None:
    method = {"type": "bpt-bilinear", "prompts": 4, "rank": 2, "start": "whitened"}
    customer.finished(customer.tune(dataset, "told", method=method))
    metrics = version(customer, "told")["metrics"]
    assert metrics["calibration"]["temperature"] > 0
    assert metrics["whitening"][0]["images"] == 18
    assert metrics["burstiness"]["prompts"]["largest"] > 0
    assert len(metrics["val"]["confusion"]) == 3


def test_a_dry_run_tells_parameters_and_time_and_leaves_nothing(customer: Customer, dataset: dict[str, Any]) -> None:
    asked = {
        "dataset": dataset["id"],
        "prompt_set": "never-made",
        "method": {"type": "bpt-bilinear", "depth": "deep", "prompts": 50, "rank": 50},
        "hyperparameters": {"learning_rate": "auto", "epochs": 10},
        "dry_run": True,
    }
    with customer.http() as http:
        jobs = http.get("/v1/tuning-jobs").json()
        reply = http.post("/v1/tuning-jobs", json=asked)
        longer = http.post("/v1/tuning-jobs", json={**asked, "hyperparameters": {"epochs": 100}}).json()
        assert http.get("/v1/tuning-jobs").json() == jobs
        assert http.get("/v1/prompt-sets/never-made").status_code == 404
    assert reply.status_code == 200
    plan = reply.json()
    assert plan["parameters"] == 12 * 50 * 50 + 4 * 192 * 50
    assert (plan["hyperparameters"]["learning_rate"], plan["trials"], longer["trials"]) == ("auto", 8, 1)
    assert 0 < plan["estimated_seconds"] < longer["estimated_seconds"]


@pytest.mark.slow
def test_estimates_follow_what_earlier_jobs_took(service: Service) -> None:
    customer = service.new_customer()
    dataset = customer.upload(archives.flowers(), "flowers")
    first = customer.tune(dataset, "first")
    assert first["estimated_seconds"] > 0
    done = customer.finished(first)
    second = customer.tune(dataset, "first")
    took = _seconds(done["finished_at"]) - _seconds(done["started_at"])
    assert second["estimated_seconds"] == pytest.approx(took, rel=0.05)
    with customer.http() as http:
        http.post(f"/v1/tuning-jobs/{second['id']}/cancel")
    customer.finished(second)


def _seconds(timestamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(timestamp).timestamp()
