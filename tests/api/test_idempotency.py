"""Idempotency-Key: what is sent again is done once and answered the same; each POST below /v1 takes the header."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy import text

from api import idempotency, receiving
from api.app import API_ROUTES, create_app
from api.idempotency import OnceRoute
from api.routes import inference_protocol, predictions
from bpt_store import customers, datasets, ids, jobs
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.settings import Role, Settings
from tests import archives

Result = TypeVar("Result")
ZIP = "application/zip"
UPLOAD = {"name": "birds", "media_type": ZIP, "part_bytes": 5 << 20}


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    app = create_app(settings.model_copy(update={"role": Role.API}))
    yield app
    app.state.services.database.close()


@pytest.fixture
def admin_token(database: Database) -> str:
    with database.system() as session:
        return customers.create_key(session, None, "administrator", [Scope.ADMIN])[1]


@pytest.fixture
def token(database: Database, customer_id: UUID) -> str:
    with database.system() as session:
        return customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)[1]


Post = Callable[..., Coroutine[Any, Any, httpx.Response]]


@pytest.fixture
def post(app: FastAPI) -> Post:
    """post(token, path, key, ...): one request to the application, with an Idempotency-Key or without."""

    async def ask(token: str, path: str, key: str | None, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", **request.pop("headers", {})}
        if key is not None:
            headers["Idempotency-Key"] = key
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.post(path, headers=headers, **request)

    return ask


def run(asked: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(asked)


async def together(*asked: Coroutine[Any, Any, httpx.Response]) -> list[httpx.Response]:
    return list(await asyncio.gather(*asked))


def count(database: Database, table: str) -> int:
    with database.system() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def assert_refused(reply: httpx.Response, status: int, code: str) -> None:
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text


def assert_same(first: httpx.Response, again: httpx.Response) -> None:
    assert first.is_success, first.text
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for header in ("location", "content-type"):
        assert again.headers.get(header) == first.headers.get(header)


# --- every POST ------------------------------------------------------------------------------------------------


def calls(dependant: Dependant) -> set[object]:
    return {dependant.call, *(call for each in dependant.dependencies for call in calls(each))}


def test_every_post_below_v1_but_predictions_takes_the_header_and_nothing_else_does(app: FastAPI) -> None:
    taking = set()
    for path, item in app.openapi()["paths"].items():
        for verb, operation in item.items():
            shown = [each for each in operation.get("parameters", []) if each["name"] == "Idempotency-Key"]
            expected = verb == "post" and path.startswith("/v1/") and path != "/v1/predictions"
            assert bool(shown) is expected, (verb, path)
            if expected:
                taking.add(path)
                codes = {
                    code
                    for reply in operation["responses"].values()
                    for code in reply["content"].get("application/problem+json", {}).get("examples", {})
                }
                assert set(idempotency.CODES) <= codes, path
                assert (shown[0]["in"], shown[0]["required"]) == ("header", False)
    assert len(taking) >= 10


def test_every_route_that_takes_the_header_opens_its_transactions_where_it_is_heeded() -> None:
    heeding = {idempotency._once, receiving._receiver}
    routers = [module.router for module in (*API_ROUTES, predictions, inference_protocol)]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    taking = [route for route in routes if isinstance(route, OnceRoute) and "POST" in (route.methods or ())]
    assert len(taking) >= 10
    for route in taking:
        assert heeding & calls(route.dependant), route.path


# --- one transaction -------------------------------------------------------------------------------------------


def test_a_request_sent_again_is_answered_the_same_and_done_once(
    post: Post, database: Database, admin_token: str
) -> None:
    first = run(post(admin_token, "/v1/customers", "key", json={"name": "birds"}))
    again = run(post(admin_token, "/v1/customers", "key", json={"name": "birds"}))
    assert_same(first, again)
    assert_refused(run(post(admin_token, "/v1/customers", None, json={"name": "birds"})), 409, "name_taken")
    assert count(database, "customers") == 1


def test_what_can_be_done_once_only_is_answered_the_same_again(
    post: Post, database: Database, customer_id: UUID, token: str
) -> None:
    with database.customer(customer_id) as session:
        dataset, _ = datasets.create(session, customer_id, "d", {}, {"parts": []})
        payload = {"prompt_sets": [], "split": "test", "top_k": 5, "images": 1}
        job = jobs.create(
            session, customer_id, JobKind.BATCH_PREDICT, dataset_id=dataset.id, dataset_version=1, payload=payload
        )
    path = f"/v1/batch-predictions/{ids.public(ids.JOB, job.id)}/cancel"
    first = run(post(token, path, "key"))
    assert first.json()["state"] == "cancelled", first.text
    assert_same(first, run(post(token, path, "key")))
    assert_refused(run(post(token, path, "another")), 409, "job_terminal")


def test_twins_at_once_make_one_thing_and_the_losers_are_told(
    post: Post, database: Database, admin_token: str, token: str
) -> None:
    for sender, path, body in (
        (admin_token, "/v1/customers", {"name": "birds"}),
        (token, "/v1/uploads", UPLOAD),
    ):
        replies = run(together(*(post(sender, path, "key", json=body) for _ in range(8))))
        made = {reply.json()["id"] for reply in replies if reply.status_code == 201}
        assert len(made) == 1
        for reply in replies:
            if reply.status_code != 201:
                assert_refused(reply, 409, "idempotency_in_progress")
    assert (count(database, "customers"), count(database, "uploads")) == (2, 1)


def test_an_error_is_not_kept_and_the_key_may_be_used_again(post: Post, database: Database, admin_token: str) -> None:
    with database.system() as session:
        customers.create(session, "birds")
    assert_refused(run(post(admin_token, "/v1/customers", "key", json={"name": "birds"})), 409, "name_taken")
    assert_refused(run(post(admin_token, "/v1/customers", "key", json={})), 422, "invalid_request")
    assert count(database, "idempotency_records") == 0
    with database.system() as session:
        session.execute(text("DELETE FROM customers"))
    assert run(post(admin_token, "/v1/customers", "key", json={"name": "birds"})).status_code == 201


def test_a_key_is_for_one_request(post: Post, database: Database, admin_token: str) -> None:
    first = run(post(admin_token, "/v1/customers", "key", json={"name": "birds"}))
    others: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/customers", {"json": {"name": "bees"}}),
        ("/v1/customers", {"content": b'{"name":  "birds"}', "headers": {"Content-Type": "application/json"}}),
        ("/v1/customers?x=1", {"json": {"name": "birds"}}),
        ("/v1/api-keys", {"json": {"customer": first.json()["id"], "name": "key"}}),
    )
    for path, request in others:
        assert_refused(run(post(admin_token, path, "key", **request)), 422, "idempotency_key_reused")
    assert (count(database, "customers"), count(database, "api_keys")) == (1, 1)


def test_keys_of_different_customers_and_administrators_have_nothing_to_do_with_each_other(
    post: Post, database: Database, token: str
) -> None:
    with database.system() as session:
        other_id = customers.create(session, "other").id
        other = customers.create_key(session, other_id, "key", CUSTOMER_SCOPES)[1]
        second = customers.create_key(session, customers.get(session, other_id).id, "2", CUSTOMER_SCOPES)[1]
        administrators = [customers.create_key(session, None, name, [Scope.ADMIN])[1] for name in "ab"]
    uploads = [run(post(sender, "/v1/uploads", "key", json=UPLOAD)).json()["id"] for sender in (token, other, second)]
    assert uploads[0] != uploads[1]
    assert uploads[1] == uploads[2]  # two keys of one customer
    for number, administrator in enumerate(administrators):
        reply = run(post(administrator, "/v1/customers", "key", json={"name": f"customer {number}"}))
        assert reply.status_code == 201, reply.text


def test_after_its_time_a_key_is_new_again(post: Post, database: Database, token: str) -> None:
    first = run(post(token, "/v1/uploads", "key", json=UPLOAD))
    with database.system() as session:
        kept = session.scalar(text("SELECT extract(epoch FROM expires_at - now()) FROM idempotency_records"))
        assert 24 * 3600 - 60 < float(kept or 0) <= 24 * 3600
        session.execute(text("UPDATE idempotency_records SET expires_at = now()"))
    again = run(post(token, "/v1/uploads", "key", json={**UPLOAD, "name": "bees"}))
    assert again.status_code == 201, again.text
    assert again.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_none_is_refused(post: Post, database: Database, admin_token: str, key: str) -> None:
    reply = run(post(admin_token, "/v1/customers", key, json={"name": "birds"}))
    assert_refused(reply, 422, "invalid_request")
    assert reply.json()["param"] == "Idempotency-Key"
    assert count(database, "customers") == 0


def test_a_new_api_key_is_shown_again_and_lies_nowhere_in_clear(
    post: Post, database: Database, customer_id: UUID, admin_token: str
) -> None:
    body = {"customer": ids.public(ids.CUSTOMER, customer_id), "name": "key"}
    first = run(post(admin_token, "/v1/api-keys", "key", json=body))
    assert_same(first, run(post(admin_token, "/v1/api-keys", "key", json=body)))
    assert count(database, "api_keys") == 2
    secret = first.json()["token"].split("_", 2)[2]
    with database.system() as session:
        for table in ("api_keys", "idempotency_records"):
            # Also where bytes are shown in hexadecimal.
            rows = " ".join(session.scalars(text(f"SELECT t::text FROM {table} t")))
            assert secret not in rows
            assert secret.encode().hex() not in rows
        customers.authenticate(session, first.json()["token"])


# --- bodies that come slowly -----------------------------------------------------------------------------------


def digest_of(data: bytes) -> dict[str, str]:
    return {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


class Slow:
    """A body of two pieces; the second comes when it is told to."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.began, self.go_on = asyncio.Event(), asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        self.began.set()
        yield self._data[:10]
        await self.go_on.wait()
        yield self._data[10:]


