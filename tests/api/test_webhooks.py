"""Webhook endpoints and deliveries over REST."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from api.app import create_app
from bpt_client import Client, webhooks
from bpt_store import customers, webhook_events
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.settings import Role, Settings
from bpt_store.webhook_events import EventType
from tests import archives
from tests.receiver import Receiver
from tests.service import Service, eventually

URL = "http://127.0.0.1:9/hook"
PATH = "/v1/webhook-endpoints"
NOWHERE = "whk_" + "0" * 32

Ask = Callable[..., httpx.Response]


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    changes = {"role": Role.API, "webhook_insecure": True, "webhook_allowed_networks": "127.0.0.0/8"}
    app = create_app(settings.model_copy(update=changes))
    yield app
    app.state.services.database.close()


@pytest.fixture
def token(database: Database, customer_id: UUID) -> str:
    with database.system() as session:
        return customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)[1]


@pytest.fixture
def ask(app: FastAPI, token: str) -> Ask:
    """ask(method, path, ...): one request to the application."""

    def send(method: str, path: str, *, token: str = token, key: str | None = None, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **({"Idempotency-Key": key} if key else {})}

        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as http:
                return await http.request(method, path, headers=headers, **request)

        return asyncio.run(once())

    return send


@pytest.fixture
def endpoint(ask: Ask) -> dict[str, Any]:
    made: dict[str, Any] = ask("POST", PATH, json={"url": URL}).json()
    return made


def count(database: Database, table: str) -> int:
    with database.system() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def refused(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def test_an_endpoint_is_made_shown_changed_and_deleted(ask: Ask) -> None:
    wish = {"url": URL, "events": ["dataset.ready", "dataset.failed", "dataset.ready"], "description": "mine"}
    made = ask("POST", PATH, json=wish)
    assert made.status_code == 201
    endpoint = made.json()
    assert made.headers["Location"] == f"{PATH}/{endpoint['id']}"
    assert endpoint["secret"].startswith("whsec_")
    assert (endpoint["url"], endpoint["events"]) == (URL, ["dataset.failed", "dataset.ready"])
    shown = ask("GET", f"{PATH}/{endpoint['id']}").json()
    assert shown == {**endpoint, "secret": None}
    assert ask("GET", PATH).json()["data"] == [shown]
    changed = ask("PATCH", f"{PATH}/{endpoint['id']}", json={"events": []})
    assert changed.json() == {**shown, "events": []}
    assert ask("PATCH", f"{PATH}/{endpoint['id']}", json={"url": f"{URL}/2"}).json()["url"] == f"{URL}/2"
    assert ask("DELETE", f"{PATH}/{endpoint['id']}").status_code == 204
    assert refused(ask("GET", f"{PATH}/{endpoint['id']}")) == (404, "not_found")


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest", "ftp://127.0.0.1", "http://u:p@127.0.0.1"],
)
def test_a_url_that_leads_inside_is_refused_and_leaves_nothing(
    ask: Ask, database: Database, endpoint: dict[str, Any], url: str
) -> None:
    assert refused(ask("POST", PATH, json={"url": url}, key="k")) == (422, "webhook_url_forbidden")
    assert refused(ask("PATCH", f"{PATH}/{endpoint['id']}", json={"url": url})) == (422, "webhook_url_forbidden")
    assert count(database, "webhook_endpoints") == 1
    assert count(database, "idempotency_records") == 0
    assert ask("GET", f"{PATH}/{endpoint['id']}").json()["url"] == URL


@pytest.mark.parametrize(
    "body", [{}, {"url": 1}, {"url": URL, "events": ["dataset.eaten"]}, {"url": URL, "secret": "mine"}]
)
def test_a_wish_that_is_none_is_refused(ask: Ask, body: dict[str, Any]) -> None:
    assert refused(ask("POST", PATH, json=body)) == (422, "invalid_request")


def test_a_customer_has_ten_endpoints_at_most(ask: Ask, database: Database) -> None:
    for _ in range(10):
        assert ask("POST", PATH, json={"url": URL}).status_code == 201
    assert refused(ask("POST", PATH, json={"url": URL})) == (409, "webhook_limit")
    assert count(database, "webhook_endpoints") == 10


def test_the_secret_is_told_again_to_the_same_key_only_and_never_kept_in_clear(
    ask: Ask, database: Database, customer_id: UUID
) -> None:
    first, again = (ask("POST", PATH, json={"url": URL}, key="k") for _ in range(2))
    assert first.json() == again.json()
    assert count(database, "webhook_endpoints") == 1
    with database.system() as session:
        _, another = customers.create_key(session, customer_id, "another", CUSTOMER_SCOPES)
        kept = b"".join(session.scalars(text("SELECT body FROM idempotency_records")))
    assert kept
    assert b"whsec_" not in kept
    assert refused(ask("POST", PATH, json={"url": URL}, key="k", token=another)) == (422, "idempotency_key_reused")
    path = f"{PATH}/{first.json()['id']}/rotate-secret"
    rotated = [ask("POST", path, json={}, key="r").json()["secret"] for _ in range(2)]
    assert rotated[0] == rotated[1] != first.json()["secret"]


def test_deliveries_are_listed_by_state_and_type_and_replayed(
    ask: Ask, database: Database, customer_id: UUID, endpoint: dict[str, Any]
) -> None:
    path = f"{PATH}/{endpoint['id']}/deliveries"
    tested = ask("POST", f"{PATH}/{endpoint['id']}/test")
    assert tested.status_code == 201
    assert (tested.json()["type"], tested.json()["data"]) == ("webhook.test", {"id": endpoint["id"]})
    with database.customer(customer_id) as session:
        webhook_events.emit(session, customer_id, EventType.DATASET_READY, {"id": "ds_1"})
        session.execute(text("UPDATE webhook_deliveries SET state = 'dead', attempts = 10"))
    first = ask("GET", path, params={"limit": 1}).json()
    rest = ask("GET", path, params={"after": first["next_cursor"]}).json()
    assert [each["type"] for each in (*first["data"], *rest["data"])] == ["dataset.ready", "webhook.test"]
    assert [each["id"] for each in ask("GET", path, params={"type": "webhook.test"}).json()["data"]] == [
        tested.json()["id"]
    ]
    replayed = ask("POST", f"{path}/{tested.json()['id']}/replay").json()
    assert (replayed["state"], replayed["attempts"]) == ("pending", 0)
    assert replayed["next_at"] is not None
    assert [each["type"] for each in ask("GET", path, params={"state": "dead"}).json()["data"]] == ["dataset.ready"]
    assert ask("POST", f"{path}/replay", json={"since": "2026-01-01T00:00:00Z"}).json() == {"deliveries": 1}
    assert ask("GET", path, params={"state": "dead"}).json()["data"] == []


def test_a_disabled_endpoint_is_not_tested_until_it_is_enabled(
    ask: Ask, database: Database, endpoint: dict[str, Any]
) -> None:
    with database.system() as session:
        session.execute(text("UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'it is gone'"))
    path = f"{PATH}/{endpoint['id']}"
    assert refused(ask("POST", f"{path}/test")) == (409, "webhook_disabled")
    assert ask("GET", path).json()["disabled_reason"] == "it is gone"
    assert ask("POST", f"{path}/enable").json()["disabled_at"] is None
    assert ask("POST", f"{path}/test").status_code == 201


def test_somebody_elses_endpoint_is_not_there(ask: Ask, database: Database, endpoint: dict[str, Any]) -> None:
    delivery = ask("POST", f"{PATH}/{endpoint['id']}/test").json()["id"]
    with database.system() as session:
        other = customers.create(session, "other").id
        _, token = customers.create_key(session, other, "key", CUSTOMER_SCOPES)
    for identifier in (endpoint["id"], NOWHERE):
        path = f"{PATH}/{identifier}"
        for method, asked, body in (
            ("GET", path, None),
            ("PATCH", path, {"description": "mine now"}),
            ("DELETE", path, None),
            ("POST", f"{path}/test", None),
            ("POST", f"{path}/enable", None),
            ("POST", f"{path}/rotate-secret", {}),
            ("GET", f"{path}/deliveries", None),
            ("GET", f"{path}/deliveries/{delivery}", None),
            ("POST", f"{path}/deliveries/{delivery}/replay", None),
            ("POST", f"{path}/deliveries/replay", {"since": "2026-01-01T00:00:00Z"}),
        ):
            reply = ask(method, asked, token=token, **({} if body is None else {"json": body}))
            assert refused(reply) == (404, "not_found"), (method, asked)
    assert ask("GET", PATH, token=token).json()["data"] == []


def test_a_key_that_may_look_may_not_change(ask: Ask, database: Database, customer_id: UUID) -> None:
    with database.system() as session:
        _, looking = customers.create_key(session, customer_id, "looking", [Scope.WEBHOOKS_READ])
        _, tuning = customers.create_key(session, customer_id, "tuning", [Scope.JOBS_WRITE])
    assert ask("GET", PATH, token=looking).status_code == 200
    for token, method in ((looking, "POST"), (tuning, "POST"), (tuning, "GET")):
        reply = ask(method, PATH, token=token, **({"json": {"url": URL}} if method == "POST" else {}))
        assert refused(reply) == (403, "insufficient_scope")


def test_the_service_tells_a_customers_server_what_happens_and_the_client_believes_it(service: Service) -> None:
    customer = service.new_customer()
    with Receiver.start() as receiver, Client(service.url, customer.key) as client:
        endpoint = client.webhooks.create(f"{receiver.url}/hook")
        assert endpoint.secret is not None
        dataset = customer.upload(archives.flowers())
        eventually(lambda: bool(receiver.received), what="the webhook")
        (request,) = receiver.received
        event = webhooks.verify(dict(request.headers.items()), request.body, endpoint.secret)
        assert event["type"] == "dataset.ready"
        assert event["data"] == {"id": dataset["id"], "version": 1, "state": "ready"}
        (delivery,) = client.webhooks.deliveries(endpoint.id, state="delivered")
        assert delivery.event == request.headers["webhook-id"]
        client.webhooks.delete(endpoint.id)
