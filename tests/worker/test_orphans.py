"""Objects that no row refers to: found when they are old, and never one that is or may yet be referred to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from bpt_store import datasets, jobs
from bpt_store.backup_files import LOCK
from bpt_store.command import connect
from bpt_store.datasets import Contents
from bpt_store.db import Database
from bpt_store.jobs import Fence
from bpt_store.models import JobKind
from bpt_store.objects import Objects
from bpt_store.quotas import Limits
from bpt_store.settings import Settings
from worker.context import Worker
from worker.orphans import _delete, delete_orphans

PLENTY = Limits(datasets=100, images=1_000_000, stored_bytes=1 << 40)
SHARD = b"a shard, named by its content"


@pytest.fixture
def open_worker(settings: Settings) -> Iterator[Callable[..., Worker]]:
    """A sweep for which everything is old enough, unless it is told otherwise."""
    workers: list[Worker] = []

    def open_worker(**given: float) -> Worker:
        ages = {"orphan_hours": 0, "upload_expiry_seconds": 1e-6, **given}
        workers.append(Worker.create(settings.model_copy(update=ages)))
        return workers[-1]

    yield open_worker
    for worker in workers:
        worker.database.close()


@pytest.fixture
def put(settings: Settings) -> Callable[..., str]:
    """An object -> its key."""
    objects, directory = Objects(settings.objects_url), Path(settings.objects_url.removeprefix("file://"))

    def put(key: str, *, hours: float = 0, content: bytes = b"x") -> str:
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        then = time.time() - hours * 3600
        os.utime(path, (then, then))
        assert key in objects.keys("")
        return key

    return put


@pytest.fixture
def left(settings: Settings) -> Callable[[], set[str]]:
    return lambda: {*Objects(settings.objects_url).keys("")}


def begin_version(database: Database, customer_id: UUID, dataset_id: UUID | None = None) -> tuple[UUID, Fence]:
    """A version in the making, of a new dataset or the next one of this -> the dataset, and the attempt."""
    with database.customer(customer_id) as session:
        if dataset_id is None:
            dataset_id = datasets.create(session, customer_id, "d", {}, {"parts": []})[0].id
        else:
            datasets.add_version(session, dataset_id, changes={"remove": ["itm_1"]})
    with database.system() as session:
        job = jobs.claim(session, JobKind.INGEST, "w", 30)
    assert job is not None
    return dataset_id, jobs.fence_of(job)


def finish_version(database: Database, dataset_id: UUID, number: int, fence: Fence, keys: list[str]) -> None:
    shards = [{"key": key, "sha256": "0", "bytes": 1} for key in keys]
    report = {"images": {"packed": 5}, "splits": {"train": 5}, "counts": {}, "verdict": "good to tune"}
    contents = Contents("single-label", ["a", "b"], {"shards": shards}, report)
    with database.customer(fence.customer_id) as session:
        jobs.succeed(session, fence, {})
        datasets.become_ready(session, dataset_id, number, contents, PLENTY)


def test_an_orphan_is_deleted_when_it_is_old_and_never_before_uploads_expire(
    open_worker: Callable[..., Worker], put: Callable[..., str], left: Callable[[], set[str]]
) -> None:
    old, young = (put(f"jobs/{uuid4().hex}/1/checkpoint-{age}", hours=age) for age in (25, 23))
    assert delete_orphans(open_worker(orphan_hours=24, upload_expiry_seconds=26 * 3600)) == 0
    assert delete_orphans(open_worker(orphan_hours=24)) == 1
    assert left() == {young} != {old}


def test_a_round_deletes_no_more_than_it_may_and_the_next_one_goes_on(
    open_worker: Callable[..., Worker],
    put: Callable[..., str],
    left: Callable[[], set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.orphans.MOST_PER_ROUND", 5)
    monkeypatch.setattr("worker.orphans.AT_A_TIME", 2)
    for number in range(7):
        put(f"uploads/{uuid4().hex}/{number}")
    worker = open_worker()
    assert [delete_orphans(worker) for _ in range(3)] == [5, 2, 0]
    assert left() == set()


def test_what_a_version_in_the_making_may_refer_to_stays_until_it_has_failed(
    database: Database,
    customer_id: UUID,
    open_worker: Callable[..., Worker],
    put: Callable[..., str],
    left: Callable[[], set[str]],
) -> None:
    dataset_id, first = begin_version(database, customer_id)
    kept, worker = put(f"{datasets.prefix(dataset_id)}kept"), open_worker()
    assert delete_orphans(worker) == 0
    finish_version(database, dataset_id, 1, first, [kept])
    _, second = begin_version(database, customer_id, dataset_id)
    orphan = put(f"{datasets.prefix(dataset_id)}orphan")
    assert delete_orphans(worker) == 0
    assert left() == {kept, orphan}
    with database.customer(customer_id) as session:
        jobs.fail(session, second, "invalid_archive", "no images")
    assert delete_orphans(worker) == 1
    assert left() == {kept}


def test_no_version_is_begun_while_objects_of_its_dataset_are_deleted(
    database: Database, customer_id: UUID, put: Callable[..., str]
) -> None:
    dataset_id, first = begin_version(database, customer_id)
    finish_version(database, dataset_id, 1, first, [put(f"{datasets.prefix(dataset_id)}kept")])
    with database.customer(customer_id) as session:
        datasets.add_version(session, dataset_id, changes={"remove": ["itm_1"]})
        with database.system() as sweep:  # not committed, and yet it is seen
            assert datasets.in_the_making(sweep, {dataset_id}) == {dataset_id}
        session.rollback()
    with database.system() as sweep:
        assert datasets.in_the_making(sweep, {dataset_id, uuid4()}) == set()
        with database.system() as other:
            assert datasets.in_the_making(other, {dataset_id}) == {dataset_id}


def test_what_was_referred_to_since_it_was_looked_at_stays(
    settings: Settings,
    database: Database,
    customer_id: UUID,
    open_worker: Callable[..., Worker],
    put: Callable[..., str],
    left: Callable[[], set[str]],
) -> None:
    dataset_id, first = begin_version(database, customer_id)
    key = put(f"{datasets.prefix(dataset_id)}shard")
    finish_version(database, dataset_id, 1, first, [key])
    with connect(settings.system_database_url) as connection:
        assert _delete(open_worker(), connection, [key]) == 0
    assert left() == {key}


KILLED = """
import sys
from pathlib import Path
from uuid import UUID
from bpt_store import datasets, jobs
from bpt_store.jobs import Fence
from bpt_store.settings import Settings
from worker.context import Worker
worker = Worker.create(Settings())
fence = Fence(UUID(sys.argv[1]), UUID(sys.argv[2]), int(sys.argv[3]))
stored = worker.objects.put_content(datasets.prefix(UUID(sys.argv[4])), Path(sys.argv[5]))
with worker.database.customer(fence.customer_id) as session:
    jobs.succeed(session, fence, {})
    print(stored["key"], flush=True)
    sys.stdin.read()
