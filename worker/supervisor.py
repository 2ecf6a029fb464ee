"""Claim a job, start the process that does it, write down what it says, end the job. Never imports torch."""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from bpt_store import ids, jobs, logs
from bpt_store.errors import LeaseLost, LimitReached
from bpt_store.jobs import Fence
from bpt_store.models import Job, JobKind
from worker import room
from worker.context import Worker
from worker.lease import LOOK_SECONDS, Lease
from worker.refused import Refused
from worker.stall import Stall
from worker.starter import Started, Starter, StarterLost

logger = logging.getLogger(__name__)

LOG_TAIL_LINES, LOG_TAIL_CHARACTERS = 20, 2000


class Kind(Protocol):
    """What differs between kinds of work: worker/tune.py, worker/ingest.py and worker/batch.py."""

    child: str
    crash_code: str
    stall_code: str

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        """Put what the child needs into `directory` -> the content of the job file. Refused where it cannot be used."""
        ...

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        """Note where a checkpoint lies that the child gave with the event of this data."""
        ...

    def keep_attached(
        self, worker: Worker, session: Session, job: Job, content: bytes, facts: dict[str, Any], data: dict[str, Any]
    ) -> None:
        """Keep a small file that the child gave with the event of this data, and the facts about it."""
        ...

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        """Keep what a failure says beyond code and detail, in the transaction that fails the job."""
        ...

    def publish(
        self, worker: Worker, job: Job, directory: Path, result: dict[str, Any], /
    ) -> Callable[[Session], None]:
        """Store what is too big for a transaction -> what is to be written in the job's last one."""
        ...


class _Stopped(Exception):
    """The child was stopped because the job is to be cancelled or paused, or because this worker ends."""


