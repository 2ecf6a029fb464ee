"""A deaf worker ends; one that is busy, hears, or has nothing to hear goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import psutil
import pytest
import redis
from sqlalchemy import create_engine, make_url, text

from bpt_store import jobs
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.settings import Settings
from tests.service import eventually
from worker.watchdog import Ears, wait_until_deaf

DEAF = 0.4  # seconds


@pytest.fixture
def queued(database: Database, customer_id: UUID) -> Callable[[JobKind], None]:
    def make(kind: JobKind) -> None:
        with database.customer(customer_id) as session:
            jobs.create(session, customer_id, kind, dataset_id=uuid4(), dataset_version=1, payload={})

    return make


@pytest.fixture
def deaf(settings: Settings) -> Iterator[Callable[..., threading.Event]]:
    """Begins to watch -> what is set when the worker is found to be deaf."""
    over, threads, databases = threading.Event(), [], []

    def begin(ears: Ears, settings: Settings = settings) -> threading.Event:
        found = threading.Event()
        databases.append(Database(settings))

        def look() -> None:
            if wait_until_deaf(ears, databases[-1], [JobKind.TUNE], DEAF, over):
                found.set()

        threads.append(threading.Thread(target=look))
        threads[-1].start()
        return found

    yield begin
    over.set()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()


def test_a_worker_that_hears_nothing_while_work_waits_ends(
    deaf: Callable[..., threading.Event], queued: Callable[[JobKind], None]
) -> None:
    queued(JobKind.TUNE)
    assert deaf(Ears()).wait(10)


def test_a_worker_that_hears_or_is_busy_or_has_nothing_to_hear_goes_on(
    deaf: Callable[..., threading.Event], queued: Callable[[JobKind], None]
) -> None:
    queued(JobKind.INGEST)  # is not its business
    ears = Ears()
    ended = deaf(ears)
    assert not ended.wait(3 * DEAF)
    with ears.hearing():
        queued(JobKind.TUNE)
        assert not ended.wait(3 * DEAF)
    for _ in range(6):
        with ears.hearing():
            assert not ended.wait(DEAF / 2)
    assert ended.wait(10)


def test_a_database_that_is_away_proves_nothing(
    settings: Settings, deaf: Callable[..., threading.Event], queued: Callable[[JobKind], None]
) -> None:
    queued(JobKind.TUNE)
    nowhere = settings.model_copy(
        update={"system_database_url": type(settings.system_database_url)("postgresql+psycopg://nobody@127.0.0.1:1/x")}
    )
    assert not deaf(Ears(), nowhere).wait(3 * DEAF)


def test_a_deaf_worker_leaves_no_process(settings: Settings, queued: Callable[[JobKind], None]) -> None:
    """A real one, whose broker has no sweep that rings."""
    with redis.Redis.from_url(settings.redis_url.get_secret_value().replace("redis+socket", "unix")) as client:
        client.flushall()  # other tests have rung
    queued(JobKind.TUNE)
    environment = {
        **os.environ,
        **{
            f"BPT_{name.upper()}": getattr(settings, name).get_secret_value()
            for name in ("database_url", "system_database_url", "redis_url")
        },
        "BPT_OBJECTS_URL": settings.objects_url,
        "BPT_DEAF_SECONDS": "1",
    }
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-Q", "tune"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker:
        family = eventually(lambda: psutil.Process(worker.pid).children() or None, what="the child of the worker")
        assert worker.wait(60) == 1
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert worker.stdout is not None
        assert b"deaf" in worker.stdout.read()
    engine = create_engine(make_url(settings.system_database_url.get_secret_value()))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT attempt FROM jobs")) == 0
    engine.dispose()
