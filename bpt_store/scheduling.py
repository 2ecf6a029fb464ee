"""Who is next: fair shares between customers, priorities within one, a limit on what a customer has running.

Start-time fair queueing (Goyal, Vin and Cheng 1996) over the seconds that workers have worked: whoever was `served`
least, in seconds divided by his weight, comes first. A claim begins where the customer's last one ended or, if he had
nothing waiting for a while, where the others are by now: being away earns no credit. Nobody starves, since everybody
who is served moves on. What a job takes is known only at its end; until then a claim counts as EXPECTED_SECONDS.

A claim costs the same with ten jobs waiting and with a hundred thousand: it reads two indexes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ColumnElement, ScalarSelect, and_, case, false, func, or_, select, update
from sqlalchemy.orm import Session

from bpt_store.models import TERMINAL_STATES, Customer, Job, JobKind, JobState, QueueShare

# What the `payload` of a job means. Whoever changes it so that a worker of before would misread it adds one: during an
# upgrade such a job waits for a worker that knows it, and other jobs do not. A payload names the `format` it needs, and
# is of the first where it names none.
FIRST_FORMAT = 1
REPRODUCING_FORMAT = 2  # a tuning job with `reproduces` publishes nothing
PAYLOAD_FORMAT = 2  # the newest that is known here

EXPECTED_SECONDS = 60.0
_RECENT_JOBS = 20


class Priority(StrEnum):
    """Among the jobs of one customer; between customers it says nothing."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def number(self) -> int:
        """As jobs are ordered by it."""
        return list(Priority).index(self) - 1

    @classmethod
    def of(cls, number: int) -> Priority:
        return list(cls)[number + 1]