class _Crashed(Exception):
    """The child ended without a last word."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass
class _Attempt:
    worker: Worker
    kind: Kind
    job: Job
    fence: Fence
    lease: Lease
    directory: Path


def work(worker: Worker, job_kind: JobKind, kind: Kind) -> int:
    """Answer a doorbell: do jobs of this kind until none is left or the worker is to stop -> how many were begun."""
    begun = 0
    while not worker.is_stopping():
        with worker.database.system() as session:
            job = jobs.claim(
                session,
                job_kind,
                worker.name,
                worker.settings.lease_seconds,
                running_limit=worker.settings.running_jobs_limit or None,
            )
        if job is None:
            break
        begun += 1
        token = logs.job_id.set(ids.public(ids.JOB, job.id))
        try:
            run(worker, job, kind)
        finally:
            logs.job_id.reset(token)
    return begun


def run(worker: Worker, job: Job, kind: Kind) -> None:
    """One attempt at a claimed job, to whatever end it comes."""
    fence = jobs.fence_of(job)
    logger.info("attempt begins", extra={"attempt": job.attempt})
    with _directory(worker, job) as directory, Lease(worker, fence) as lease:
        attempt = _Attempt(worker, kind, job, fence, lease, directory)
        try:
            _conclude(attempt)
        except LeaseLost:
            logger.warning("attempt was replaced", extra={"attempt": job.attempt})
            _give_up_if_gone(worker, job)


def _conclude(attempt: _Attempt) -> None:
    try:
        _run(attempt)
    except LeaseLost:
        raise
    except _Stopped:
        _write(attempt, lambda session: jobs.give_back(session, attempt.fence, "the worker was stopped"))
    except Refused as refused:
        _fail(attempt, {"code": refused.code, "detail": str(refused)})
    except _Crashed as crash:
        _crash(attempt, crash.code, str(crash))
    except (StarterLost, TimeoutError) as crash:
        _crash(attempt, attempt.kind.crash_code, str(crash))
    except Exception as error:
        # Ours or the surroundings' fault (storage away, disk full, a bug): another attempt may go better.
        logger.exception("attempt broke")
        if room.is_missing(error):
            _crash(attempt, room.MISSING, room.DETAIL)
        else:
            _crash(attempt, "attempt_broke", f"{type(error).__name__}: {error}")


def _run(attempt: _Attempt) -> None:
    attempt.directory.mkdir(parents=True, mode=0o700)
    job_file = attempt.directory / "job.json"
    job_file.write_text(json.dumps(attempt.kind.prepare(attempt.worker, attempt.job, attempt.directory)))
    _check_wanted(attempt)  # what is fetched may be large, and a child's starter takes seconds to begin
    last_word: dict[str, Any] = {}
    with _child(attempt, job_file) as (process, lines):
        for message in lines:
            if "event" in message:
                _record(attempt, message)
            else:
                last_word = message
        status = process.wait(attempt.worker.settings.stop_patience_seconds)
    if "failed" in last_word:
        _fail(attempt, last_word["failed"])
    elif "done" in last_word and status == 0:
        finish = attempt.kind.publish(attempt.worker, attempt.job, attempt.directory, last_word["done"])
        try:
            _write(attempt, finish)
        except LimitReached as limit:
            raise Refused(limit.code, str(limit)) from limit
        logger.info("job succeeded")
    elif status == room.EXIT_STATUS:
        raise _Crashed(room.MISSING, room.DETAIL)
    else:
        raise _Crashed(attempt.kind.crash_code, f"the process ended with status {status}")


@contextmanager
def _child(attempt: _Attempt, job_file: Path) -> Iterator[tuple[Started, Iterator[dict[str, Any]]]]:
    starter = attempt.worker.starters.setdefault(attempt.kind.child, Starter(attempt.kind.child))
    read_end, write_end = os.pipe()
    try:
        try:
            with (attempt.directory / "log").open("wb") as log:
                process = starter.start(job_file, log=log, events=write_end)
        finally:
            os.close(write_end)
        try:
            with attempt.lease.guarding(process.kill):
                yield process, _messages(attempt, process, read_end)
        finally:
            process.stop(attempt.worker.settings.stop_patience_seconds)
    finally:
        os.close(read_end)


def _messages(attempt: _Attempt, process: Started, read_end: int) -> Iterator[dict[str, Any]]:
    """What the child says, until it closes its end; raises LeaseLost or _Stopped when it is to be ended first.

    One that hangs is killed: _Crashed.
    """
    pending, seconds = b"", attempt.worker.settings.stall_seconds
    stall = Stall(process.pid, seconds)
    with selectors.DefaultSelector() as selector:
        selector.register(read_end, selectors.EVENT_READ)
        while True:
            _check_wanted(attempt)
            if not selector.select(LOOK_SECONDS):
                if stall.hangs():
                    process.kill()
                    raise _Crashed(attempt.kind.stall_code, f"the process did nothing for {seconds:g} seconds")
                continue
            stall.heard()
            chunk = os.read(read_end, 1 << 16)
            if not chunk:
                return
            *whole, pending = (pending + chunk).split(b"\n")
            for line in whole:
                yield json.loads(line)


def _check_wanted(attempt: _Attempt) -> None:
    """Raises LeaseLost or _Stopped where the attempt is to end."""
    if attempt.lease.is_lost:
        raise LeaseLost("the lease was lost")
    if attempt.lease.is_unwanted or attempt.worker.is_stopping():
        raise _Stopped


def _record(attempt: _Attempt, message: dict[str, Any]) -> None:
    stored: dict[str, Any] | None = None
    if name := message.get("checkpoint"):
        path = attempt.directory / name
        key = f"{jobs.work_prefix(attempt.job.id)}{attempt.job.attempt}/{name}"
        stored = attempt.worker.objects.put_file(key, path)
        path.unlink()
    attached = message.get("attached")
    content = (attempt.directory / attached["file"]).read_bytes() if attached else b""
    if attached:
        (attempt.directory / attached["file"]).unlink()

    def write(session: Session) -> None:
        if stored is not None:
            attempt.kind.keep(session, attempt.job, stored, message["data"])
        if attached:
            attempt.kind.keep_attached(attempt.worker, session, attempt.job, content, attached, message["data"])
        jobs.record(session, attempt.fence, message["event"], message["data"])

    _write(attempt, write)


def _fail(attempt: _Attempt, failure: dict[str, Any]) -> None:
    def write(session: Session) -> None:
        attempt.kind.note_failure(session, attempt.job, failure)
        jobs.fail(session, attempt.fence, failure["code"], failure["detail"], log=_log_tail(attempt.directory))

    _write(attempt, write)
    logger.info("job failed", extra={"code": failure["code"]})


def _crash(attempt: _Attempt, code: str, detail: str) -> None:
    settings = attempt.worker.settings
    logger.warning("attempt crashed", extra={"code": code, "detail": detail})
    _write(
        attempt,
        lambda session: jobs.crash(
            session,
            attempt.fence,
            code,
            detail,
            max_failures=settings.max_failures,
            backoff_seconds=settings.retry_backoff_seconds,
            log=_log_tail(attempt.directory),
        ),
    )


def _write(attempt: _Attempt, action: Callable[[Session], object]) -> None:
    """One transaction about the job, tried again while the database is away; LeaseLost when that takes too long.

    Where a commit's answer was lost, an event may be written twice, an end never: the fence no longer holds.
    """
    while True:
        try:
            with attempt.worker.database.customer(attempt.job.customer_id) as session:
                action(session)
            return
        except OperationalError as error:
            logger.warning("database away", extra={"reason": str(error)})
            if attempt.lease.is_lost:
                raise LeaseLost("the database was away for too long") from error
            time.sleep(LOOK_SECONDS)


def _give_up_if_gone(worker: Worker, job: Job) -> None:
    """The job may have been deleted, with its customer for example, while this attempt stored something."""
    try:
        with worker.database.customer(job.customer_id) as session:
            jobs.give_up_if_gone(session, job)
    except SQLAlchemyError as error:
        logger.warning("cannot look whether the job is gone", extra={"reason": str(error)})


@contextmanager
def _directory(worker: Worker, job: Job) -> Iterator[Path]:
    """Where the attempt keeps its files, once it has begun; afterwards it is gone."""
    # A supervisor that was killed could not clean up after its attempt.
    for left in worker.settings.work_directory.glob(f"{job.id.hex}-*"):
        shutil.rmtree(left, ignore_errors=True)
    directory = worker.settings.work_directory / f"{job.id.hex}-{job.attempt}"
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _log_tail(directory: Path) -> list[str]:
    """The last lines that this attempt's process wrote, as the customer may see them; none where it did not begin."""
    try:
        with (directory / "log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4 * LOG_TAIL_CHARACTERS))
            written = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    # PostgreSQL's text has no NUL, and nothing in it is to steer a terminal.
    last = "\n".join(written.strip().splitlines()[-LOG_TAIL_LINES:])[-LOG_TAIL_CHARACTERS:]
    return [
        "".join(each if each.isprintable() else " " for each in line).rstrip() for line in last.splitlines() if line
    ]
