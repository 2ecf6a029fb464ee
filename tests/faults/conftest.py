"""A customer of the running service, and a dataset of his to tune on."""

from __future__ import annotations

from typing import Any

import pytest

from tests import archives
from tests.service import Customer, Service


@pytest.fixture
def customer(service: Service) -> Customer:
    return service.new_customer()


@pytest.fixture
def dataset(customer: Customer) -> dict[str, Any]:
    return customer.upload(archives.flowers())
