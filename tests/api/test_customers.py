"""Customers and keys over HTTP: limits, suspension, deletion, rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.app import create_app
from bpt_store import customers, ids
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.settings import Role, Settings

JOBS = "/v1/tuning-jobs"


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings.model_copy(update={"role": Role.API}))) as client:
        yield client


Ask = Callable[..., Any]


@pytest.fixture
def admin(client: TestClient, database: Database) -> Ask:
    """admin(method, path, ...): a request with an administrator's key."""
    with database.system() as session:
        _, token = customers.create_key(session, None, "administrator", [Scope.ADMIN])

    def ask(method: str, path: str, **request: Any) -> Any:
        return client.request(method, path, headers={"Authorization": f"Bearer {token}"}, **request)

    return ask


@pytest.fixture
def key(database: Database, customer_id: UUID) -> tuple[str, str]:
    """(id, token) of a key of acme's."""
    with database.system() as session:
        row, token = customers.create_key(session, customer_id, "k", CUSTOMER_SCOPES)
        return ids.public(ids.KEY, row.id), token


def of(customer_id: UUID, act: str = "") -> str:
    return f"/v1/customers/{ids.public(ids.CUSTOMER, customer_id)}{act}"


def status(client: TestClient, token: str) -> tuple[int, str | None]:
    reply = client.get(JOBS, headers={"Authorization": f"Bearer {token}"})
    return reply.status_code, reply.json().get("code")


def test_what_is_not_named_stays_and_null_is_the_services_own(admin: Ask, customer_id: UUID) -> None:
    changes = {"weight": 3, "quota_images": 5.0, "queued_jobs_limit": 0}  # 5.0 is an integer, too
    changed = admin("PATCH", of(customer_id), json=changes).json()
    assert (changed["name"], changed["weight"], changed["quota_images"]) == ("acme", 3.0, 5)
    changed = admin("PATCH", of(customer_id), json={"weight": None, "quota_images": None}).json()
    assert (changed["weight"], changed["quota_images"], changed["queued_jobs_limit"]) == (1.0, None, 0)
    assert admin("GET", of(customer_id)).json() == changed


