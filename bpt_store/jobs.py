"""The life of a job: one module, one table.

                    claim                     succeed
        queued ────────────────▶ running ───────────────────▶ succeeded
          │ ▲                     │ │ │      fail, or crashed
          │ │  crash, lease lost, │ │ │      too often
          │ └──── give back ──────┘ │ └─────────────────────▶ failed
          │                         │ cancel
          │ cancel                  ▼
          │                     cancelling
          ▼                         │ worker wound down, or its lease ran out
       cancelled ◀──────────────────┘

A claim raises `attempt` and sets a lease on the database's clock. Every later write of the worker names
(job, attempt): a write that matches no row raises LeaseLost, which means "stop, you were replaced".
`attempt` only ever rises; `failures` counts the attempts that crashed, and `max_failures` of them end a job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session, aliased

from bpt_store import ids
from bpt_store.errors import Conflict, LeaseLost, LimitReached, NotFound
from bpt_store.models import (
    HELD_STATES,
    TERMINAL_STATES,
    Dataset,
    DatasetState,
    DatasetVersion,
    DoomedObject,
    Job,
    JobEvent,
    JobKind,
    JobState,
)


@dataclass(frozen=True)
class Fence:
    """The right to write about a job: holds as long as no other attempt has begun and no end was reached."""

    customer_id: UUID
    job_id: UUID
    attempt: int

    def _holds(self) -> ColumnElement[bool]:
        return and_(Job.id == self.job_id, Job.attempt == self.attempt, Job.state.in_(HELD_STATES))


# --- customers' side -------------------------------------------------------------------------------------------


def create(
    session: Session,
    customer_id: UUID,
    kind: JobKind,
    *,
    dataset_id: UUID,
    dataset_version: int,
    payload: Mapping[str, Any],
    prompt_set_id: UUID | None = None,
    custom: Mapping[str, Any] | None = None,
    unfinished_limit: int | None = None,
) -> Job:
    """A queued job; ring its doorbell after the commit. LimitReached `queue_limit` beyond `unfinished_limit`."""
    if unfinished_limit is not None:
        unfinished = select(func.count()).where(
            Job.customer_id == customer_id, Job.kind == kind, Job.state.not_in(TERMINAL_STATES)
        )
        if (session.scalar(unfinished) or 0) >= unfinished_limit:
            raise LimitReached(f"{unfinished_limit} jobs are unfinished already", code="queue_limit")
    job = Job(
        customer_id=customer_id,
        kind=kind,
        state=JobState.QUEUED,
        dataset_id=dataset_id,
        dataset_version=dataset_version,
        prompt_set_id=prompt_set_id,
        payload=dict(payload),
        custom=dict(custom or {}),
    )
    session.add(job)
    session.flush()
    _append(session, job, "state", {"state": JobState.QUEUED})
    return job


def get(session: Session, job_id: UUID, kind: JobKind, *, lock: bool = False) -> Job:
    query = select(Job).where(Job.id == job_id, Job.kind == kind)
    job = session.scalar(query.with_for_update() if lock else query)
    if job is None:
        raise NotFound(f"there is no {ids.public(ids.JOB, job_id)!r}")
    return job


def of_version(session: Session, dataset_id: UUID, number: int) -> Job:
    """The ingest job that makes, or has made, a version of a dataset. NotFound."""
    job = session.scalar(
        select(Job).where(Job.dataset_id == dataset_id, Job.dataset_version == number, Job.kind == JobKind.INGEST)
    )
    if job is None:
        raise NotFound(f"there is no version {number} of {ids.public(ids.DATASET, dataset_id)!r}")
    return job


def measured_flops_per_second(session: Session, jobs: int = 5) -> float | None:
    """How fast the newest tuning jobs that succeeded in one attempt were, whole; None where there is none."""
    seconds = func.extract("epoch", Job.finished_at - Job.started_at)
    newest = (
        select(Job.payload["flops"].as_float() / func.greatest(seconds, 0.1))
        .where(Job.kind == JobKind.TUNE, Job.state == JobState.SUCCEEDED, Job.attempt == 1)
        .where(Job.payload["flops"].as_float().is_not(None))
        .order_by(Job.id.desc())
        .limit(jobs)
    )
    rates = sorted(session.scalars(newest))
    return float(rates[len(rates) // 2]) if rates else None


def cancel(session: Session, job_id: UUID, kind: JobKind) -> Job:
    """A queued job ends now; a running one is wound down by its worker. Conflict `job_terminal` once it ended."""
    job = get(session, job_id, kind, lock=True)
    if job.state.is_terminal:
        raise Conflict(f"the job is {job.state} already", code="job_terminal")
    if job.state is JobState.QUEUED:
        _end(session, job, JobState.CANCELLED)
    elif job.state is JobState.RUNNING:
        _move(session, job, JobState.CANCELLING)
    return job


def delete(session: Session, job_id: UUID, kind: JobKind) -> None:
    """Row, events and results of a job that has ended. Conflict `job_unfinished` before."""
    job = get(session, job_id, kind, lock=True)
    if not job.state.is_terminal:
        raise Conflict(f"the job is {job.state}; cancel it first", code="job_unfinished")
    doom(session, job.customer_id, results_prefix(job_id))
    session.delete(job)


def results_prefix(job_id: UUID) -> str:
    """All results of a batch prediction lie under it, each attempt's in a folder of its own."""
    return f"batch-predictions/{job_id.hex}/"


