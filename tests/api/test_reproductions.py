"""Learning a version once more: what is asked of the worker, and what is refused before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from bpt_core import artifact
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_store import ids, jobs, prompt_sets, scheduling
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.models import Dataset, DatasetState, DatasetVersion, JobKind
from bpt_store.prompt_sets import Publication
from tests.published import probe

RECIPE = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0, seed=7).to_dict()
METRICS = {"best_epoch": 2, "val": {"images": 5, "loss": 0.5, "top1": 0.8}, "test": None}
PATH = "/v1/prompt-sets/birds/versions/1/reproduce"


@pytest.fixture
def dataset_id(database: Database, customer_id: UUID) -> UUID:
    """Of one that has a newer version by now."""
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="d", state=DatasetState.READY, latest=2)
        session.add(dataset)
        session.flush()
        for number in (1, 2):
            facts = {"number": number, "state": DatasetState.READY, "task": "single-label", "class_names": ["a", "b"]}
            splits = {"train": 20, "val": 5, "test": 5}
            version = DatasetVersion(customer_id=customer_id, dataset_id=dataset.id, images=30, splits=splits, **facts)
            session.add(version)
        return dataset.id


@pytest.fixture
def publish(database: Database, customer_id: UUID, dataset_id: UUID) -> Callable[..., None]:
    def make(**changed: Any) -> None:
        made = probe()
        facts: dict[str, Any] = {
            "artifact": artifact.to_bytes(made),
            "backbone": made.backbone,
            "backbone_fingerprint": made.backbone_fingerprint,
            "class_names": ["a", "b"],
            "recipe": RECIPE,
            "parameters": 0,
            "metrics": METRICS,
            "code_version": "1.0",
        }
        learned: dict[str, Any] = {"job_id": uuid4(), "dataset_id": dataset_id, "dataset_version": 1}
        learned |= {name: changed.pop(name) for name in [*changed] if name in learned}
        with database.customer(customer_id) as session:
            birds = prompt_sets.get_or_create(session, customer_id, "birds")
            prompt_sets.publish(session, birds.id, Publication(**{**facts, **changed}), **learned)

    return make


def test_the_job_is_what_the_version_was_learned_by(
    http: TestClient, database: Database, customer_id: UUID, dataset_id: UUID, publish: Callable[..., None]
) -> None:
    publish()
    reply = http.post(PATH)
    assert reply.status_code == 201, reply.text
    job = reply.json()
    assert reply.headers["Location"] == f"/v1/tuning-jobs/{job['id']}"
    assert (job["dataset"], job["dataset_version"]) == (ids.public(ids.DATASET, dataset_id), 1)
    assert (job["method"]["type"], job["seed"], job["budget"]) == ("linear-probe", 7, None)
    sha256 = artifact.sha256(artifact.to_bytes(probe()))
    assert job["reproduces"] == {"prompt_set": "birds", "version": 1, "artifact_sha256": sha256}
    assert (job["result"], job["reproduction"]) == (None, None)
    assert http.get(reply.headers["Location"]).json()["reproduces"] == job["reproduces"]
    with database.customer(customer_id) as session:
        row = jobs.get(session, ids.parse(ids.JOB, job["id"]), JobKind.TUNE)
        assert row.payload["format"] == scheduling.REPRODUCING_FORMAT  # a worker of before would publish
        assert row.payload["recipe"] == RECIPE


def test_the_difference_is_told_and_nothing_is_published(
    http: TestClient, database: Database, customer_id: UUID, publish: Callable[..., None]
) -> None:
    publish()
    asked = http.post(PATH).json()
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 30)
    assert job is not None
    same = {"is_equal": True, "largest": 0.0, "relative": 0.0}
    learned = {"artifact_sha256": "s", "code_version": "1.0", "metrics": METRICS}
    told = {"verdict": "identical", "tensors": {"head.bias": same}, "split": "test", "images": 5, "agreement": 1.0}
    with database.customer(customer_id) as session:
        jobs.succeed(session, jobs.fence_of(job), {"reproduction": {**told, "then": learned, "now": learned}})
    found = http.get(f"/v1/tuning-jobs/{asked['id']}").json()
    assert (found["state"], found["result"]) == ("succeeded", None)
    assert found["reproduction"] == {**told, "then": learned, "now": learned}
    assert http.get("/v1/prompt-sets/birds").json()["latest_version"] == 1


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"job_id": None}, "not_reproducible"),
        ({"dataset_id": uuid4()}, "not_reproducible"),
        ({"backbone_fingerprint": "of other weights"}, "not_reproducible"),
        ({"backbone": "a backbone of former times"}, "not_reproducible"),
        ({"recipe": {"method": "a method of former times"}}, "not_reproducible"),
    ],
)
def test_where_lineage_is_not_enough_no_job_is_made(
    http: TestClient, publish: Callable[..., None], changed: dict[str, Any], code: str
) -> None:
    publish(**changed)
    reply = http.post(PATH)
    assert (reply.status_code, reply.json()["code"]) == (409, code), reply.text
    assert http.get("/v1/tuning-jobs").json()["data"] == []


def test_who_may_not_start_jobs_and_what_is_not_there(
    http: TestClient, open_client: Callable[..., TestClient], publish: Callable[..., None]
) -> None:
    publish()
    assert open_client([Scope.PROMPTS_READ, Scope.PROMPTS_WRITE]).post(PATH).status_code == 403
    assert http.post("/v1/prompt-sets/birds/versions/2/reproduce").status_code == 404


def test_one_that_is_tried_again_makes_no_prompt_set(
    http: TestClient, database: Database, customer_id: UUID, publish: Callable[..., None]
) -> None:
    publish()
    asked = http.post(PATH).json()
    assert http.delete("/v1/prompt-sets/birds").json()["code"] == "prompt_set_in_use"
    http.post(f"/v1/tuning-jobs/{asked['id']}/cancel")
    with database.customer(customer_id) as session:
        session.execute(text("DELETE FROM prompt_sets"))
    assert http.post(f"/v1/tuning-jobs/{asked['id']}/retry").json()["state"] == "queued"
    assert http.get("/v1/prompt-sets").json()["data"] == []
