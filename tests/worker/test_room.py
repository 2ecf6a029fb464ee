"""A disk that is full: a clear code, nothing half done, and a retry that succeeds when there is room again."""

from __future__ import annotations

from uuid import UUID

import pytest

from bpt_store import jobs
from bpt_store.db import Database
from bpt_store.models import JobState
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from tests.disks import SmallDisk
from tests.worker.labour import ask, job_of, labour, reasons

CHECKPOINT = """
import os, pathlib
(child.directory / "checkpoint").write_bytes(os.urandom(300_000))
child.event("epoch", {"epoch": 1}, checkpoint="checkpoint")
"""


@pytest.mark.parametrize("full", ["work", "objects"])
def test_a_job_on_a_full_disk_fails_with_a_code_and_succeeds_when_there_is_room(
    settings: Settings, database: Database, customer_id: UUID, small_disk: SmallDisk, full: str
) -> None:
    place = (
        {"work_directory": small_disk.path / "work"}
        if full == "work"
        else {"objects_url": f"file://{small_disk.path}/objects"}
    )
    here = settings.model_copy(update=place)
    small_disk.fill()
    job = ask(database, customer_id, CHECKPOINT)
    assert labour(here) == 3
    failed = job_of(database, customer_id, job)
    assert failed.error is not None
    assert (failed.state, failed.error["code"]) == (JobState.FAILED, "insufficient_storage")
    assert (failed.checkpoint, failed.progress) == (None, None)
    assert all(each.startswith("insufficient_storage: ") for each in reasons(database, customer_id, job))
    assert Objects(here.objects_url).keys("") == []
    assert [*here.work_directory.glob("*")] == []
    small_disk.make_room()
    with database.customer(customer_id) as session:
        jobs.retry(session, job)
    assert labour(here) == 1
    assert job_of(database, customer_id, job).state is JobState.SUCCEEDED


def test_a_process_that_finds_no_room_says_so_and_any_other_error_is_a_crash(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    full, other = (
        ask(database, customer_id, f"if attempt == 1: open({path!r}, 'wb', buffering=0).write(b'x')")
        for path in ("/dev/full", "/nowhere/at/all")
    )
    labour(settings)
    assert reasons(database, customer_id, full) == [
        "insufficient_storage: there is no room left for the files of the job"
    ]
    assert reasons(database, customer_id, other) == ["labour_crashed: the process ended with status 1"]
