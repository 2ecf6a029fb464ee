"""Quarantine over HTTP: what is told of a damaged version, and the ways out."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from bpt_core import artifact
from bpt_store.customers import Scope
from bpt_store.db import Database
from tests.published import probe

DATA = artifact.to_bytes(probe())
KIND = {"Content-Type": "application/vnd.safetensors"}
PATH = "/v1/prompt-sets/birds/versions/1"


@pytest.fixture
def spoilt(http: TestClient, database: Database, customer_id: UUID) -> None:
    assert http.post("/v1/prompt-sets/birds/versions", content=DATA, headers=KIND).status_code == 201
    with database.customer(customer_id) as session:
        session.execute(text("UPDATE prompt_set_versions SET artifact = artifact || 'x'"))


@pytest.mark.usefixtures("spoilt")
def test_a_download_finds_it_out_and_the_version_and_the_metrics_tell(http: TestClient) -> None:
    assert "bpt_quarantined_versions 0.0" in http.get("/metrics").text
    reply = http.get(f"{PATH}/artifact")
    assert (reply.status_code, reply.json()["code"]) == (503, "artifact_integrity")
    assert "birds:1" in reply.json()["detail"]
    shown = http.get(PATH).json()
    assert shown["quarantined_at"] is not None
    assert "not those that were published" in shown["quarantine_reason"]
    assert "bpt_quarantined_versions 1.0" in http.get("/metrics").text
    moved = http.put("/v1/prompt-sets/birds/aliases/production", json={"version": 1})
    assert (moved.status_code, moved.json()["code"]) == (409, "version_quarantined")


@pytest.mark.usefixtures("spoilt")
def test_the_published_bytes_bring_it_back_and_nothing_else(http: TestClient) -> None:
    assert http.get(f"{PATH}/artifact").status_code == 503
    other = artifact.to_bytes(probe(class_names=("b", "a")))
    for body, status, code in ((other, 409, "artifact_mismatch"), (DATA + b"x", 422, "artifact_corrupt")):
        reply = http.put(f"{PATH}/artifact", content=body, headers=KIND)
        assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert http.post(f"{PATH}/release").json()["code"] == "artifact_integrity"
    assert http.get(PATH).json()["quarantined_at"] is not None
    reply = http.put(f"{PATH}/artifact", content=DATA, headers=KIND)
    assert (reply.status_code, reply.json()["quarantined_at"]) == (200, None)
    assert http.get(f"{PATH}/artifact").content == DATA


@pytest.mark.usefixtures("spoilt")
def test_who_may_not_write_prompt_sets_cannot_bring_it_back(open_client: Callable[..., TestClient]) -> None:
    reader = open_client([Scope.PROMPTS_READ])
    assert reader.put(f"{PATH}/artifact", content=DATA, headers=KIND).status_code == 403
    assert reader.post(f"{PATH}/release").status_code == 403
