"""Checkpoints of tuning jobs over HTTP, and tuning that goes on from a version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import text

from bpt_core import artifact, catalog
from bpt_core.artifact import PromptSet
from bpt_store import aliases, checkpoints, ids, jobs, prompt_sets
from bpt_store.checkpoints import Left
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.models import Dataset, DatasetState, DatasetVersion, Job, JobKind
from bpt_store.prompt_sets import Publication

CLASSES = ["daisy", "rose"]
RECIPE = {"method": "bpt-bilinear", "depth": "shallow", "prompts": 4, "rank": 2, "seed": 0}


@pytest.fixture
def job(database: Database, customer_id: UUID) -> Job:
    """It runs, and epochs 1 to 3 have left something."""
    with database.customer(customer_id) as session:
        payload = {"backbone": catalog.DEFAULT_BACKBONE, "prompt_set": "birds"}
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload=payload)
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
    assert job is not None
    facts = {"backbone_fingerprint": "f", "class_names": CLASSES, "recipe": RECIPE, "parameters": 7}
    with database.customer(customer_id) as session:
        for epoch in (1, 2, 3):
            val = {"images": 4, "loss": 1.0, "top1": epoch / 4}
            left = Left(epoch, b"artifact %d" % epoch, epoch / 4, val, facts)
            checkpoints.keep(session, jobs.fence_of(job), left, most=20)
    return job


def path(job: Job) -> str:
    return f"/v1/tuning-jobs/{ids.public(ids.JOB, job.id)}/checkpoints"


def test_checkpoints_are_listed_newest_first_in_pages(http: TestClient, job: Job) -> None:
    first = http.get(path(job), params={"limit": 2}).json()
    assert ([each["epoch"] for each in first["data"]], first["has_more"]) == ([3, 2], True)
    shown = first["data"][0]
    assert (shown["job"], shown["attempt"], shown["score"]) == (ids.public(ids.JOB, job.id), 1, 0.75)
    assert (shown["artifact_sha256"], shown["artifact_bytes"]) == (artifact.sha256(b"artifact 3"), 10)
    assert shown["val"]["top1"] == 0.75
    rest = http.get(path(job), params={"limit": 2, "after": first["next_cursor"]}).json()
    assert ([each["epoch"] for each in rest["data"]], rest["next_cursor"]) == ([1], None)
    assert http.get(path(job), params={"after": "x"}).status_code == 404
    assert http.get(f"/v1/tuning-jobs/{ids.public(ids.JOB, uuid4())}/checkpoints").status_code == 404


def test_a_checkpoint_is_published_once_while_the_job_runs(http: TestClient, job: Job) -> None:
    reply = http.post(f"{path(job)}/2/publish")
    assert (reply.status_code, reply.headers["Location"]) == (201, "/v1/prompt-sets/birds/versions/1")
    version = reply.json()
    assert (version["job"], version["job_epoch"], version["continued_from"]) == (ids.public(ids.JOB, job.id), 2, None)
    assert (version["metrics"]["val"]["top1"], version["metrics"]["test"]) == (0.5, None)
    assert http.get(reply.headers["Location"]).json() == version
    assert http.get(f"{reply.headers['Location']}/artifact").content == b"artifact 2"
    again = http.post(f"{path(job)}/2/publish", json={})
    assert (again.status_code, again.json()) == (200, version)
    elsewhere = http.post(f"{path(job)}/2/publish", json={"prompt_set": "cars"})
    assert (elsewhere.status_code, elsewhere.json()["prompt_set"], elsewhere.json()["version"]) == (201, "cars", 1)


def test_what_cannot_be_published_is_refused(
    http: TestClient, open_client: Callable[..., TestClient], job: Job
) -> None:
    for epoch, body, status in (("9", {}, 404), ("0", {}, 422), ("1", {"prompt_set": "No"}, 422), ("1", {"x": 1}, 422)):
        assert http.post(f"{path(job)}/{epoch}/publish", json=body).status_code == status, (epoch, body)
    reader = open_client([Scope.JOBS_READ])
    assert reader.get(path(job)).status_code == 200
    assert reader.post(f"{path(job)}/1/publish").status_code == 403
    assert http.get("/v1/prompt-sets").json()["data"] == []


# --- going on from a version ---


@pytest.fixture
def dataset(database: Database, customer_id: UUID) -> str:
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="d", state=DatasetState.READY, latest=1)
        session.add(dataset)
        session.flush()
        session.add(
            DatasetVersion(
                dataset_id=dataset.id,
                number=1,
                customer_id=customer_id,
                state=DatasetState.READY,
                task="single-label",
                class_names=CLASSES,
                objects={"shards": []},
                images=8,
                splits={"train": 6, "val": 2, "test": 0},
            )
        )
        return ids.public(ids.DATASET, dataset.id)


def prompt_set(classes: list[str], method: str = "bpt-bilinear") -> PromptSet:
    width, rank = 192, 2 if method == "bpt-bilinear" else 0
    factors = {"A": torch.zeros(1, 4, rank), "B": torch.zeros(1, width, rank)} if rank else {}
    return PromptSet(
        prompts=torch.zeros(1, 4, width),
        head_weight=torch.zeros(len(classes), width),
        head_bias=torch.zeros(len(classes)),
        class_names=tuple(classes),
        method={"type": method, "depth": "shallow", "prompts": 4, "rank": rank},
        backbone=catalog.DEFAULT_BACKBONE,
        backbone_fingerprint="f",
        pooling="mean-patches",
        preprocessing={},
        factors=factors,
    )


@pytest.fixture
def published(database: Database, customer_id: UUID) -> list[str]:
    """birds:1 with the dataset's classes, birds:2 with others, birds:3 of another method -> their hashes."""
    hashes = []
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds")
        for each in (prompt_set(CLASSES), prompt_set(["rose", "daisy"]), prompt_set(CLASSES, "vpt")):
            data = artifact.to_bytes(each)
            publication = Publication(data, catalog.DEFAULT_BACKBONE, "f", each.class_names, {}, 1, {})
            prompt_sets.publish(session, birds.id, publication, job_id=uuid4(), dataset_id=None)
            hashes.append(artifact.sha256(data))
        aliases.move(session, birds.id, "production", 1, actor="key")
    return hashes