def events_after(session: Session, job_id: UUID, number: int, limit: int) -> Sequence[JobEvent]:
    """Events with a greater number, in order."""
    return session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.number > number)
        .order_by(JobEvent.number)
        .limit(limit)
    ).all()


# --- workers' side ---------------------------------------------------------------------------------------------


def claim(session: Session, kind: JobKind, worker: str, lease_seconds: float) -> Job | None:
    """The next job of this kind (system session), now running under a lease; None if there is none to be had.

    Customers with fewer running jobs come first, then the older job.
    """
    other = aliased(Job)
    running = (
        select(func.count())
        .where(other.customer_id == Job.customer_id, other.kind == kind, other.state.in_(HELD_STATES))
        .scalar_subquery()
    )
    free = (
        select(Job.id)
        .where(Job.kind == kind, Job.state == JobState.QUEUED, Job.available_at <= func.now())
        .order_by(running, Job.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    job = session.scalar(
        update(Job)
        .where(Job.id == select(free.c.id).scalar_subquery())
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            worker=worker,
            lease_expires_at=func.clock_timestamp() + timedelta(seconds=lease_seconds),
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(Job)
    )
    if job is not None:
        _append(session, job, "state", {"state": JobState.RUNNING, "attempt": job.attempt})
    return job


def fence_of(job: Job) -> Fence:
    return Fence(job.customer_id, job.id, job.attempt)


def renew(session: Session, fence: Fence, lease_seconds: float) -> JobState:
    """The heartbeat -> the job's state, in which a wish to cancel shows. LeaseLost if replaced."""
    state: JobState | None = session.scalar(
        update(Job)
        .where(fence._holds())
        .values(lease_expires_at=func.clock_timestamp() + timedelta(seconds=lease_seconds))
        .returning(Job.state)
    )
    if state is None:
        raise LeaseLost(f"attempt {fence.attempt} was replaced")
    return state


def record(session: Session, fence: Fence, event: str, data: Mapping[str, Any]) -> None:
    """Append an event; one called `epoch` or `progress` is also kept as the job's progress."""
    job = _held(session, fence)
    _append(session, job, event, data)
    if event in ("epoch", "progress"):
        job.progress = {"type": event, **data}


def keep_checkpoint(session: Session, fence: Fence, stored: Mapping[str, Any]) -> None:
    """Note where the newest checkpoint lies and give up the one before."""
    job = _held(session, fence)
    if job.checkpoint is not None:
        doom(session, job.customer_id, job.checkpoint["key"])
    job.checkpoint = dict(stored)


def keep_part(session: Session, fence: Fence, stored: Mapping[str, Any]) -> None:
    """Note where a finished part of the work lies, behind the earlier ones; noted twice it is there once."""
    job = _held(session, fence)
    earlier = [part for part in parts(job) if part["key"] != stored["key"]]
    job.checkpoint = {"parts": [*earlier, dict(stored)]}


def parts(job: Job) -> list[dict[str, Any]]:
    """What `keep_part` has noted so far, in all attempts, in order."""
    return list(job.checkpoint["parts"]) if job.checkpoint is not None else []


def keep_report(session: Session, fence: Fence, report: Mapping[str, Any]) -> None:
    """What there is to read about the work, beyond its result."""
    _held(session, fence).report = dict(report)


def succeed(session: Session, fence: Fence, result: Mapping[str, Any]) -> Job:
    """The end, in the same transaction as what the job was to bring about."""
    job = _held(session, fence)
    job.result = dict(result)
    _end(session, job, JobState.SUCCEEDED)
    return job


def fail(session: Session, fence: Fence, code: str, detail: str) -> None:
    """The end of a job that would fail again: its input is at fault, or it crashed too often."""
    _end(session, _held(session, fence), JobState.FAILED, {"code": code, "detail": detail})


def cancelled(session: Session, fence: Fence) -> None:
    """The worker has wound down a job that was to be cancelled."""
    _end(session, _held(session, fence), JobState.CANCELLED)


def give_back(session: Session, fence: Fence, reason: str) -> None:
    """The worker stops in an orderly way: the job waits again, and no failure is counted."""
    job = _held(session, fence)
    if job.state is JobState.CANCELLING:
        _end(session, job, JobState.CANCELLED)
    else:
        _requeue(session, job, reason, delay_seconds=0)


def crash(session: Session, fence: Fence, code: str, detail: str, *, max_failures: int, backoff_seconds: float) -> None:
    """An attempt died: the job waits again for a while, or fails with `code` after `max_failures` such attempts."""
    _crashed(session, _held(session, fence), code, detail, max_failures, backoff_seconds)


# --- the sweep's side ------------------------------------------------------------------------------------------


def requeue_expired(session: Session, *, max_failures: int, backoff_seconds: float) -> int:
    """Take jobs from workers whose lease ran out (system session) -> how many."""
    expired = session.scalars(
        select(Job)
        .where(Job.state.in_(HELD_STATES), Job.lease_expires_at < func.clock_timestamp())
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    ).all()
    for job in expired:
        _crashed(session, job, "worker_lost", f"attempt {job.attempt} lost its lease", max_failures, backoff_seconds)
    return len(expired)


def kinds_waiting(session: Session, older_than_seconds: float) -> list[JobKind]:
    """Kinds of which a job could have been claimed for so long and was not."""
    waiting = (
        select(Job.kind)
        .where(
            Job.state == JobState.QUEUED,
            Job.available_at < func.clock_timestamp() - timedelta(seconds=older_than_seconds),
        )
        .distinct()
    )
    return list(session.scalars(waiting))


@dataclass(frozen=True)
class Depth:
    """How many unfinished jobs of a kind are in a state; how long the oldest has waited, if it is `queued`."""

    kind: JobKind
    state: JobState
    jobs: int
    oldest_wait_seconds: float | None


def depths(session: Session) -> list[Depth]:
    """The queues of all customers (system session)."""
    age = func.extract("epoch", func.clock_timestamp() - func.min(Job.available_at))
    rows = session.execute(
        select(Job.kind, Job.state, func.count(), age)
        .where(Job.state.not_in(TERMINAL_STATES))
        .group_by(Job.kind, Job.state)
    )
    return [
        Depth(kind, state, count, max(0.0, float(seconds)) if state is JobState.QUEUED else None)
        for kind, state, count, seconds in rows
    ]


def doom(session: Session, customer_id: UUID, key: str) -> None:
    """Have an object, or all below a prefix that ends in "/", deleted once this transaction has committed."""
    session.add(DoomedObject(customer_id=customer_id, key=key))


# --- inside ----------------------------------------------------------------------------------------------------


def _held(session: Session, fence: Fence) -> Job:
    job = session.scalar(select(Job).where(fence._holds()).with_for_update())
    if job is None:
        raise LeaseLost(f"attempt {fence.attempt} was replaced")
    return job


def _append(session: Session, job: Job, event: str, data: Mapping[str, Any]) -> None:
    """The caller holds the row's lock, so numbers have no gaps."""
    job.last_event += 1
    session.add(
        JobEvent(
            customer_id=job.customer_id,
            job_id=job.id,
            number=job.last_event,
            attempt=job.attempt,
            type=event,
            data=dict(data),
        )
    )
    session.flush()


def _move(session: Session, job: Job, state: JobState, **facts: Any) -> None:
    job.state = state
    _append(session, job, "state", {"state": state, **facts})


def _end(session: Session, job: Job, state: JobState, error: Mapping[str, Any] | None = None) -> None:
    job.lease_expires_at = None
    job.finished_at = func.now()
    job.error = dict(error) if error is not None else None
    _move(session, job, state, **({"error": job.error} if job.error else {}))
    doom(session, job.customer_id, f"jobs/{job.id.hex}/")
    if job.kind is JobKind.INGEST and state is not JobState.SUCCEEDED:
        _fail_version(session, job)
    if job.kind is JobKind.BATCH_PREDICT and state is not JobState.SUCCEEDED:
        doom(session, job.customer_id, results_prefix(job.id))


def _fail_version(session: Session, job: Job) -> None:
    """The version that was to be made fails, and with the first one its dataset. What it was made of is given up."""
    mine = DatasetVersion.dataset_id == job.dataset_id, DatasetVersion.number == job.dataset_version
    version = session.scalar(
        select(DatasetVersion).where(*mine, DatasetVersion.customer_id == job.customer_id).with_for_update()
    )
    if version is None or version.state is not DatasetState.VALIDATING:
        return
    for part in (version.source or {}).get("parts", ()):
        doom(session, job.customer_id, part["key"])
    version.state, version.source = DatasetState.FAILED, None
    version.error = job.error or {"code": "cancelled", "detail": "the ingest was cancelled"}
    dataset = session.get_one(Dataset, version.dataset_id)
    if dataset.state is DatasetState.VALIDATING:
        dataset.state = DatasetState.FAILED
        doom(session, job.customer_id, f"datasets/{dataset.id.hex}/")


def _requeue(session: Session, job: Job, reason: str, delay_seconds: float) -> None:
    job.lease_expires_at = None
    job.worker = None
    job.available_at = func.clock_timestamp() + timedelta(seconds=delay_seconds)
    _move(session, job, JobState.QUEUED, reason=reason)


def _crashed(session: Session, job: Job, code: str, detail: str, max_failures: int, backoff_seconds: float) -> None:
    if job.state is JobState.CANCELLING:
        _end(session, job, JobState.CANCELLED)
        return
    job.failures += 1
    if job.failures >= max_failures:
        _end(session, job, JobState.FAILED, {"code": code, "detail": f"{detail}, for the {job.failures}. time"})
    else:
        _requeue(session, job, detail, backoff_seconds * 2 ** (job.failures - 1))
