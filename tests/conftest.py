"""Real PostgreSQL, real Redis, and for tests marked slow the whole service: all started here, in temporary folders.

Fixtures by weight:
    embedded   (session)  PostgreSQL and Redis, a migrated template database
    settings   (test)     an empty database that nobody else uses; nothing else of the service runs
    database   (test)     connections to it
    service    (session)  `bpt up` with short leases; each test uses a customer of its own
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url

from bpt_store import customers, roles
from bpt_store.db import Database
from bpt_store.embedded import EmbeddedServices
from bpt_store.settings import Settings
from migrations.config import alembic_config
from tests import disks
from tests.databases import TEMPLATE, Databases
from tests.service import Service
from tests.sharing import Sharing

PASSWORD = "only-in-tests"
LONGEST = {"faults": 0, "e2e": 1, "benchmarks": 2}

gc.disable()  # until every test is imported, with torch and all: it would look through millions of objects for nothing


def pytest_collection_finish() -> None:
    """What is there by now stays to the end, and is not looked through again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Libraries complain of what is left when the process ends."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the service is slow; what takes longest comes first, so that none of it is left over at the end."""
    for item in items:
        if "service" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.get(item.path.parent.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    return Sharing(config, log)


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory that goes away whatever happens in it, with a path that is short."""
    directory = Path(tempfile.mkdtemp(prefix="bpt-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded(short_directory: Path) -> Iterator[EmbeddedServices]:
    with EmbeddedServices(short_directory / "embedded", durable=False) as services:
        template = settings_for(services, TEMPLATE, short_directory / "objects")
        roles.prepare(template)
        assert template.owner_database_url is not None
        command.upgrade(alembic_config(template.owner_database_url.get_secret_value()), "head")
        yield services


def settings_for(services: EmbeddedServices, name: str, objects: Path) -> Settings:
    superuser = make_url(services.superuser_url)

    def url(role: str) -> SecretStr:
        mine = superuser.set(username=role, password=PASSWORD, database=name)
        return SecretStr(mine.render_as_string(hide_password=False))

    return Settings(
        database_url=url("bpt_customer"),
        system_database_url=url("bpt_system"),
        owner_database_url=url("bpt_owner"),
        superuser_database_url=SecretStr(services.superuser_url),
        redis_url=SecretStr(services.redis_url),
        objects_url=f"file://{objects}",
        work_directory=objects.parent / "work",
    )


@pytest.fixture(scope="session")
def databases(embedded: EmbeddedServices) -> Iterator[Databases]:
    databases = Databases(embedded)
    yield databases
    databases.close()


@pytest.fixture
def settings(embedded: EmbeddedServices, databases: Databases, tmp_path: Path) -> Iterator[Settings]:
    name = databases.take()
    yield settings_for(embedded, name, tmp_path / "objects")
    databases.give_back(name)


@pytest.fixture
def database(settings: Settings, databases: Databases) -> Database:
    return databases.connected(settings)


@pytest.fixture
def owner(settings: Settings) -> Iterator[Engine]:
    """The tables' owner: for looking at the schema, never for what a customer or the system does."""
    assert settings.owner_database_url is not None
    engine = create_engine(settings.owner_database_url.get_secret_value())
    yield engine
    engine.dispose()


@pytest.fixture
def customer_id(database: Database) -> UUID:
    with database.system() as session:
        return customers.create(session, "acme").id


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[disks.SmallDisk]:
    with disks.mounted(tmp_path / "small") as disk:
        yield disk


@pytest.fixture(scope="session")
def service(short_directory: Path) -> Iterator[Service]:
    with Service.start(short_directory / "service", dict(os.environ)) as running:
        yield running
