"""What schemathesis makes up from the OpenAPI; `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from schemathesis.python.asgi import shutdown_lifespans

from api.app import create_app
from bpt_store import customers
from bpt_store.customers import Scope
from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from tests.estate import settle
from tests.fuzz import Found, fuzz

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def asked(app: FastAPI, token: str, *, administers: bool) -> Found:
    """Of each operation what its schema has at its edges and beyond, with what other replies have named."""
    return fuzz(app, token, administers=administers, phases=("coverage",), seed=1, cases=1, seconds=500)


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    yield create_app(settings.model_copy(update={"log_level": "CRITICAL"}))
    shutdown_lifespans()


def test_whatever_a_customer_asks_is_answered_as_the_openapi_says(
    app: FastAPI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    owner = settle(database, Objects(settings.objects_url), tmp_path, "owner")
    found = asked(app, owner.token, administers=False)
    assert found.wrong == {}
    assert {status for _, status in found.answers} >= {200, 201, 204, 401, 404, 405, 409, 422}
    assert found.answers.total() > 2000


def test_whatever_an_administrator_asks_is_answered_as_the_openapi_says(app: FastAPI, database: Database) -> None:
    with database.system() as session:
        customers.create(session, "acme")
        _, token = customers.create_key(session, None, "administrator", [Scope.ADMIN])
    found = asked(app, token, administers=True)
    assert found.wrong == {}
    assert {status for _, status in found.answers} >= {200, 201, 401, 404, 405, 409, 422}
