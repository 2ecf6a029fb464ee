"""What must never be in a log, put wherever it could come in, with requests that go well and with those that do not."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text

from api.app import create_app
from api.routes import datasets
from bpt_store import customers
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.settings import Role, Settings

PASSWORD = "canary-of-the-password"
CONTENT = "canary-of-the-content"
HOOK = {"url": "https://93.184.216.34/", "description": CONTENT}
OUR_SIDE = ("httpx2", "httpcore2", "asyncio")  # the test's own


@contextmanager
def logged(settings: Settings, **changed: object) -> Iterator[tuple[TestClient, io.StringIO]]:
    """An application that says as much as it can, and what it says."""
    root, said = logging.getLogger(), io.StringIO()
    handlers, level = [*root.handlers], root.level
    app = create_app(settings.model_copy(update={"role": Role.API, "log_level": "DEBUG", **changed}))
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(said)
    handler.addFilter(lambda record: record.name.split(".")[0] not in OUR_SIDE)
    try:
        with TestClient(app) as client:
            yield client, said
        assert [json.loads(line) for line in said.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture
def token(database: Database, customer_id: UUID) -> str:
    with database.system() as session:
        return customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)[1]


@pytest.fixture
def key(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_no_key_secret_or_content_is_logged_wherever_it_was_sent(
    settings: Settings, database: Database, customer_id: UUID, token: str, key: dict[str, str]
) -> None:
    with database.system() as session:
        _, admin = customers.create_key(session, None, "administrator", [Scope.ADMIN])
    with logged(settings) as (client, said):
        assert client.get("/v1/datasets", headers=key).status_code == 200
        assert client.get(f"/v1/datasets/{token}", headers=key).status_code == 404
        assert client.get(f"/v1/{token}").status_code == 404
        assert client.get("/v1/datasets", params={"after": token}, headers=key).status_code == 404
        assert client.get("/v1/datasets", params={"limit": token}, headers=key).status_code == 422
        assert client.get("/v1/datasets", headers={"Authorization": token}).status_code == 401
        assert client.get("/v1/datasets", headers={"X-Request-Id": token}).status_code == 401
        assert client.post("/v1/prompt-sets", headers=key, content=CONTENT).status_code == 422
        assert client.post("/v1/prompt-sets", headers=key, json={"name": CONTENT, "more": CONTENT}).status_code == 422
        zipped = {**key, "Content-Type": "application/zip"}
        assert client.post("/v1/datasets?name=d", headers=zipped, content=CONTENT).status_code == 201
        hook = client.post("/v1/webhook-endpoints", headers=key, json=HOOK).json()["secret"]
        assert client.get(f"/v1/webhook-endpoints/{hook}", headers=key).status_code == 404
        asked = {"customer": f"cus_{customer_id.hex}", "name": "k"}
        fresh = client.post("/v1/api-keys", headers={"Authorization": f"Bearer {admin}"}, json=asked).json()["token"]
    assert f"/v1/{token.rsplit('_', 1)[0][:36]}" in said.getvalue()  # which key it was may be known
    for secret in (*(each.split("_", 2)[2] for each in (token, admin, fresh)), hook.removeprefix("whsec_"), CONTENT):
        assert len(secret) > 20
        assert secret not in said.getvalue()


def test_a_bug_is_logged_without_the_key_that_met_it(
    settings: Settings, token: str, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"on a line of its own:\n{token}")

    monkeypatch.setattr(datasets, "page", broken)
    with logged(settings) as (client, said):
        assert client.get("/v1/datasets", headers=key).status_code == 500
    assert "unexpected error" in said.getvalue()
    assert token.split("_", 2)[2] not in said.getvalue()


def test_a_statement_that_fails_is_logged_without_what_it_was_given(
    settings: Settings, owner: Engine, key: dict[str, str]
) -> None:
    with owner.begin() as connection:
        connection.execute(text("REVOKE INSERT ON webhook_endpoints FROM bpt_customer"))
    with logged(settings) as (client, said):
        assert client.post("/v1/webhook-endpoints", headers=key, json=HOOK).status_code == 500
    assert "permission denied" in said.getvalue()
    assert CONTENT not in said.getvalue()


@pytest.mark.parametrize("wrong", [{"port": 1, "host": "127.0.0.1"}, {"username": "nobody"}])
def test_a_database_that_cannot_be_reached_is_logged_without_its_password(
    settings: Settings, key: dict[str, str], wrong: dict[str, object]
) -> None:
    url = make_url(settings.database_url.get_secret_value()).set(password=PASSWORD, **wrong)  # type: ignore[arg-type]
    with logged(settings, database_url=SecretStr(url.render_as_string(hide_password=False))) as (client, said):
        assert client.get("/v1/datasets", headers=key).status_code == 503
    assert "database away" in said.getvalue()
    assert PASSWORD not in said.getvalue()