@pytest.mark.parametrize(
    "body",
    [
        *({"weight": 0}, {"weight": -1}, {"weight": 1001}, {"weight": "heavy"}),
        *({"name": None}, {"name": ""}, {"name": "a\nb"}, {"colour": "red"}, {"suspended_at": None}),
        *({"requests_per_minute": -1}, {"images_per_minute": 10**15}, {"upload_bytes_per_day": "much"}),
        *({"running_jobs_limit": 0}, {"queued_jobs_limit": 2**31}, {"quota_bytes": 2**63}, {"quota_images": -1}),
        *({"running_jobs_limit": 1.5}, {"running_jobs_limit": "5"}, {"running_jobs_limit": True}),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(admin: Ask, customer_id: UUID, body: dict[str, Any]) -> None:
    before = admin("GET", of(customer_id)).json()
    reply = admin("PATCH", of(customer_id), json={"quota_datasets": 7, **body})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert admin("GET", of(customer_id)).json() == before


def test_a_suspended_customer_is_told_so_on_everything(
    client: TestClient, admin: Ask, customer_id: UUID, key: tuple[str, str]
) -> None:
    assert status(client, key[1]) == (200, None)
    assert admin("POST", of(customer_id, "/suspend")).json()["suspended_at"] is not None
    assert status(client, key[1]) == (403, "customer_suspended")
    document = client.get("/openapi.json").json()
    assert len(document["paths"]) > 20
    for path, item in document["paths"].items():
        for verb in item if path.startswith("/v1/") else ():
            filled = path.replace("{number}", "1").replace("{version}", "1").replace("{epoch}", "1")
            reply = client.request(verb, filled, headers={"Authorization": f"Bearer {key[1]}"})
            assert (reply.status_code, reply.json()["code"]) == (403, "customer_suspended"), (verb, path)
    assert admin("POST", of(customer_id, "/resume")).json()["suspended_at"] is None
    assert status(client, key[1]) == (200, None)


def test_two_replicas_refuse_a_revoked_key_and_a_suspended_customer_alike(
    settings: Settings, client: TestClient, admin: Ask, customer_id: UUID, key: tuple[str, str]
) -> None:
    with TestClient(create_app(settings.model_copy(update={"role": Role.API}))) as second:
        assert status(second, key[1]) == (200, None)
        admin("POST", of(customer_id, "/suspend"))
        assert status(second, key[1]) == (403, "customer_suspended")
        admin("POST", of(customer_id, "/resume"))
        admin("POST", f"/v1/api-keys/{key[0]}/revoke")
        assert status(second, key[1]) == (401, "unauthenticated")


def test_a_customer_is_deleted_where_the_name_confirms_it(
    client: TestClient, admin: Ask, customer_id: UUID, key: tuple[str, str]
) -> None:
    for params, code in (({}, "invalid_request"), ({"name": "acme2"}, "name_mismatch")):
        reply = admin("DELETE", of(customer_id), params=params)
        assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert status(client, key[1]) == (200, None)
    assert admin("DELETE", of(customer_id), params={"name": "acme"}).status_code == 204
    assert status(client, key[1]) == (401, "unauthenticated")
    for act, method in (("", "GET"), ("/suspend", "POST"), ("/resume", "POST")):
        assert admin(method, of(customer_id, act)).status_code == 404
    assert admin("DELETE", of(customer_id), params={"name": "acme"}).status_code == 404


def test_a_request_under_way_while_its_customer_is_deleted_is_told_that_the_key_is_gone(
    client: TestClient, database: Database, customer_id: UUID, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Authenticated before, writes after."""
    authenticate = customers.authenticate

    def then_deleted(session: Any, token: str) -> customers.Identity:
        identity = authenticate(session, token)
        session.execute(text("DELETE FROM customers WHERE id = :id"), {"id": customer_id})
        return identity

    monkeypatch.setattr(customers, "authenticate", then_deleted)
    upload = {"name": "birds", "media_type": "application/zip", "part_bytes": 5 << 20}
    reply = client.post("/v1/uploads", json=upload, headers={"Authorization": f"Bearer {key[1]}"})
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated"), reply.text


def test_a_key_is_rotated_with_an_overlap_and_its_token_shown_once(
    client: TestClient, admin: Ask, key: tuple[str, str]
) -> None:
    made = admin("POST", f"/v1/api-keys/{key[0]}/rotate")
    assert made.status_code == 201
    old, new = admin("GET", f"/v1/api-keys/{key[0]}").json(), made.json()
    assert (new["name"], new["scopes"], new["expires_at"]) == (old["name"], old["scopes"], None)
    assert old["expires_at"] is not None
    assert old["token"] is admin("GET", f"/v1/api-keys/{new['id']}").json()["token"] is None
    assert status(client, key[1]) == status(client, new["token"]) == (200, None)
    assert admin("POST", f"/v1/api-keys/{key[0]}/rotate", json={"overlap_seconds": 0}).status_code == 201
    assert status(client, key[1]) == (401, "unauthenticated")
    reply = admin("POST", f"/v1/api-keys/{key[0]}/rotate")
    assert (reply.status_code, reply.json()["code"]) == (409, "key_ended")


@pytest.mark.parametrize("seconds", [-1, 30 * 86400 + 1, "soon", None])
def test_an_overlap_has_bounds(admin: Ask, key: tuple[str, str], seconds: object) -> None:
    reply = admin("POST", f"/v1/api-keys/{key[0]}/rotate", json={"overlap_seconds": seconds})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert admin("GET", f"/v1/api-keys/{key[0]}").json()["expires_at"] is None


def test_keys_that_are_not_a_customers_are_not_there(admin: Ask) -> None:
    for act, method in (("", "GET"), ("/rotate", "POST"), ("/revoke", "POST")):
        assert admin(method, f"/v1/api-keys/{ids.public(ids.KEY, uuid4())}{act}").status_code == 404


def test_administrators_keys_are_listed_made_rotated_and_revoked(client: TestClient, admin: Ask) -> None:
    keys = "/v1/admin/api-keys"
    [own] = admin("GET", keys).json()["data"]
    assert (own["customer"], own["scopes"], own["token"]) == (None, ["admin"], None)
    refused = admin("POST", f"{keys}/{own['id']}/revoke")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")
    made = admin("POST", keys, json={"name": "of a colleague"})
    assert made.status_code == 201
    assert admin("GET", f"{keys}/{made.json()['id']}").json() == {**made.json(), "token": None, "last_used_at": None}
    rotated = admin("POST", f"{keys}/{made.json()['id']}/rotate", json={"overlap_seconds": 0}).json()
    for token, status_code in ((made.json()["token"], 401), (rotated["token"], 200)):
        assert client.get(keys, headers={"Authorization": f"Bearer {token}"}).status_code == status_code
    assert admin("POST", f"{keys}/{own['id']}/revoke").status_code == 200
    assert admin("GET", keys).status_code == 401


def test_customers_cannot_do_any_of_this(client: TestClient, customer_id: UUID, key: tuple[str, str]) -> None:
    headers = {"Authorization": f"Bearer {key[1]}"}
    for method, path in (
        ("PATCH", of(customer_id)),
        ("DELETE", of(customer_id) + "?name=acme"),
        ("POST", of(customer_id, "/suspend")),
        ("POST", of(customer_id, "/resume")),
        ("POST", f"/v1/api-keys/{key[0]}/rotate"),
        ("GET", f"/v1/api-keys/{key[0]}"),
    ):
        reply = client.request(method, path, headers=headers, json={} if method == "PATCH" else None)
        assert (reply.status_code, reply.json()["code"]) == (403, "insufficient_scope"), (method, path)