def test_the_twin_of_an_upload_is_told_so_before_it_sends_anything_and_answered_afterwards(
    post: Post, database: Database, token: str
) -> None:
    archive = archives.flowers()
    path, headers = "/v1/datasets?name=birds", {"Content-Type": ZIP}

    async def ask() -> tuple[httpx.Response, ...]:
        slow, twin, late = Slow(archive), Slow(archive), Slow(archive)
        sending = asyncio.create_task(post(token, path, "key", content=slow.chunks(), headers=headers))
        await slow.began.wait()
        refused = await post(token, path, "key", content=twin.chunks(), headers=headers)
        assert not twin.began.is_set()
        slow.go_on.set()
        first = await sending
        digest = {**headers, **digest_of(archive)}
        announced = await post(token, path, "key", content=late.chunks(), headers=digest)
        assert not late.began.is_set()
        return first, refused, announced, await post(token, path, "key", content=archive, headers=headers)

    first, refused, announced, read = run(ask())
    assert first.headers["Location"] == f"/v1/datasets/{first.json()['id']}"
    assert_refused(refused, 409, "idempotency_in_progress")
    assert_same(first, announced)
    assert_same(first, read)
    for other in (archive + b" ", b""):
        for more in ({}, digest_of(other)):
            reply = run(post(token, path, "key", content=other, headers={**headers, **more}))
            assert_refused(reply, 422, "idempotency_key_reused")
    tables = ("datasets", "dataset_versions", "jobs", "uploads", "idempotency_records")
    assert [count(database, table) for table in tables] == [1] * len(tables)


