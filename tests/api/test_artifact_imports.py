"""Artifacts taken out and in over HTTP."""

from __future__ import annotations

import base64
import hashlib
import pickle
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import torch
from fastapi.testclient import TestClient

from api.app import create_app
from bpt_core import artifact
from bpt_store import customers
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.settings import Role, Settings
from tests.published import probe

SAFETENSORS = "application/vnd.safetensors"
DATA = artifact.to_bytes(probe())
VERSIONS = "/v1/prompt-sets/birds/versions"


def key(database: Database, customer_id: UUID, *scopes: Scope) -> dict[str, str]:
    with database.system() as session:
        return {"Authorization": f"Bearer {customers.create_key(session, customer_id, 'k', scopes)[1]}"}


@pytest.fixture
def http(settings: Settings, database: Database, customer_id: UUID) -> Iterator[TestClient]:
    small = {"role": Role.API, "artifact_limit_bytes": 4 * len(DATA)}
    with TestClient(create_app(settings.model_copy(update=small))) as client:
        client.headers.update({**key(database, customer_id, *CUSTOMER_SCOPES), "Content-Type": SAFETENSORS})
        yield client


def digest(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def test_what_was_downloaded_is_imported_as_the_next_version_with_the_same_bytes(http: TestClient) -> None:
    made = http.post(VERSIONS, content=DATA, headers=digest(DATA))
    assert (made.status_code, made.headers["Location"]) == (201, f"{VERSIONS}/1")
    again = http.post(VERSIONS, content=http.get(f"{VERSIONS}/1/artifact").content)
    assert (again.status_code, again.headers["Location"]) == (201, f"{VERSIONS}/2")
    first, second = made.json(), again.json()
    assert first["artifact_sha256"] == second["artifact_sha256"] == artifact.sha256(DATA)
    assert http.get(f"{VERSIONS}/2").json() == second
    assert (second["imported"], second["job"], second["seed"], second["metrics"]) == (True, None, None, {})
    assert (second["method"]["type"], second["method"]["pooling"]) == ("linear-probe", "mean-all")
    assert (second["class_names"], second["parameters"], second["hyperparameters"]) == (["a", "b"], 0, {})


def test_an_import_sent_again_with_its_key_is_done_once(http: TestClient) -> None:
    headers = {"Idempotency-Key": "one", **digest(DATA)}
    first, again = (http.post(VERSIONS, content=DATA, headers=headers) for _ in range(2))
    assert (again.status_code, again.json()) == (first.status_code, first.json()) == (201, first.json())
    other = artifact.to_bytes(probe(class_names=("c", "d")))
    reused = http.post(VERSIONS, content=other, headers={"Idempotency-Key": "one"})
    assert reused.json()["code"] == "idempotency_key_reused"
    assert len(http.get(VERSIONS).json()["data"]) == 1


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", {}, 422, "artifact_corrupt"),
        (DATA[:-1], {}, 422, "artifact_corrupt"),
        (DATA + b"\0", {}, 422, "artifact_corrupt"),
        (pickle.dumps([1]), {}, 415, "artifact_format_unsupported"),
        (DATA, {"Content-Type": "application/json"}, 415, "unsupported_media_type"),
        (DATA, digest(b"something else"), 422, "checksum_mismatch"),
        (DATA, {"Content-Digest": "sha-256=:x:"}, 422, "checksum_mismatch"),
        (b"x" * (4 * len(DATA) + 1), {}, 413, "payload_too_large"),
        (artifact.to_bytes(probe(head_bias=torch.tensor([0.0, torch.nan]))), {}, 422, "artifact_non_finite"),
        (artifact.to_bytes(probe(head_weight=torch.ones(2, 8))), {}, 422, "artifact_schema"),
        (artifact.to_bytes(probe(backbone_fingerprint="f" * 64)), {}, 422, "artifact_schema"),
        (artifact.to_bytes(probe(class_names=("a", "\0"))), {}, 422, "artifact_schema"),
        (artifact.to_bytes(probe(backbone="vit_of_mine")), {}, 422, "backbone_unknown"),
        (artifact.to_bytes(probe(backbone="vit_base_patch16_224.mae")), {}, 422, "backbone_noncommercial"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_cannot_be_served_is_refused_and_leaves_nothing_behind(
    http: TestClient, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    for more in ({}, {"Idempotency-Key": "one"}):
        reply = http.post(VERSIONS, content=content, headers={**headers, **more})
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert http.get("/v1/prompt-sets").json()["data"] == []


@pytest.mark.parametrize("name", ["Birds", "birds.", "x" * 65, "b%00"])
def test_a_name_that_cannot_be_is_refused(http: TestClient, name: str) -> None:
    reply = http.post(f"/v1/prompt-sets/{name}/versions", content=DATA)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")


def test_it_takes_the_scope_to_write_prompt_sets(http: TestClient, database: Database, customer_id: UUID) -> None:
    reader: Any = key(database, customer_id, Scope.PROMPTS_READ)
    assert http.post(VERSIONS, content=DATA, headers=reader).json()["code"] == "insufficient_scope"
