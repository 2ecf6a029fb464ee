"""The life of a job: one module, one table.

                    claim                     succeed
        queued ────────────────▶ running ───────────────────▶ succeeded
          ▲                       │   │       fail, or crashed
          │  crash, lease lost,   │   │       too often
          └────── give back ──────┘   └─────────────────────▶ failed

    What a customer wishes:

        queued            ── pause ───▶ paused
        running           ── pause ───▶ pausing ──── wound down ──▶ paused
        paused            ── resume ──▶ queued
        queued, paused    ── cancel ──▶ cancelled
        running, pausing  ── cancel ──▶ cancelling ── wound down ──▶ cancelled
        failed, cancelled ── retry ───▶ queued

A worker holds the job in `running`, `pausing` and `cancelling`. Wound down: it gave the job back, crashed, or its lease
ran out; none of that counts as a failure then. An attempt that comes to an end of its own before it is wound down ends
the job as it would a running one. Only tuning jobs are paused or tried again.

A claim raises `attempt` and sets a lease on the database's clock. Every later write of the worker names
(job, attempt): a write that matches no row raises LeaseLost, which means "stop, you were replaced".
`attempt` only ever rises; `failures` counts the attempts that crashed, and `max_failures` of them end a job.

The checkpoint of a tuning job that failed or was cancelled is kept for a while, so that it can be tried again; every
other end gives it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from bpt_store import ids, scheduling, usage, webhook_events
from bpt_store.errors import Conflict, LeaseLost, LimitReached, NotFound
from bpt_store.models import (
    HELD_STATES,
    TERMINAL_STATES,
    Customer,
    Dataset,
    DatasetState,
    DatasetVersion,
    DoomedObject,
    Job,
    JobEvent,
    JobKind,
    JobState,
)
from bpt_store.scheduling import Priority
from bpt_store.webhook_events import EventType

# What customers are told of by webhooks. The end of an ingest is told of as that of its dataset's version.
_TOLD = {
    (JobKind.TUNE, JobState.SUCCEEDED): EventType.TUNING_JOB_SUCCEEDED,
    (JobKind.TUNE, JobState.FAILED): EventType.TUNING_JOB_FAILED,
    (JobKind.TUNE, JobState.CANCELLED): EventType.TUNING_JOB_CANCELLED,
    (JobKind.TUNE, JobState.PAUSED): EventType.TUNING_JOB_PAUSED,
    (JobKind.BATCH_PREDICT, JobState.SUCCEEDED): EventType.BATCH_PREDICTION_SUCCEEDED,
    (JobKind.BATCH_PREDICT, JobState.FAILED): EventType.BATCH_PREDICTION_FAILED,
    (JobKind.BATCH_PREDICT, JobState.CANCELLED): EventType.BATCH_PREDICTION_CANCELLED,
}


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
    priority: Priority = Priority.NORMAL,
    unfinished_limit: int | None = None,
) -> Job:
    """A queued job; ring its doorbell after the commit. LimitReached `queue_limit` beyond the customer's own limit, or
    `unfinished_limit` where he has none.
    """
    _check_unfinished(session, customer_id, kind, unfinished_limit)
    job = Job(
        customer_id=customer_id,
        kind=kind,
        state=JobState.QUEUED,
        dataset_id=dataset_id,
        dataset_version=dataset_version,
        prompt_set_id=prompt_set_id,
        payload={"format": scheduling.FIRST_FORMAT, **payload},
        custom=dict(custom or {}),
        priority=priority.number,
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
        .where(Job.result["stopped_by"].as_string().is_(None))
        .where(Job.payload["flops"].as_float().is_not(None))
        .order_by(Job.id.desc())
        .limit(jobs)
    )
    rates = sorted(session.scalars(newest))
    return float(rates[len(rates) // 2]) if rates else None


def cancel(session: Session, job_id: UUID, kind: JobKind) -> Job:
    """One that nobody holds ends now; another is wound down by its worker. Conflict `job_terminal` once it ended."""
    job = _unfinished(session, job_id, kind)
    if not job.state.is_held:
        _end(session, job, JobState.CANCELLED)
    elif job.state is not JobState.CANCELLING:
        _move(session, job, JobState.CANCELLING)
    return job


def pause(session: Session, job_id: UUID) -> Job:
    """A queued tuning job is paused now, a running one is wound down by its worker and keeps its last checkpoint.

    What is paused, or about to be, stays as it is. Conflict `job_cancelling`, `job_terminal`.
    """
    job = _unfinished(session, job_id, JobKind.TUNE)
    if job.state is JobState.CANCELLING:
        raise Conflict("the job is being cancelled", code="job_cancelling")
    if job.state is JobState.QUEUED:
        _move(session, job, JobState.PAUSED)
    elif job.state is JobState.RUNNING:
        _move(session, job, JobState.PAUSING)
    return job


def resume(session: Session, job_id: UUID) -> Job:
    """A paused tuning job waits again; ring its doorbell after the commit. One that waits or runs stays as it is.

    Conflict `job_pausing`: it is not known yet how the attempt ends. Conflict `job_cancelling`, `job_terminal`.
    """
    job = _unfinished(session, job_id, JobKind.TUNE)
    if job.state in (JobState.PAUSING, JobState.CANCELLING):
        raise Conflict(f"the job is {job.state}: its worker still winds down", code=f"job_{job.state}")
    if job.state is JobState.PAUSED:
        _queue_again(session, job)
    return job


def retry(session: Session, job_id: UUID, *, unfinished_limit: int | None = None) -> Job:
    """A tuning job that failed or was cancelled waits again, with no failure counted; ring its doorbell after the
    commit. It goes on from its last checkpoint, or from the beginning where that was given up.

    Conflict `job_succeeded`, `job_unfinished`; LimitReached `queue_limit`.
    """
    job = get(session, job_id, JobKind.TUNE, lock=True)
    if job.state is JobState.SUCCEEDED:
        raise Conflict("the job has succeeded: there is nothing to try again", code="job_succeeded")
    if not job.state.is_terminal:
        raise Conflict(f"the job is {job.state}, it has not ended", code="job_unfinished")
    _check_unfinished(session, job.customer_id, job.kind, unfinished_limit)
    job.failures, job.error, job.finished_at, job.log_tail = 0, None, None, None
    _queue_again(session, job)
    return job


def delete(session: Session, job_id: UUID, kind: JobKind) -> None:
    """Row, events, checkpoint and results of a job that has ended. Conflict `job_unfinished` before."""
    job = get(session, job_id, kind, lock=True)
    if not job.state.is_terminal:
        raise Conflict(f"the job is {job.state}; cancel it first", code="job_unfinished")
    doom(session, job.customer_id, results_prefix(job_id))
    doom(session, job.customer_id, work_prefix(job_id))
    session.delete(job)


def work_prefix(job_id: UUID) -> str:
    """All checkpoints and parts of a job lie under it, each attempt's in a folder of its own."""
    return f"jobs/{job_id.hex}/"


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


