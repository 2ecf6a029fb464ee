"""Prompt sets and their versions over HTTP: labels, filters, the archive, what a caller has already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import torch
from fastapi.testclient import TestClient

from bpt_core import artifact, catalog
from bpt_core.artifact import PromptSet
from bpt_store import evaluations, ids, jobs, prompt_sets
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.models import Dataset, DatasetState, DatasetVersion, JobKind
from bpt_store.prompt_sets import Publication

RECIPE = {"method": "bpt-bilinear", "depth": "shallow", "prompts": 4, "rank": 2, "seed": 11}
BIRDS = "/v1/prompt-sets/birds"


@pytest.fixture
def birds(database: Database, customer_id: UUID) -> None:
    """A prompt set with versions 1 to 3."""
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        facts: dict[str, Any] = {"job_id": uuid4(), "dataset_id": uuid4(), "dataset_version": 5}
        for number in (1, 2, 3):
            publication = Publication(b"artifact %d" % number, "vit", "f", ["a", "b"], RECIPE, 1, {}, code_version="7")
            prompt_sets.publish(session, prompt_set.id, publication, **facts)


def test_an_empty_prompt_set_is_made_with_its_label(http: TestClient) -> None:
    label = {"description": "of the lake\n", "metadata": {"team": "a"}}
    made = http.post("/v1/prompt-sets", json={"name": "birds", **label})
    assert (made.status_code, made.headers["Location"]) == (201, BIRDS)
    shown = made.json()
    assert ({name: shown[name] for name in label}, shown["latest_version"]) == (label, None)
    assert http.get(BIRDS).json() == shown
    again = http.post("/v1/prompt-sets", json={"name": "birds"})
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")


@pytest.mark.parametrize(
    "body",
    [
        {"description": "x" * 2001},
        {"description": "nul\x00"},
        {"description": 7},
        {"metadata": {str(number): "" for number in range(17)}},
        {"metadata": {"k" * 65: ""}},
        {"metadata": {"k": "v" * 513}},
        {"version": 2},
    ],
)
def test_a_label_that_cannot_be_is_refused_and_changes_nothing(
    http: TestClient, birds: None, body: dict[str, Any]
) -> None:
    for path in (BIRDS, f"{BIRDS}/versions/2"):
        before = http.get(path).json()
        reply = http.patch(path, json=body)
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
        assert http.get(path).json() == before


def test_prompt_sets_and_versions_are_labelled_and_found_by_it(http: TestClient, birds: None) -> None:
    http.post("/v1/prompt-sets", json={"name": "cars", "metadata": {"team": "b"}})
    assert http.patch(BIRDS, json={"metadata": {"team": "a", "x": "1=2"}}).json()["metadata"]["x"] == "1=2"
    changed = http.patch(
        f"{BIRDS}/versions/2", json={"description": "the good one", "metadata": {"kept": "yes"}}
    ).json()
    assert (changed["description"], changed["metadata"]) == ("the good one", {"kept": "yes"})

    def found(path: str, *pairs: str) -> list[Any]:
        rows = http.get(path, params={"metadata": list(pairs)}).json()["data"]
        return [row["version"] if "version" in row else row["name"] for row in rows]

    assert found("/v1/prompt-sets", "team=a", "x=1=2") == ["birds"]
    assert found("/v1/prompt-sets", "team=a", "x=2") == []
    assert found(f"{BIRDS}/versions", "kept=yes") == [2]
    assert http.get("/v1/prompt-sets", params={"metadata": "team"}).status_code == 422


def test_a_version_tells_what_made_it(http: TestClient, birds: None) -> None:
    shown = http.get(f"{BIRDS}/versions/1").json()
    assert (shown["dataset_version"], shown["seed"], shown["code_version"]) == (5, 11, "7")
    assert shown["job"].startswith("job_")
    assert shown["backbone_fingerprint"] == "f"


def test_versions_are_archived_brought_back_and_deleted(http: TestClient, birds: None) -> None:
    http.put(f"{BIRDS}/aliases/production", json={"version": 1})
    for verb, path, code in (
        ("POST", "versions/1/archive", "version_in_use"),
        ("DELETE", "versions/2", "version_not_archived"),
        ("DELETE", "", "prompt_set_in_use"),
    ):
        reply = http.request(verb, f"{BIRDS}/{path}".rstrip("/"))
        assert (reply.status_code, reply.json()["code"]) == (409, code)
    assert http.post(f"{BIRDS}/versions/3/archive").json()["archived_at"] is not None
    assert http.get(BIRDS).json()["latest_version"] == 2
    for archived, numbers in ((True, [3]), (False, [2, 1])):
        rows = http.get(f"{BIRDS}/versions", params={"archived": archived}).json()["data"]
        assert [row["version"] for row in rows] == numbers
    assert http.post(f"{BIRDS}/versions/3/unarchive").json()["archived_at"] is None
    http.post(f"{BIRDS}/versions/3/archive")
    assert http.delete(f"{BIRDS}/versions/3").status_code == 204
    assert http.get(f"{BIRDS}/versions/3").status_code == 404
    http.delete(f"{BIRDS}/aliases/production")
    assert http.delete(BIRDS).status_code == 204
    assert http.get(BIRDS).status_code == 404


def test_what_a_caller_has_already_is_not_sent_again(http: TestClient, birds: None) -> None:
    facts, artifact = f"{BIRDS}/versions/1", f"{BIRDS}/versions/1/artifact"
    tags = {path: http.get(path).headers["ETag"] for path in (facts, artifact)}
    for path, tag in tags.items():
        for condition in (tag, f'"x", W/{tag}', "*"):
            reply = http.get(path, headers={"If-None-Match": condition})
            assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", tag)
        assert http.get(path, headers={"If-None-Match": '"x"'}).status_code == 200
    http.patch(facts, json={"description": "another"})
    assert http.get(facts, headers={"If-None-Match": tags[facts]}).json()["description"] == "another"
    assert http.get(artifact, headers={"If-None-Match": tags[artifact]}).status_code == 304


def test_a_key_that_may_only_read_changes_nothing(open_client: Callable[..., TestClient], birds: None) -> None:
    reader = open_client([Scope.PROMPTS_READ])
    for verb, path in (
        *(("PATCH", ""), ("DELETE", ""), ("PATCH", "/versions/1"), ("DELETE", "/versions/1")),
        *(("POST", "/versions/1/archive"), ("POST", "/versions/1/unarchive")),
    ):
        assert reader.request(verb, BIRDS + path, json={}).status_code == 403
    assert reader.post("/v1/prompt-sets", json={"name": "cars"}).status_code == 403
    assert reader.get(BIRDS).json()["latest_version"] == 3


# --- aliases ---


def test_an_alias_moves_only_under_the_conditions_of_the_request(http: TestClient, birds: None) -> None:
    url = f"{BIRDS}/aliases/production"

    def put(version: int, **conditions: str) -> int:
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return http.put(url, json={"version": version}, headers=headers).status_code

    assert put(1, If_Match="*") == 412
    assert put(1, If_None_Match="*") == 200
    assert put(2, If_None_Match="*") == 412
    tag = http.get(url).headers["ETag"]
    moved = http.put(url, json={"version": 2}, headers={"If-Match": f'"x", {tag}'})
    assert (moved.status_code, moved.json()["version"]) == (200, 2)
    assert moved.headers["ETag"] == http.get(url).headers["ETag"] != tag
    for stale in (tag, f"W/{moved.headers['ETag']}", "2", ""):
        assert put(3, If_Match=stale) == 412
    refused = http.post(f"{url}/rollback", headers={"If-Match": tag})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    assert http.delete(url, headers={"If-Match": tag}).status_code == 412
    back = http.post(f"{url}/rollback", json={"expected_version": 2}, headers={"If-Match": moved.headers["ETag"]})
    assert (back.json()["version"], back.headers["ETag"]) == (1, '"3"')
    assert http.post(f"{url}/rollback", json={"expected_version": 2}).json()["code"] == "alias_moved"
    assert http.post(f"{url}/rollback", json={"to_version": 3}).json()["code"] == "alias_no_history"
    assert http.delete(url, headers={"If-Match": '"3"'}).status_code == 204


# --- the gate ---


@pytest.fixture
def golden(database: Database, customer_id: UUID) -> str:
    """A labelled dataset of two versions, of which the second has images in the split test."""
    ready: dict[str, Any] = {"state": DatasetState.READY, "task": "single-label", "class_names": ["a", "b"]}
    with database.customer(customer_id) as session:
        dataset = Dataset(customer_id=customer_id, name="golden", state=DatasetState.READY, latest=2)
        session.add(dataset)
        session.flush()
        for number in (1, 2):
            ready |= {"images": 9, "splits": {"train": 9, "val": 0, "test": 4 * number - 4}, "number": number}
            session.add(DatasetVersion(customer_id=customer_id, dataset_id=dataset.id, **ready))
    return ids.public(ids.DATASET, dataset.id)


@pytest.fixture
def tuned(database: Database, customer_id: UUID) -> None:
    """The prompt set `owls`, whose versions are artifacts: of the right classes, and of others."""
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "owls")
        for names in (["a", "b", "c"], ["a", "c"]):
            data = artifact.to_bytes(
                PromptSet(
                    prompts=None,
                    head_weight=torch.zeros(len(names), 4),
                    head_bias=torch.zeros(len(names)),
                    class_names=tuple(names),
                    method={"type": "linear-probe", "depth": "shallow", "prompts": 0, "rank": 0},
                    backbone="vit",
                    backbone_fingerprint="f",
                    pooling=catalog.find(catalog.DEFAULT_BACKBONE).pooling,
                    preprocessing={},
                )
            )
            publication = Publication(data, "vit", "f", names, RECIPE, 1, {})
            prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"metric": "f1_macro"}, 422, "invalid_request"),
        ({"floor": 1.1}, 422, "invalid_request"),
        ({"split": "val"}, 422, "dataset_empty"),
        ({"aliases": []}, 422, "invalid_request"),
        ({"aliases": ["No"]}, 422, "invalid_request"),
        ({"dataset": "ds_1"}, 404, "not_found"),
        ({"colour": "red"}, 422, "invalid_request"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(
    http: TestClient, birds: None, golden: str, body: dict[str, Any], status: int, code: str
) -> None:
    reply = http.put(f"{BIRDS}/gate", json={"dataset": golden, "floor": 0.5, **body})
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert http.get(f"{BIRDS}/gate").status_code == 404


def test_a_gate_is_set_shown_changed_and_removed(http: TestClient, birds: None, golden: str) -> None:
    first = http.put(f"{BIRDS}/gate", json={"dataset": f"{golden}:1", "floor": 0.5, "aliases": ["production"]}).json()
    assert (first["dataset"], first["dataset_version"], first["metric"]) == (golden, 1, "top1")
    assert http.get(f"{BIRDS}/gate").json() == first
    second = http.put(f"{BIRDS}/gate", json={"dataset": golden, "split": "test", "floor": 0.25}).json()
    assert (second["dataset_version"], second["split"], second["aliases"]) == (2, "test", None)
    used = http.delete(f"/v1/datasets/{golden}")
    assert (used.status_code, used.json()["code"]) == (409, "dataset_in_use")
    assert http.delete(f"{BIRDS}/gate").status_code == 204
    assert http.delete(f"{BIRDS}/gate").status_code == 404


def test_a_check_is_a_batch_prediction_of_the_golden_images(
    http: TestClient, database: Database, customer_id: UUID, tuned: None, golden: str
) -> None:
    owls = "/v1/prompt-sets/owls"
    assert http.post(f"{owls}/versions/1/gate-checks").status_code == 404  # no gate
    http.put(f"{owls}/gate", json={"dataset": golden, "split": "test", "floor": 0.5})
    refused = http.put(f"{owls}/aliases/production", json={"version": 1})
    assert (refused.status_code, refused.json()["code"]) == (409, "gate_not_passed")
    lacking = http.post(f"{owls}/versions/2/gate-checks")
    assert (lacking.status_code, lacking.json()["code"]) == (409, "gate_mismatch")
    asked = http.post(f"{owls}/versions/1/gate-checks")
    job = asked.json()
    assert (asked.status_code, job["images"], job["split"], job["dataset_version"]) == (201, 4, "test", 2)
    assert http.get(asked.headers["Location"]).json() == job
    with database.customer(customer_id) as session:
        row = jobs.get(session, ids.parse(ids.JOB, job["id"]), JobKind.BATCH_PREDICT)
        evaluations.keep(session, row, {"owls:1": {"top1": 0.75}})
    for floor, passed in ((0.9, False), (0.5, True)):
        http.put(f"{owls}/gate", json={"dataset": golden, "split": "test", "floor": floor})
        [check] = http.get(f"{owls}/versions/1/gate-checks").json()["data"]
        assert (check["metrics"], check["passed"], check["job"]) == ({"top1": 0.75}, passed, job["id"])
    assert http.put(f"{owls}/aliases/production", json={"version": 1}).status_code == 200
    http.put(f"{owls}/gate", json={"dataset": golden, "floor": 0.5})
    assert http.get(f"{owls}/versions/1/gate-checks").json()["data"][0]["passed"] is None


def test_an_override_has_a_reason_and_the_history_shows_it(http: TestClient, birds: None, golden: str) -> None:
    http.put(f"{BIRDS}/gate", json={"dataset": golden, "floor": 0.5})
    url = f"{BIRDS}/aliases/production"
    for override in ({}, {"reason": ""}, {"reason": "x" * 501}):
        assert http.put(url, json={"version": 1, "override": override}).status_code == 422
    assert http.put(url, json={"version": 1, "override": {"reason": "a new camera"}}).status_code == 200
    [move] = http.get(f"{url}/history").json()["data"]
    assert move["override_reason"] == "a new camera"
