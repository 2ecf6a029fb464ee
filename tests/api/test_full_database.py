"""A database whose disk is full: 507, no half a dataset, and all goes on when there is room again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, make_url, text

from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from tests import archives
from tests.disks import SmallDisk

ARCHIVE = archives.flowers()
PAGE_BYTES = 8192


@pytest.fixture
def table_of_datasets(settings: Settings, small_disk: SmallDisk) -> Iterator[SmallDisk]:
    """The disk that it lies on."""
    place = small_disk.path / "tablespace"
    place.mkdir()
    if os.geteuid() == 0:
        shutil.chown(place, "nobody")  # whom PostgreSQL runs as
    assert settings.superuser_database_url is not None
    superuser = make_url(settings.superuser_database_url.get_secret_value())
    name = make_url(settings.database_url.get_secret_value()).database
    engine = create_engine(superuser.set(database=name), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE TABLESPACE small LOCATION '{place}'"))
        connection.execute(text("ALTER TABLE datasets SET TABLESPACE small"))
        yield small_disk
        connection.execute(text("ALTER TABLE datasets SET TABLESPACE pg_default"))
        connection.execute(text("DROP TABLESPACE small"))
    engine.dispose()


def test_what_the_database_has_no_room_for_is_507_and_leaves_no_dataset(
    settings: Settings, database: Database, http: TestClient, table_of_datasets: SmallDisk
) -> None:
    def upload() -> int:
        headers = {"Content-Type": "application/zip"}
        reply = http.post("/v1/datasets", params={"name": "x" * 200}, content=ARCHIVE, headers=headers)
        assert reply.status_code == 201 or reply.json()["code"] == "insufficient_storage", reply.text
        return reply.status_code

    table_of_datasets.fill()
    taken = 0  # the table's last page has room left
    while (status := upload()) == 201 and taken < PAGE_BYTES // 200:
        taken += 1
    assert status == 507
    assert len(http.get("/v1/datasets?limit=100").json()["data"]) == taken
    with database.system() as session:
        doomed = tuple(session.scalars(text("SELECT key FROM doomed_objects")))
    kept = [key for key in Objects(settings.objects_url).keys("") if not key.startswith(doomed)]
    assert len(kept) == taken
    table_of_datasets.make_room()
    assert upload() == 201