@pytest.fixture
def ask(http: TestClient, dataset: str) -> Callable[..., tuple[int, dict[str, Any]]]:
    def post(**body: Any) -> tuple[int, dict[str, Any]]:
        reply = http.post("/v1/tuning-jobs", json={"dataset": dataset, "prompt_set": "more", **body})
        return reply.status_code, reply.json()

    return post


@pytest.mark.parametrize(
    ("reference", "number", "head", "method", "rank"),
    [
        ("birds@production", 1, "carried", "bpt-bilinear", 2),
        ("birds:2", 2, "new", "bpt-bilinear", 2),
        ("birds", 3, "carried", "vpt", 0),
    ],
)
def test_method_and_backbone_are_those_of_the_version(
    ask: Callable[..., Any], published: list[str], reference: str, number: int, head: str, method: str, rank: int
) -> None:
    status, plan = ask(continue_from=reference, dry_run=True)
    begun = {"prompt_set": "birds", "version": number, "artifact_sha256": published[number - 1], "head": head}
    assert (status, plan["continue_from"]) == (200, begun)
    assert plan["backbone"] == catalog.DEFAULT_BACKBONE
    shown = {name: plan["method"][name] for name in ("type", "depth", "prompts", "rank", "pooling")}
    expected = {"type": method, "depth": "shallow", "prompts": 4, "rank": rank, "pooling": "mean-patches"}
    assert shown == expected
    status, job = ask(continue_from=reference, hyperparameters={"learning_rate": "auto"})
    assert (status, job["continue_from"], job["trials"]) == (201, begun, 8)


def test_the_version_is_settled_when_the_job_is_created(
    ask: Callable[..., Any], http: TestClient, published: list[str]
) -> None:
    _, job = ask(continue_from="birds@production")
    moved = http.put("/v1/prompt-sets/birds/aliases/production", json={"version": 3})
    assert moved.status_code == 200
    found = http.get(f"/v1/tuning-jobs/{job['id']}").json()
    assert found["continue_from"]["version"] == 1


def test_a_job_of_its_own_says_so(ask: Callable[..., Any], published: list[str]) -> None:
    assert ask(dry_run=True)[1]["continue_from"] is None
    assert ask()[1]["continue_from"] is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": {"rank": 3}}, "rank is 2 there and 3 here"),
        ({"method": {"prompts": 5, "depth": "deep"}}, "depth is shallow there and deep here, prompts is 4"),
        ({"method": {"type": "vpt"}}, "method is bpt-bilinear there and vpt here"),
        ({"method": {"pooling": "mean-all"}}, "pooling"),
        ({"method": {"start": "whitened"}}, "start"),
        ({"method": {"rank": "auto"}}, "rank"),
        ({"method": {"type": "auto"}}, "method"),
        ({"backbone": "vit_base_patch16_224.augreg_in21k"}, "backbone"),
    ],
)
def test_what_does_not_fit_is_named(
    ask: Callable[..., Any], published: list[str], given: dict[str, Any], named: str
) -> None:
    status, problem = ask(continue_from="birds:1", **given)
    assert (status, problem["code"]) == (422, "continue_mismatch")
    assert named in problem["detail"]


def test_what_is_not_there_or_damaged_begins_nothing(
    ask: Callable[..., Any], http: TestClient, database: Database, published: list[str]
) -> None:
    for reference in ("birds:9", "cars", "birds@staging", "bi\x00rds", ""):
        assert ask(continue_from=reference)[1]["code"] == "not_found", reference
    with database.system() as session:
        session.execute(text("UPDATE prompt_set_versions SET artifact = 'other' WHERE version = 1"))
    assert ask(continue_from="birds:1")[1]["code"] == "artifact_integrity"
    assert http.get("/v1/tuning-jobs").json()["data"] == []
