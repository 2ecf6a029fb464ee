"""The API in the test's own process, asked by a customer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from bpt_store import customers
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.settings import Role, Settings


@pytest.fixture
def open_client(settings: Settings, database: Database, customer_id: UUID) -> Iterator[Callable[..., TestClient]]:
    """open_client(scopes): a client with a key of the customer."""
    app = create_app(settings.model_copy(update={"role": Role.API}))

    def make(scopes: Any = CUSTOMER_SCOPES) -> TestClient:
        with database.system() as session:
            _, token = customers.create_key(session, customer_id, "tests", scopes)
        return TestClient(app, headers={"Authorization": f"Bearer {token}"})

    with TestClient(app):
        yield make


@pytest.fixture
def http(open_client: Callable[..., TestClient]) -> TestClient:
    return open_client()