def test_an_upload_that_failed_frees_its_key(post: Post, database: Database, token: str) -> None:
    archive = archives.flowers()
    wrong = {"Content-Type": ZIP, **digest_of(b"something else")}
    reply = run(post(token, "/v1/datasets?name=birds", "key", content=archive, headers=wrong))
    assert_refused(reply, 422, "checksum_mismatch")
    reply = run(post(token, "/v1/datasets?name=birds", "key", content=archive, headers={"Content-Type": ZIP}))
    assert reply.status_code == 201, reply.text
    assert (count(database, "datasets"), count(database, "uploads")) == (1, 1)


def test_an_upload_in_parts_is_completed_once_and_answered_201_again(
    post: Post, app: FastAPI, token: str, database: Database
) -> None:
    archive = archives.flowers()
    url = run(post(token, "/v1/uploads", "begin", json=UPLOAD)).headers["Location"]

    async def put() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {token}", **digest_of(archive)}
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as http:
            return await http.put(f"{url}/parts/1", content=archive)

    assert run(put()).status_code == 200
    first = run(post(token, f"{url}/complete", "complete"))
    assert first.status_code == 201, first.text
    assert_same(first, run(post(token, f"{url}/complete", "complete")))
    assert run(post(token, f"{url}/complete", None)).status_code == 200
    assert count(database, "datasets") == 1
