"""What is around every request: headers for browsers, and an end to bodies that do not come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from api import middleware
from api.app import create_app
from api.conditions import ASK_AGAIN
from api.routes import datasets
from bpt_store import customers
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Role, Settings
from tests.estate import settle

NOTHING = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"role": Role.API}))) as client:
        yield client


@pytest.fixture
def key(database: Database, customer_id: UUID) -> dict[str, str]:
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", ["/healthz", "/v1/datasets", "/v1/nothing", "/v2", "/openapi.json"])
def test_a_browser_may_neither_guess_nor_run_nor_frame_what_is_answered(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert headers["content-security-policy"] == NOTHING


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_for_people_run_their_scripts_but_in_no_frame(client: TestClient, path: str) -> None:
    policy = client.get(path).headers["content-security-policy"]
    assert "'unsafe-inline'" in policy
    assert "frame-ancestors 'none'" in policy


def test_a_bug_is_answered_with_the_same_headers(
    client: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(datasets, "page", None)
        reply = client.get("/v1/datasets", headers=key)
    assert (reply.status_code, reply.headers["content-security-policy"]) == (500, NOTHING)
    assert reply.headers["cache-control"] == "no-store"


def test_what_was_answered_to_a_key_is_kept_nowhere_unless_the_route_says_so(
    client: TestClient, key: dict[str, str], database: Database, settings: Settings, tmp_path: Path
) -> None:
    assert client.get("/v1/datasets", headers=key).headers["cache-control"] == "no-store"
    assert client.get("/v1/nothing", headers=key).headers["cache-control"] == "no-store"
    assert "cache-control" not in client.get("/healthz").headers
    owner = settle(database, Objects(settings.objects_url), tmp_path, "owner")
    theirs = {"Authorization": f"Bearer {owner.token}"}
    artifact = client.get("/v1/prompt-sets/birds/versions/1/artifact", headers=theirs)
    assert (artifact.status_code, artifact.headers["cache-control"]) == (200, ASK_AGAIN)


def trickled(client: TestClient, key: dict[str, str], parts: list[bytes], pause: float) -> tuple[int, dict[str, Any]]:
    """What POST /v1/prompt-sets answers to a body of which nothing comes after these parts."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/prompt-sets",
        "raw_path": b"/v1/prompt-sets",
        "query_string": b"",
        "headers": [(b"authorization", key["Authorization"].encode()), (b"content-type", b"application/json")],
    }

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.sleep(60)
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": parts.pop(0), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    headers = dict(sent[0]["headers"])
    assert headers[b"connection"] == b"close"
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize("parts", [[], [b'{"na']])
def test_a_body_that_stops_is_given_up(
    client: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch, parts: list[bytes]
) -> None:
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.1)
    status, body = trickled(client, key, parts, 0.0)
    assert (status, body["code"]) == (408, "request_timeout")
    assert client.get("/v1/prompt-sets", headers=key).json()["data"] == []


def test_a_body_that_trickles_is_given_up(
    client: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.1)
    parts = [b" "] * 100
    status, _ = trickled(client, key, parts, 0.02)
    assert status == 408
    assert len(parts) > 50


def test_a_large_body_has_the_time_that_it_takes(
    client: TestClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.1)
    status, body = trickled(client, key, [b" " * 1024] * 4, 0.05)
    assert status == 408
    assert "4096 bytes so far" in body["detail"]


def test_every_operation_that_takes_a_body_says_that_it_may_be_too_large_or_too_slow(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    taking = [item[verb] for item in paths.values() for verb in item if verb == "post" or "requestBody" in item[verb]]
    assert [each["operationId"] for each in taking if not {"408", "413"} <= each["responses"].keys()] == []


def test_a_method_that_a_path_lacks_is_told_which_ones_it_has(client: TestClient) -> None:
    replies = [client.put("/v1/prompt-sets"), client.post("/healthz")]
    assert [(reply.status_code, reply.headers["allow"]) for reply in replies] == [(405, "GET, POST"), (405, "GET")]


def test_no_parameter_is_said_to_be_null(client: TestClient) -> None:
    """A query or a header could only send the word."""
    paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for item in paths.values() for operation in item.values()]
    parameters = [each for operation in operations for each in operation.get("parameters", ())]
    assert len(parameters) > 100
    assert [each["name"] for each in parameters if {"type": "null"} in each["schema"].get("anyOf", ())] == []