def claim(
    session: Session, kind: JobKind, worker: str, lease_seconds: float, *, running_limit: int | None = None
) -> Job | None:
    """The next job of this kind (system session), now running under a lease; None if there is none to be had.

    scheduling.py says which one is next. `running_limit` is for customers that have none of their own.
    """
    chosen = scheduling.choose(session, kind, running_limit)
    if chosen is None:
        return None
    job: Job = session.scalars(
        update(Job)
        .where(Job.id == chosen)
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            worker=worker,
            claimed_at=func.clock_timestamp(),
            lease_expires_at=func.clock_timestamp() + timedelta(seconds=lease_seconds),
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(Job)
    ).one()
    _append(session, job, "state", {"state": JobState.RUNNING, "attempt": job.attempt})
    return job


def fence_of(job: Job) -> Fence:
    return Fence(job.customer_id, job.id, job.attempt)


def held(session: Session, fence: Fence) -> Job:
    """The job's row, locked, for what is to be written about it. LeaseLost if replaced."""
    job = session.scalar(select(Job).where(fence._holds()).with_for_update())
    if job is None:
        raise LeaseLost(f"attempt {fence.attempt} was replaced")
    return job


def renew(session: Session, fence: Fence, lease_seconds: float) -> JobState:
    """The heartbeat -> the job's state, in which a wish to cancel or pause shows. LeaseLost if replaced."""
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
    job = held(session, fence)
    _append(session, job, event, data)
    if event in ("epoch", "progress"):
        job.progress = {"type": event, **data}


