"""Object storage without room: 507, nothing half there, and the same request succeeds when there is room again."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from tests import archives
from tests.disks import SmallDisk

ARCHIVE = archives.flowers()
DIGEST = {"Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(ARCHIVE).digest()).decode()}:"}
TABLES = ("datasets", "uploads", "upload_parts", "jobs", "idempotency_records")


@pytest.fixture
def settings(settings: Settings, small_disk: SmallDisk) -> Settings:
    return settings.model_copy(update={"objects_url": f"file://{small_disk.path}/objects"})


def count_rows(database: Database) -> dict[str, int]:
    with database.system() as session:
        return {table: session.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in TABLES}


def a_dataset(http: TestClient) -> Any:
    headers = {"Content-Type": "application/zip", "Idempotency-Key": "dataset"}
    return http.post("/v1/datasets?name=flowers", content=ARCHIVE, headers=headers)


@pytest.fixture
def part(http: TestClient) -> Callable[[TestClient], Any]:
    upload = http.post("/v1/uploads", json={"name": "flowers", "media_type": "application/zip"})
    assert upload.status_code == 201, upload.text
    url = f"{upload.headers['Location']}/parts/1"
    return lambda http: http.put(url, content=ARCHIVE, headers=DIGEST)


@pytest.fixture(params=["a dataset", "a part"])
def send(request: pytest.FixtureRequest, part: Any) -> Callable[[TestClient], Any]:
    ways: dict[str, Callable[[TestClient], Any]] = {"a dataset": a_dataset, "a part": part}
    return ways[request.param]


def test_what_object_storage_has_no_room_for_is_507_and_leaves_nothing(
    settings: Settings, database: Database, http: TestClient, small_disk: SmallDisk, send: Any
) -> None:
    before = count_rows(database)
    small_disk.fill()
    refused = send(http)
    assert (refused.status_code, refused.json()["code"]) == (507, "insufficient_storage")
    assert count_rows(database) == before
    assert Objects(settings.objects_url).keys("") == []
    small_disk.make_room()
    assert send(http).status_code in (200, 201)
