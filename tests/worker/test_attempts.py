"""An attempt that is killed, replaced or stopped: what is written of it, and that its process is gone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import text

from bpt_store import jobs
from bpt_store.db import Database
from bpt_store.models import JobState
from bpt_store.settings import Settings
from tests.service import eventually, has_ended
from tests.worker.labour import Labour, ask, job_of, labour, reasons
from worker.starter import Starter


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "pid"


def sleeping(note: Path) -> str:
    """A first attempt that says who it is and then does nothing; a second one that is done at once."""
    return f"""
import os, pathlib, time
if attempt == 1:
    pathlib.Path({str(note)!r}).write_text(f"{{os.getpid()}} ")
    time.sleep(60)
"""


def process_of(note: Path) -> psutil.Process:
    said = eventually(lambda: note.exists() and note.read_text().endswith(" ") and note.read_text(), what="a process")
    return psutil.Process(int(str(said)))


def test_a_process_that_is_killed_each_time_fails_its_job_with_what_it_said_last(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    do = "import os; print('attempt', attempt, flush=True); os.kill(os.getpid(), 9)"
    job = ask(database, customer_id, do)
    assert labour(settings) == 3
    failed = job_of(database, customer_id, job)
    assert failed.error == {
        **{"code": "labour_crashed", "detail": "the process ended with status -9, for the 3. time"},
        "log": ["attempt 3"],
    }
    assert reasons(database, customer_id, job) == ["labour_crashed: the process ended with status -9"] * 2


def test_an_attempt_that_was_replaced_ends_its_process_and_writes_nothing(
    settings: Settings, database: Database, customer_id: UUID, note: Path
) -> None:
    job = ask(database, customer_id, sleeping(note))
    worker = threading.Thread(target=labour, args=(settings,), kwargs={"heartbeat_seconds": 0.2})
    worker.start()
    process = process_of(note)
    with database.system() as session:  # as if it had been frozen, and the sweep had come
        session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 second'"))
        assert jobs.requeue_expired(session, max_failures=3, backoff_seconds=0) == 1
    worker.join(20)
    assert not worker.is_alive()
    assert has_ended(process)
    ended = job_of(database, customer_id, job)
    assert (ended.state, ended.attempt, ended.failures) == (JobState.SUCCEEDED, 2, 1)
    assert reasons(database, customer_id, job) == ["worker_lost: attempt 1 lost its lease"]


def test_a_worker_that_is_to_stop_gives_its_job_back_and_counts_no_failure(
    settings: Settings, database: Database, customer_id: UUID, note: Path
) -> None:
    job, stopping = ask(database, customer_id, sleeping(note)), threading.Event()
    worker = threading.Thread(target=labour, args=(settings, stopping.is_set))
    worker.start()
    process = process_of(note)
    stopping.set()
    worker.join(20)
    assert has_ended(process)
    back = job_of(database, customer_id, job)
    assert (back.state, back.attempt, back.failures) == (JobState.QUEUED, 1, 0)
    assert labour(settings) == 1
    assert job_of(database, customer_id, job).state is JobState.SUCCEEDED


def test_a_worker_that_is_to_stop_while_it_fetches_starts_no_process(
    settings: Settings, database: Database, customer_id: UUID, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, stopping, prepare = ask(database, customer_id, sleeping(note)), threading.Event(), Labour.prepare

    def stopped_meanwhile(*arguments: Any) -> dict[str, Any]:
        stopping.set()
        return prepare(*arguments)

    monkeypatch.setattr(Labour, "prepare", stopped_meanwhile)
    started = []
    monkeypatch.setattr(Starter, "start", lambda *_, **__: started.append(1))
    assert labour(settings, stopping.is_set) == 1
    back = job_of(database, customer_id, job)
    assert (back.state, back.failures, started) == (JobState.QUEUED, 0, [])