"""


def test_what_a_process_stored_that_was_killed_before_it_committed_is_swept_and_the_next_attempt_succeeds(
    settings: Settings,
    database: Database,
    customer_id: UUID,
    tmp_path: Path,
    open_worker: Callable[..., Worker],
    left: Callable[[], set[str]],
) -> None:
    dataset_id, first = begin_version(database, customer_id)
    finish_version(database, dataset_id, 1, first, [])
    _, fence = begin_version(database, customer_id, dataset_id)
    (tmp_path / "shard").write_bytes(SHARD)
    arguments = (fence.customer_id, fence.job_id, fence.attempt, dataset_id, tmp_path / "shard")
    secrets = ("database_url", "system_database_url", "redis_url")
    urls = {f"BPT_{name.upper()}": getattr(settings, name).get_secret_value() for name in secrets}
    environment = {**os.environ, **urls, "BPT_OBJECTS_URL": settings.objects_url}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        process.kill()
    worker = open_worker()
    assert delete_orphans(worker) == 0  # the job is not over: another attempt may store the same
    with database.customer(customer_id) as session:
        jobs.crash(session, fence, "ingest_crashed", "killed", max_failures=1, backoff_seconds=0)
    assert (left(), delete_orphans(worker), left()) == ({key}, 1, set())
    _, again = begin_version(database, customer_id, dataset_id)
    assert worker.objects.put_content(datasets.prefix(dataset_id), tmp_path / "shard")["key"] == key
    finish_version(database, dataset_id, 3, again, [key])
    assert (delete_orphans(worker), left()) == (0, {key})


@pytest.mark.parametrize("lock", [LOCK, "bpt orphans"])
def test_nothing_is_deleted_while_a_backup_copies_or_another_one_is_at_it(
    database: Database,
    open_worker: Callable[..., Worker],
    put: Callable[..., str],
    left: Callable[[], set[str]],
    lock: str,
) -> None:
    orphan, worker = put(f"jobs/{uuid4().hex}/1/checkpoint"), open_worker()
    with database.system() as session:
        session.scalar(select(func.pg_advisory_xact_lock_shared(func.hashtext(lock))))
        assert (delete_orphans(worker), left()) == (0, {orphan})
    assert (delete_orphans(worker), left()) == (1, set())