def keep_report(session: Session, fence: Fence, report: Mapping[str, Any]) -> None:
    """What there is to read about the work, beyond its result."""
    held(session, fence).report = dict(report)


def succeed(session: Session, fence: Fence, result: Mapping[str, Any]) -> Job:
    """The end, in the same transaction as what the job was to bring about."""
    job = held(session, fence)
    job.result = dict(result)
    _end(session, job, JobState.SUCCEEDED)
    return job


def fail(session: Session, fence: Fence, code: str, detail: str, *, log: Sequence[str] = ()) -> None:
    """The end of a job that would fail again, for its input is at fault. `log` is what it said last, line by line."""
    job = held(session, fence)
    job.log_tail = list(log) or None
    _fail(session, job, code, detail)


def cancelled(session: Session, fence: Fence) -> None:
    """The worker has wound down a job that was to be cancelled."""
    _end(session, held(session, fence), JobState.CANCELLED)


def give_back(session: Session, fence: Fence, reason: str) -> None:
    """The worker stops in an orderly way: the job waits again, or is cancelled or paused if that was wished.

    No failure is counted.
    """
    job = held(session, fence)
    if not _wound_down(session, job):
        _requeue(session, job, reason, delay_seconds=0)


def crash(
    session: Session,
    fence: Fence,
    code: str,
    detail: str,
    *,
    max_failures: int,
    backoff_seconds: float,
    log: Sequence[str] = (),
) -> None:
    """An attempt died: the job waits again for a while, or fails with `code` after `max_failures` such attempts.

    `log` is what the attempt said last, line by line.
    """
    job = held(session, fence)
    job.log_tail = list(log) or None
    _crashed(session, job, code, detail, max_failures, backoff_seconds)


def give_up_if_gone(session: Session, job: Job) -> None:
    """After an attempt that lost its lease: where job or dataset are deleted, so is what it has stored since."""
    if session.scalar(select(Job.id).where(Job.id == job.id)) is None:
        doom(session, job.customer_id, work_prefix(job.id))
        doom(session, job.customer_id, results_prefix(job.id))
    if job.kind is JobKind.INGEST and session.scalar(select(Dataset.id).where(Dataset.id == job.dataset_id)) is None:
        assert job.dataset_id is not None
        doom(session, job.customer_id, f"datasets/{job.dataset_id.hex}/")


# --- the sweep's side ------------------------------------------------------------------------------------------


def requeue_expired(session: Session, *, max_failures: int, backoff_seconds: float, lease_seconds: float = 0) -> int:
    """Take jobs from workers whose lease ran out (system session) -> how many.

    As leases last `lease_seconds`, the last heartbeat was so long before: until then the worker has worked.
    """
    expired = session.scalars(
        select(Job)
        .where(Job.state.in_(HELD_STATES), Job.lease_expires_at < func.clock_timestamp())
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    ).all()
    for job in expired:
        assert job.claimed_at is not None
        assert job.lease_expires_at is not None
        job.lease_expires_at = max(job.claimed_at, job.lease_expires_at - timedelta(seconds=lease_seconds))
        _crashed(session, job, "worker_lost", f"attempt {job.attempt} lost its lease", max_failures, backoff_seconds)
    return len(expired)


def give_up_checkpoints(session: Session, older_than_hours: float) -> int:
    """Of tuning jobs that failed or were cancelled so long ago, and were not tried again (system session) -> how many.

    Tried again after that they begin anew.
    """
    kept = session.scalars(
        select(Job)
        .where(Job.state.in_((JobState.FAILED, JobState.CANCELLED)), Job.checkpoint.is_not(None))
        .where(Job.finished_at < func.clock_timestamp() - timedelta(hours=older_than_hours))
        .order_by(Job.id)
        .with_for_update(skip_locked=True)
    ).all()
    for job in kept:
        _give_up_attempts(session, job)
    return len(kept)


def doom(session: Session, customer_id: UUID, key: str, *, after_seconds: float = 0) -> None:
    """Have an object, or all below a prefix that ends in "/", deleted once this transaction has committed, or later."""
    not_before = func.now() + timedelta(seconds=after_seconds)
    session.add(DoomedObject(customer_id=customer_id, key=key, not_before=not_before))


# --- inside ----------------------------------------------------------------------------------------------------


