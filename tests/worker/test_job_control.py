"""What an attempt is told of a job's budget, and what is kept of what it said last."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from bpt_store import jobs, resuming
from bpt_store.db import Database
from bpt_store.models import Job, JobKind
from bpt_store.objects import Objects
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings
from worker.context import Worker
from worker.refused import Refused
from worker.supervisor import _log_tail
from worker.sweep import sweep_once
from worker.tune import _seconds_left


def job(worked_seconds: float, checkpoint: dict[str, Any] | None, payload: dict[str, Any]) -> Job:
    return Job(worked_seconds=worked_seconds, checkpoint=checkpoint, payload=payload)


def test_an_attempt_gets_what_earlier_ones_left_of_the_budget() -> None:
    two_minutes = {"budget": {"max_minutes": 2}}
    assert _seconds_left(job(0, None, two_minutes)) == 120
    assert _seconds_left(job(90, None, two_minutes)) == 30
    assert _seconds_left(job(1e9, None, {})) is None
    assert _seconds_left(job(1e9, None, {"budget": None})) is None


def test_a_budget_that_is_used_up_is_only_refused_where_no_epoch_was_done() -> None:
    two_minutes = {"budget": {"max_minutes": 2}}
    left = _seconds_left(job(150, {"key": "k"}, two_minutes))
    assert left is not None
    assert left <= 0
    with pytest.raises(Refused, match="2 minutes were over") as caught:
        _seconds_left(job(150, None, two_minutes))
    assert caught.value.code == "budget_exhausted"


def test_the_last_lines_of_a_log_are_few_short_and_plain(tmp_path: Path) -> None:
    assert _log_tail(tmp_path) == []
    (tmp_path / "log").write_bytes(b"")
    assert _log_tail(tmp_path) == []
    (tmp_path / "log").write_text("\n".join(f"line {number}" for number in range(100)) + "\n\n")
    assert _log_tail(tmp_path) == [f"line {number}" for number in range(80, 100)]
    (tmp_path / "log").write_bytes(b"\n".join([b"x" * 700] * 9))
    tail = _log_tail(tmp_path)
    assert sum(map(len, tail)) <= 2000
    assert tail[-1] == "x" * 700
    (tmp_path / "log").write_bytes("ä".encode() * 100_000)
    assert [len(line) for line in _log_tail(tmp_path)] == [2000]


def test_whatever_a_process_wrote_can_be_kept(database: Database, customer_id: UUID, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a\x00b\x1b[31m\xff\xfe\r\nTraceback\n  File\n\n")
    with database.customer(customer_id) as session:
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
    with database.system() as session:
        claimed = jobs.claim(session, JobKind.TUNE, "w", 30.0)
    assert claimed is not None
    fence = jobs.fence_of(claimed)
    with database.customer(customer_id) as session:
        jobs.crash(session, fence, "c", "d", max_failures=1, backoff_seconds=0, log=_log_tail(tmp_path))
    with database.customer(customer_id) as session:
        error = jobs.get(session, claimed.id, JobKind.TUNE).error
    assert error is not None
    assert error["log"] == ["a b [31m\ufffd\ufffd", "Traceback", "  File"]


@pytest.mark.parametrize("hours", [72, 0])
def test_the_sweep_gives_up_checkpoints_of_failed_jobs_when_their_time_is_over(
    settings: Settings, database: Database, customer_id: UUID, tmp_path: Path, hours: float
) -> None:
    with database.customer(customer_id) as session:
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
    with database.system() as session:
        claimed = jobs.claim(session, JobKind.TUNE, "w", 30.0)
    assert claimed is not None
    (tmp_path / "checkpoint").write_bytes(b"a checkpoint")
    objects = Objects(settings.objects_url)
    key = f"{jobs.work_prefix(claimed.id)}1/checkpoint-1.safetensors"
    stored = objects.put_file(key, tmp_path / "checkpoint")
    with database.customer(customer_id) as session:
        resuming.keep_checkpoint(session, jobs.fence_of(claimed), {**stored, "epoch": 1})
        jobs.fail(session, jobs.fence_of(claimed), "c", "d")
    worker = Worker.create(settings.model_copy(update={"failed_checkpoint_hours": hours}))
    with celery_app(settings) as app:
        sweep_once(worker, Doorbell(app))
    worker.database.close()
    with database.customer(customer_id) as session:
        kept = jobs.get(session, claimed.id, JobKind.TUNE).checkpoint
    is_there = (tmp_path / "objects" / key).exists()
    assert (kept is not None, is_there) == (hours > 0, hours > 0)
