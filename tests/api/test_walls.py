"""The walls of the interface, for every operation in the OpenAPI: a new one is covered as soon as it is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from bpt_store import customers
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Role, Settings
from tests.estate import Estate, nobodys, rows, settle
from tests.service import eventually

PUBLIC = {
    "/healthz": "orchestrators ask without a key",
    "/readyz": "orchestrators ask without a key",
    "/metrics": "for Prometheus; the proxy keeps it inside",
    "/v2": "the protocol's description of the server, the same for everybody",
    "/v2/health/live": "the protocol's /healthz",
    "/v2/health/ready": "the protocol's /readyz",
}
NAMES_NOTHING = {"importPromptSetVersion": "a prompt set of that name is made for whoever imports, of a good artifact"}
DOCUMENTATION = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
UUID_TEXT = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LACKING = ((403, "insufficient_scope"), (403, None))
READING = {scope for scope in Scope if scope.endswith(":read")}


@dataclass(frozen=True, order=True)
class Operation:
    verb: str
    path: str
    id: str

    def send(self, client: TestClient, estate: Estate, token: str | None, **other: Any) -> Any:
        """Ask about what `estate` has, or with some `other` body."""
        try:
            path = estate.path(self.path)
        except KeyError as missing:
            pytest.fail(f"{self.path}: give {missing} an example in tests/estate.py")
        more = other or estate.request(self.id)
        key = {"Authorization": f"Bearer {token}"} if token is not None else {}
        headers = {**more.get("headers", {}), **key}
        return client.request(self.verb.upper(), path, **{**more, "headers": headers})

    def names(self, estate: Estate) -> bool:
        """Whether the request names something of `estate`: in its path, its query or its body."""
        asked = f"{self.path}{estate.request(self.id)}"
        return "{" in self.path or any(example in asked for example in estate.examples.values() if len(example) > 2)


@dataclass
class Keys:
    """API keys of customers and administrators, made when they are asked for."""

    database: Database
    customer_id: UUID
    found: dict[tuple[Scope, ...], str] = field(default_factory=dict)

    def may(self, *scopes: Scope) -> str:
        if scopes not in self.found:
            owner = None if Scope.ADMIN in scopes else self.customer_id
            with self.database.system() as session:
                self.found[scopes] = customers.create_key(session, owner, "key", scopes)[1]
        return self.found[scopes]


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings.model_copy(update={"role": Role.API}))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def serving(settings: Settings) -> Iterator[TestClient]:
    """One that predicts, too."""
    with TestClient(create_app(settings)) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture
def keys(database: Database, customer_id: UUID) -> Keys:
    return Keys(database, customer_id)


@pytest.fixture
def estate(database: Database, settings: Settings, tmp_path: Path) -> Estate:
    return settle(database, Objects(settings.objects_url), tmp_path, "owner")


def operations(client: TestClient) -> list[Operation]:
    """All that need a key. Those that read come first, and those that delete last, the innermost first."""
    paths: dict[str, dict[str, Any]] = client.get("/openapi.json").json()["paths"]
    found = [Operation(verb, path, item[verb]["operationId"]) for path, item in paths.items() for verb in item]
    rank = ("get", "put", "patch", "post", "delete")
    return sorted(
        (each for each in found if each.path not in PUBLIC),
        key=lambda each: (rank.index(each.verb), -len(each.path), each.path),
    )


def of_customers(found: list[Operation]) -> list[Operation]:
    return [each for each in found if not each.path.startswith(("/v1/customers", "/v1/api-keys", "/v1/admin"))]


def answer(reply: Any) -> tuple[int, str | None]:
    """Status and code; below /v2 errors have none."""
    return reply.status_code, reply.json().get("code") if reply.is_error else None


def test_the_openapi_leaves_nothing_out_but_itself(app: FastAPI) -> None:
    shown = set(app.openapi()["paths"])
    assert {route.path for route in app.routes if hasattr(route, "path")} - shown == DOCUMENTATION
    assert set(PUBLIC) <= shown


def test_what_is_public_asks_for_no_key(client: TestClient) -> None:
    for path in PUBLIC:
        assert client.get(path).status_code in (200, 421), path


def test_without_a_key_that_holds_there_is_nothing(
    client: TestClient, database: Database, customer_id: UUID, keys: Keys
) -> None:
    with database.system() as session:
        revoked, revoked_token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)
        customers.revoke_key(session, customer_id, revoked.id)
        long_ago = datetime(2026, 1, 1, tzinfo=UTC)
        _, expired_token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES, long_ago)
    refused = {"none": None, "malformed": "bpt_nonsense", "revoked": revoked_token, "expired": expired_token}
    through = []
    for operation in operations(client):
        for why, token in refused.items():
            reply = operation.send(client, nobodys(), token)
            if answer(reply) not in ((401, "unauthenticated"), (401, None)) or "www-authenticate" not in reply.headers:
                through.append((operation, why, reply.status_code))
    assert through == []


@pytest.mark.parametrize("length", [{}, {"Content-Length": str(1 << 50)}], ids=["not JSON", "too large"])
def test_nobody_without_a_key_that_may_has_his_body_looked_at(
    client: TestClient, keys: Keys, length: dict[str, str]
) -> None:
    body = {"content": b'{"name": ', "headers": {"Content-Type": "application/json", **length}}
    looked_at = []
    for operation in operations(client):
        if operation.verb in ("post", "put", "patch"):
            replies = [operation.send(client, nobodys(), token, **body) for token in (None, keys.may())]
            if [reply.status_code for reply in replies] != [401, 403]:
                looked_at.append((operation, [reply.text for reply in replies]))
    assert looked_at == []


def test_a_key_holds_only_as_a_whole(client: TestClient, keys: Keys) -> None:
    good = keys.may(Scope.DATASETS_READ)
    other = good[:-1] + ("A" if good[-1] != "A" else "B")
    statuses = [
        client.get("/v1/datasets", headers={"Authorization": given}).status_code
        for given in (f"Bearer {good}", f"Bearer {other}", f"Bearer {good.rsplit('_', 1)[0]}_", f"Basic {good}", good)
    ]
    assert statuses == [200, 401, 401, 401, 401]


def test_a_suspended_customer_gets_nothing(
    client: TestClient, database: Database, customer_id: UUID, keys: Keys
) -> None:
    token = keys.may(*CUSTOMER_SCOPES)
    with database.system() as session:
        customers.suspend(session, customer_id)
    replies = {operation: answer(operation.send(client, nobodys(), token)) for operation in operations(client)}
    assert {operation for operation, found in replies.items() if found[0] != 403} == set()
    assert {code for _, code in replies.values()} == {"customer_suspended", None}


def test_every_operation_needs_one_scope_and_only_that_opens_it(client: TestClient, keys: Keys) -> None:
    wrong: list[tuple[object, ...]] = []
    for operation in operations(client):
        refused = operation.send(client, nobodys(), keys.may())
        needed = next((scope for scope in Scope if refused.text.count(f"lacks the scope {scope}")), None)
        if answer(refused) not in LACKING or needed is None:
            wrong.append((operation, "opens without", refused.status_code))
            continue
        others = operation.send(client, nobodys(), keys.may(*(scope for scope in CUSTOMER_SCOPES if scope != needed)))
        alone = operation.send(client, nobodys(), keys.may(needed))
        changes_with_reading = operation.verb != "get" and needed in READING
        if answer(others) not in LACKING or answer(alone) in LACKING or changes_with_reading:
            wrong.append((operation, needed, others.status_code, alone.status_code))
    assert wrong == []


def test_what_belongs_to_another_customer_is_not_found_and_stays_as_it_is(
    serving: TestClient, database: Database, estate: Estate, keys: Keys
) -> None:
    before = rows(database, estate.customer_id)
    assert [table for table in before if not before[table]] == []
    owned = {found.replace("-", "") for found in UUID_TEXT.findall(str(before))}
    stranger = keys.may(*CUSTOMER_SCOPES)
    wrong = []
    for operation in of_customers(operations(serving)):
        reply = operation.send(serving, estate, stranger)
        asked = f"{estate.path(operation.path)}{estate.request(operation.id)}"
        told = [each for each in owned if each in reply.text.replace("-", "") and each not in asked]
        found = answer(reply) if operation.names(estate) and operation.id not in NAMES_NOTHING else (404, "not_found")
        if found not in ((404, "not_found"), (404, None)) or told or reply.status_code >= 500:
            wrong.append((operation, reply.status_code, reply.text))
        assert rows(database, estate.customer_id) == before, operation
    assert wrong == []


def test_the_same_requests_find_something_when_the_owner_sends_them(serving: TestClient, estate: Estate) -> None:
    """Else the test above would prove nothing."""
    wrong = []
    for operation in of_customers(operations(serving)):
        reply = operation.send(serving, estate, estate.token)
        status, code = answer(reply)
        if status in (401, 403, 404) or status >= 500 or code == "invalid_request":
            wrong.append((operation, reply.status_code, reply.text))
    assert wrong == []