def choose(session: Session, kind: JobKind, running_limit: int | None = None) -> UUID | None:
    """The job to do next (system session), locked until it is claimed; None if there is none to be had.

    `running_limit` is for customers that have none of their own.
    """
    # First who is not being served at this moment; then, waiting, everybody: two workers and one customer are common.
    for skip_locked in (True, False):
        turn = session.execute(
            select(QueueShare.customer_id, Customer.weight)
            .join(Customer, Customer.id == QueueShare.customer_id)
            .where(QueueShare.kind == kind, QueueShare.queued > 0, _may_run(running_limit), _has_available_job())
            .order_by(QueueShare.served, QueueShare.customer_id)
            .limit(1)
            .with_for_update(of=QueueShare, skip_locked=skip_locked)
        ).one_or_none()
        if turn is not None:
            break
    else:
        return None
    chosen: UUID | None = session.scalar(
        select(Job.id)
        .where(Job.customer_id == turn.customer_id, Job.kind == kind, _is_available())
        .order_by(Job.priority.desc(), Job.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if chosen is not None:
        began = func.greatest(QueueShare.served, _now(kind))
        session.execute(
            update(QueueShare)
            .where(QueueShare.customer_id == turn.customer_id, QueueShare.kind == kind)
            .values(began=began, served=began + EXPECTED_SECONDS / turn.weight)
        )
    return chosen


def settle(session: Session, customer_id: UUID, kind: JobKind, worked_seconds: float) -> None:
    """An attempt has ended: what it took replaces what was expected."""
    weight = select(Customer.weight).where(Customer.id == customer_id).scalar_subquery()
    session.execute(
        update(QueueShare)
        .where(QueueShare.customer_id == customer_id, QueueShare.kind == kind)
        .values(served=QueueShare.served + (worked_seconds - EXPECTED_SECONDS) / weight)
    )


class Reason(StrEnum):
    """Why a job waits."""

    BACKOFF = "backoff"  # it crashed, and is tried again after a pause
    RUNNING_LIMIT = "running_limit"  # its customer has as many running as he may
    BEHIND_OTHERS = "behind_others"
    WORKERS_BUSY = "workers_busy"  # it is the next one
    NO_WORKER = "no_worker"  # it is the next one, and nobody works on its kind


@dataclass(frozen=True)
class Waiting:
    """`ahead` jobs are likely to be claimed before. `start_in_seconds` is None where nothing has been measured yet."""

    reason: Reason
    ahead: int
    start_in_seconds: float | None


def waiting(session: Session, job: Job, running_limit: int | None = None) -> Waiting:
    """Where a queued job stands, as of now (system session): who comes later may yet come before it."""
    share = session.execute(
        select(QueueShare.served, QueueShare.running, Customer.weight, Customer.running_jobs_limit)
        .join(Customer, Customer.id == QueueShare.customer_id)
        .where(QueueShare.customer_id == job.customer_id, QueueShare.kind == job.kind)
    ).one()
    own = _own_before(session, job)
    begins = func.greatest(share.served, _now(job.kind)) + own * EXPECTED_SECONDS / share.weight
    others = _others_before(session, job, begins)
    limit = share.running_jobs_limit if share.running_jobs_limit is not None else running_limit
    running = session.scalar(select(func.coalesce(func.sum(QueueShare.running), 0)).where(QueueShare.kind == job.kind))
    workers = int(running or 0)
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    if job.available_at > now:
        reason = Reason.BACKOFF
    elif limit is not None and share.running >= limit:
        reason = Reason.RUNNING_LIMIT
    elif own + others:
        reason = Reason.BEHIND_OTHERS
    else:
        reason = Reason.WORKERS_BUSY if workers else Reason.NO_WORKER
    usual = _usual_seconds(session, job.kind)
    start = None
    if usual is not None and workers:
        start = max((own + others + 1) * usual / workers, (job.available_at - now).total_seconds())
    return Waiting(reason, own + others, start)


# --- queues ------------------------------------------------------------------------------------------------------


def kinds_waiting(session: Session, older_than_seconds: float) -> list[JobKind]:
    """Kinds of which a job could have been claimed for so long and was not; those of suspended customers wait."""
    before = func.clock_timestamp() - timedelta(seconds=older_than_seconds)
    # For each kind as far as the first one, however many there are.
    waiting = and_(Job.state == JobState.QUEUED, Job.available_at < before, _is_of_active_customer())
    waits = [select(Job.id).where(Job.kind == kind, waiting).exists() for kind in JobKind]
    return [kind for kind, found in zip(JobKind, session.execute(select(*waits)).one(), strict=True) if found]


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


# --- inside ----------------------------------------------------------------------------------------------------


def _is_available() -> ColumnElement[bool]:
    known = func.coalesce(Job.payload["format"].as_integer(), 1) <= PAYLOAD_FORMAT
    return and_(Job.state == JobState.QUEUED, Job.available_at <= func.now(), known)


def _has_available_job() -> ColumnElement[bool]:
    mine = and_(Job.customer_id == QueueShare.customer_id, Job.kind == QueueShare.kind)
    # A subquery of one row, not EXISTS: PostgreSQL would make a join of it, and read all that waits.
    first = select(Job.id).where(mine, _is_available()).limit(1).correlate(QueueShare).scalar_subquery()
    return first.is_not(None)


def _is_of_active_customer() -> ColumnElement[bool]:
    # Asked job by job, as above, until one is found.
    active = select(Customer.id).where(Customer.id == Job.customer_id, Customer.suspended_at.is_(None))
    return active.correlate(Job).scalar_subquery().is_not(None)


def _may_run(running_limit: int | None) -> ColumnElement[bool]:
    limit = func.coalesce(Customer.running_jobs_limit, running_limit)
    # One condition: of `suspended_at IS NULL` by itself PostgreSQL thinks that hardly anybody is, and sorts them all.
    is_suspended = Customer.suspended_at.is_not(None)
    return case((is_suspended, false()), else_=or_(limit.is_(None), QueueShare.running < limit))


def _now(kind: JobKind) -> ScalarSelect[float]:
    """Virtual time: where the last claims began."""
    share = select(func.coalesce(func.max(QueueShare.began), 0.0)).where(QueueShare.kind == kind)
    return share.correlate(None).scalar_subquery()


def _own_before(session: Session, job: Job) -> int:
    earlier = or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.created_at < job.created_at))
    mine = and_(Job.customer_id == job.customer_id, Job.kind == job.kind, Job.state == JobState.QUEUED)
    return session.scalar(select(func.count()).where(mine, earlier)) or 0


def _others_before(session: Session, job: Job, begins: ColumnElement[float]) -> int:
    """Turns that the others have until the virtual time at which this job begins, as far as they have jobs."""
    away = begins - func.greatest(QueueShare.served, _now(job.kind))
    turns = func.ceil(away * Customer.weight / EXPECTED_SECONDS)
    before = case((turns > 0, func.least(turns, QueueShare.queued)), else_=0)
    total = session.scalar(
        select(func.sum(before))
        .join(Customer, Customer.id == QueueShare.customer_id)
        .where(QueueShare.kind == job.kind, QueueShare.queued > 0, QueueShare.customer_id != job.customer_id)
    )
    return int(total or 0)


def _usual_seconds(session: Session, kind: JobKind) -> float | None:
    """What the newest jobs that succeeded took."""
    newest = (
        select(Job.worked_seconds.label("seconds"))
        .where(Job.kind == kind, Job.state == JobState.SUCCEEDED)
        .order_by(Job.id.desc())
        .limit(_RECENT_JOBS)
        .subquery()
    )
    usual = session.scalar(select(func.avg(newest.c.seconds)))
    return None if usual is None else float(usual)
