"""What customers have used, by the day (UTC): numbers that only grow, each added in the transaction of what it counts.

Images are counted as often as prompt sets were applied to them: those predicted online by the process that answered,
those of a batch prediction when it succeeds. Seconds are those of tuning and batch predictions, that workers worked; an
attempt counts on the day on which it ends. Stored bytes are what was kept when the day's sample was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Date, cast, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store import quotas
from bpt_store.models import Customer, JobKind, UsageDay

_SECONDS = {JobKind.TUNE: "tuning_seconds", JobKind.BATCH_PREDICT: "batch_seconds"}
_TODAY = cast(func.timezone("UTC", func.clock_timestamp()), Date)


def add(session: Session, customer_id: UUID, **amounts: float) -> None:
    """To today: `online_images`, `batch_images`, `tuning_seconds`, `batch_seconds`.

    The row stays locked until the transaction ends: whoever adds for several customers takes a transaction for each.
    """
    row = insert(UsageDay).values(customer_id=customer_id, day=_TODAY, **amounts)
    more = {name: getattr(UsageDay, name) + row.excluded[name] for name in amounts}
    session.execute(row.on_conflict_do_update(index_elements=["customer_id", "day"], set_=more))


def add_seconds(session: Session, customer_id: UUID, kind: JobKind, seconds: float) -> None:
    """Of a job of this kind; an ingest costs nothing."""
    if kind in _SECONDS and seconds:
        add(session, customer_id, **{_SECONDS[kind]: seconds})


def unsampled(session: Session, limit: int) -> Sequence[UUID]:
    """Customers of whom it is not known what they store today (system session)."""
    known = select(text("1")).where(
        UsageDay.customer_id == Customer.id, UsageDay.day == _TODAY, UsageDay.stored_bytes.is_not(None)
    )
    return session.scalars(select(Customer.id).where(~known.exists()).limit(limit)).all()


def sample(session: Session, customer_id: UUID) -> None:
    """Note what the customer stores; the first sample of a day stays."""
    stored_bytes = quotas.use(session, customer_id).stored_bytes
    row = insert(UsageDay).values(customer_id=customer_id, day=_TODAY, stored_bytes=stored_bytes)
    first = func.coalesce(UsageDay.stored_bytes, row.excluded.stored_bytes)
    session.execute(row.on_conflict_do_update(index_elements=["customer_id", "day"], set_={"stored_bytes": first}))


@dataclass(frozen=True)
class Span:
    """Both days are in; None is open. `customer_id` None: of everybody that the session sees."""

    first: date | None = None
    last: date | None = None
    customer_id: UUID | None = None


@dataclass(frozen=True)
class Cursor:
    """The row that was the last of a page."""

    day: date
    customer_id: UUID


def days(session: Session, span: Span, after: Cursor | None, limit: int) -> tuple[Sequence[UsageDay], bool]:
    """Up to `limit` rows after the cursor, the newest day first -> (rows, whether there are more)."""
    query = select(UsageDay)
    if span.first is not None:
        query = query.where(UsageDay.day >= span.first)
    if span.last is not None:
        query = query.where(UsageDay.day <= span.last)
    if span.customer_id is not None:
        query = query.where(UsageDay.customer_id == span.customer_id)
    if after is not None:
        query = query.where(tuple_(UsageDay.day, UsageDay.customer_id) < tuple_(after.day, after.customer_id))
    rows = session.scalars(query.order_by(UsageDay.day.desc(), UsageDay.customer_id.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
