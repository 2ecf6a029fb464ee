"""What the API does once for a request, and where: turns of threads, and the search for a route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import anyio.to_thread
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session
from starlette.routing import Match

from api.app import create_app
from api.by_resource import ByResource
from bpt_store import customers, prompt_sets
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.settings import Role, Settings


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings.model_copy(update={"role": Role.API}))


@pytest.fixture
def client(app: FastAPI, database: Database, customer_id: UUID) -> Iterator[TestClient]:
    with database.system() as session:
        _, token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)
    with TestClient(app, headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.post("/v1/prompt-sets", json={"name": "birds"}).status_code == 201
        yield client


def test_every_operation_is_found_by_its_resource_and_is_the_one_that_a_search_of_all_finds(app: FastAPI) -> None:
    found, *others = app.router.routes
    assert isinstance(found, ByResource)
    asked = [(verb, path) for path, item in app.openapi()["paths"].items() for verb in item]
    assert len(asked) > 100
    for verb, path in asked:
        scope: dict[str, Any] = {"type": "http", "method": verb.upper(), "path": path, "headers": []}
        match, child = found.matches(scope)
        assert match is Match.FULL, path
        searched = next(each for each in others if each.matches(dict(scope))[0] is Match.FULL)
        assert child["route"] in searched.original_router.routes, path  # type: ignore[attr-defined]
        assert child["route"].path == path


def test_what_is_shown_takes_a_turn_to_know_who_asks_and_one_for_all_else(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[object] = []
    run = anyio.to_thread.run_sync

    async def counted(call: Any, *values: Any, **more: Any) -> Any:
        turns.append(call)
        return await run(call, *values, **more)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    assert client.get("/v1/prompt-sets/birds").status_code == 200
    assert len(turns) == 2
    assert client.get("/v1/prompt-sets/bees").status_code == 404  # a third rolls back
    assert len(turns) == 5


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}])
def test_what_a_handler_wrote_before_a_bug_of_its_own_is_rolled_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, key: dict[str, str]
) -> None:
    create = prompt_sets.create

    def write_and_fail(session: Session, *more: Any) -> None:
        create(session, *more)
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(prompt_sets, "create", write_and_fail)
        assert client.post("/v1/prompt-sets", json={"name": "bees"}, headers=key).status_code == 500
    assert client.get("/v1/prompt-sets/bees").status_code == 404
    assert client.post("/v1/prompt-sets", json={"name": "bees"}, headers=key).status_code == 201
