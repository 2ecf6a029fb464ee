"""Usage over HTTP: a customer's own, everybody's for administrators, as JSON and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from api.routes import usage as route
from bpt_store import customers, ids
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.models import UsageDay

PATH = "/v1/usage"
TABLE = {"Accept": "text/csv"}


@pytest.fixture
def other_id(database: Database, customer_id: UUID) -> UUID:
    """Another customer; both have used something on five days."""
    with database.system() as session:
        other = customers.create(session, "other").id
        for owner, images in ((customer_id, 10), (other, 20)):
            for day in range(1, 6):
                given = {"online_images": images + day, "batch_images": 0, "tuning_seconds": 1 / 3, "batch_seconds": 0}
                session.add(UsageDay(customer_id=owner, day=date(2026, 11, day), **given))
        return other


@pytest.fixture
def admin(open_client: Callable[..., TestClient], database: Database) -> TestClient:
    with database.system() as session:
        _, token = customers.create_key(session, None, "administrator", [Scope.ADMIN])
    client = open_client()
    client.headers["Authorization"] = f"Bearer {token}"
    return client


def cus(customer_id: UUID) -> str:
    return ids.public(ids.CUSTOMER, customer_id)


def images(client: TestClient, **params: Any) -> list[int]:
    """Of all pages."""
    found: list[int] = []
    while True:
        reply = client.get(PATH, params=params)
        assert reply.status_code == 200, reply.text
        page = reply.json()
        found += [day["online_images"] for day in page["data"]]
        if not page["has_more"]:
            return found
        params["after"] = page["next_cursor"]


def test_a_customer_reads_his_own_days(http: TestClient, customer_id: UUID, other_id: UUID) -> None:
    assert http.get(PATH).json() == {
        "data": [
            {
                "customer": cus(customer_id),
                "day": f"2026-11-0{day}",
                "online_images": 10 + day,
                "batch_images": 0,
                "tuning_seconds": 0.333,
                "batch_seconds": 0.0,
                "stored_bytes": None,
            }
            for day in (5, 4, 3, 2, 1)
        ],
        "has_more": False,
        "next_cursor": None,
    }
    assert images(http, limit=2) == images(http, customer=cus(customer_id)) == [15, 14, 13, 12, 11]
    assert images(http, **{"from": "2026-11-02", "to": "2026-11-03"}) == [13, 12]
    assert http.get(PATH, params={"customer": cus(other_id)}).status_code == 404


def test_an_administrator_reads_everybodys_or_one_customers(admin: TestClient, other_id: UUID) -> None:
    assert sorted(images(admin, limit=3)) == [*range(11, 16), *range(21, 26)]
    assert images(admin, customer=cus(other_id), to="2026-11-02") == [22, 21]


def test_the_table_has_all_rows_however_many_and_the_same_numbers(
    http: TestClient, admin: TestClient, other_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "_ROWS_AT_ONCE", 2)
    for client, count in ((http, 5), (admin, 10)):
        reply = client.get(PATH, headers=TABLE, params={"limit": 1})
        assert reply.headers["Content-Type"].startswith("text/csv")
        rows = list(csv.DictReader(reply.text.splitlines()))
        data = client.get(PATH, params={"limit": 100}).json()["data"]
        assert len(rows) == count
        assert rows == [{name: "" if value is None else str(value) for name, value in day.items()} for day in data]
    nothing = http.get(PATH, headers=TABLE, params={"to": "2025-01-01"}).text
    names = "customer,day,online_images,batch_images,tuning_seconds,batch_seconds,stored_bytes"
    assert nothing.splitlines() == [names]


@pytest.mark.parametrize(
    ("params", "status"),
    [
        *(({"from": "2026-11-03", "to": "2026-11-02"}, 422), ({"from": "yesterday"}, 422), ({"to": "2026-02-30"}, 422)),
        *(({"after": "nonsense"}, 404), ({"after": "2026-11-03.cus_1"}, 404), ({"customer": "nobody"}, 404)),
    ],
)
@pytest.mark.parametrize("headers", [{}, TABLE])
def test_what_cannot_be_is_refused(
    http: TestClient, params: dict[str, str], status: int, headers: dict[str, str]
) -> None:
    reply = http.get(PATH, params=params, headers=headers)
    assert (reply.status_code, reply.headers["Content-Type"]) == (status, "application/problem+json")


def test_it_takes_its_own_scope(open_client: Callable[..., TestClient]) -> None:
    others = [scope for scope in customers.CUSTOMER_SCOPES if scope is not Scope.USAGE_READ]
    assert open_client(others).get(PATH).status_code == 403
    assert open_client([Scope.USAGE_READ]).get(PATH).status_code == 200