def _unfinished(session: Session, job_id: UUID, kind: JobKind) -> Job:
    job = get(session, job_id, kind, lock=True)
    if job.state.is_terminal:
        raise Conflict(f"the job is {job.state} already", code="job_terminal")
    return job


def _check_unfinished(session: Session, customer_id: UUID, kind: JobKind, limit: int | None) -> None:
    if limit is None:
        return
    own = session.scalar(select(Customer.queued_jobs_limit).where(Customer.id == customer_id))
    most = limit if own is None else own
    unfinished = select(func.count()).where(
        Job.customer_id == customer_id, Job.kind == kind, Job.state.not_in(TERMINAL_STATES)
    )
    if (session.scalar(unfinished) or 0) >= most:
        raise LimitReached(f"{most} jobs are unfinished already", code="queue_limit")


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
    told = _TOLD.get((job.kind, state))
    if told is not None:
        webhook_events.emit(session, job.customer_id, told, {"id": ids.public(ids.JOB, job.id), "state": state})


def _end(session: Session, job: Job, state: JobState, error: Mapping[str, Any] | None = None) -> None:
    _settle(session, job)
    job.finished_at = func.now()
    job.error = dict(error) if error is not None else None
    _move(session, job, state, **({"error": job.error} if job.error else {}))
    if job.kind is not JobKind.TUNE or state is JobState.SUCCEEDED:
        job.checkpoint = None
        doom(session, job.customer_id, work_prefix(job.id))
    elif job.checkpoint is None:
        _give_up_attempts(session, job)
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
    told = {"id": ids.public(ids.DATASET, version.dataset_id), "version": version.number, "state": version.state}
    webhook_events.emit(session, job.customer_id, EventType.DATASET_FAILED, told)
    dataset = session.get_one(Dataset, version.dataset_id)
    if dataset.state is DatasetState.VALIDATING:
        dataset.state = DatasetState.FAILED
        doom(session, job.customer_id, f"datasets/{dataset.id.hex}/")


def _fail(session: Session, job: Job, code: str, detail: str) -> None:
    log = {"log": job.log_tail} if job.log_tail else {}
    _end(session, job, JobState.FAILED, {"code": code, "detail": detail, **log})


def _give_up_attempts(session: Session, job: Job) -> None:
    """Whatever the attempts so far have stored. Not all below the job's prefix: another attempt may come."""
    for attempt in range(1, job.attempt + 1):
        doom(session, job.customer_id, f"{work_prefix(job.id)}{attempt}/")
    job.checkpoint = None


def _settle(session: Session, job: Job) -> None:
    """Nobody holds the job any more: count the seconds of the attempt, as far as its lease went."""
    if job.claimed_at is not None:
        until = func.least(func.clock_timestamp(), job.lease_expires_at)
        worked = max(0.0, float(session.scalars(select(func.extract("epoch", until - job.claimed_at))).one()))
        job.worked_seconds += worked
        scheduling.settle(session, job.customer_id, job.kind, worked)
        usage.add_seconds(session, job.customer_id, job.kind, worked)
    job.claimed_at = job.lease_expires_at = None


def _wound_down(session: Session, job: Job) -> bool:
    """Do what was wished while the job was held -> whether there was such a wish."""
    if job.state is JobState.CANCELLING:
        _end(session, job, JobState.CANCELLED)
    elif job.state is JobState.PAUSING:
        _settle(session, job)
        job.worker = None
        _move(session, job, JobState.PAUSED)
    else:
        return False
    return True


def _queue_again(session: Session, job: Job) -> None:
    job.available_at = func.clock_timestamp()
    _move(session, job, JobState.QUEUED, **{"from": job.state})


def _requeue(session: Session, job: Job, reason: str, delay_seconds: float) -> None:
    _settle(session, job)
    job.worker = None
    job.available_at = func.clock_timestamp() + timedelta(seconds=delay_seconds)
    _move(session, job, JobState.QUEUED, reason=reason)


def _crashed(session: Session, job: Job, code: str, detail: str, max_failures: int, backoff_seconds: float) -> None:
    if _wound_down(session, job):
        return
    job.failures += 1
    if job.failures >= max_failures:
        _fail(session, job, code, f"{detail}, for the {job.failures}. time")
    else:
        _requeue(session, job, f"{code}: {detail}", backoff_seconds * 2 ** (job.failures - 1))
