"""What a customer may keep. Nothing is counted up or down: use is the sum over what is there, so that what fails or
is deleted costs nothing from that moment on.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from bpt_store import webhook_events
from bpt_store.db import tell_of_refusal
from bpt_store.errors import LimitReached
from bpt_store.models import Customer, Dataset, DatasetState, DatasetVersion, Upload, UploadPart
from bpt_store.settings import Settings
from bpt_store.webhook_events import EventType


@dataclass(frozen=True)
class Limits:
    """Of the service, for customers that have none of their own."""

    datasets: int
    images: int
    stored_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.quota_datasets, settings.quota_images, settings.quota_bytes)


@dataclass(frozen=True)
class Use:
    """`images` counts those of each dataset's newest ready version, `stored_bytes` everything that is stored."""

    datasets: int
    images: int
    stored_bytes: int


def use(session: Session, customer_id: UUID) -> Use:
    """What a customer keeps at the moment, with what is being validated and with uploads that are not complete.

    An upload counts as the dataset it is to become, and for what it has announced, or sent if that is more.
    """
    datasets = select(func.count()).where(Dataset.customer_id == customer_id, Dataset.state != DatasetState.FAILED)
    unfinished = Upload.customer_id == customer_id, Upload.dataset_id.is_(None)
    coming = select(func.count()).where(*unfinished, Upload.intent.has_key("name"))
    images = select(func.sum(DatasetVersion.images)).join(
        Dataset,
        and_(
            Dataset.id == DatasetVersion.dataset_id,
            Dataset.latest == DatasetVersion.number,
            Dataset.customer_id == customer_id,
        ),
    )
    stored = select(func.sum(DatasetVersion.stored_bytes)).where(DatasetVersion.customer_id == customer_id)
    validating = select(func.sum(DatasetVersion.source_bytes)).where(
        DatasetVersion.customer_id == customer_id, DatasetVersion.source.is_not(None)
    )
    sent = select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == Upload.id).scalar_subquery()
    announced = func.coalesce(Upload.size_bytes, 0)
    arriving = select(func.sum(func.greatest(announced, func.coalesce(sent, 0)))).where(*unfinished)
    sums = (datasets, coming, images, stored, validating, arriving)
    row = session.execute(select(*(each.scalar_subquery() for each in sums))).one()
    amounts = [int(amount or 0) for amount in row]
    return Use(amounts[0] + amounts[1], amounts[2], sum(amounts[3:]))


def check(
    session: Session, customer_id: UUID, limits: Limits, *, datasets: int = 0, images: int = 0, stored_bytes: int = 0
) -> None:
    """LimitReached `quota_exceeded` where what is there and so much more would be too much.

    What the transaction has written already counts as there: give what is still to come. Others of the same customer
    wait until this transaction has ended, so that two do not take the same room.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"bpt quota {customer_id}"))))
    session.flush()
    now = use(session, customer_id)
    limits = _own(session, customer_id, limits)
    for noun, more, used, most in (
        ("datasets", datasets, now.datasets, limits.datasets),
        ("images", images, now.images, limits.images),
        ("bytes", stored_bytes, now.stored_bytes, limits.stored_bytes),
    ):
        if more and used + more > most:
            detail = f"{used:,} of {most:,} {noun} are in use; {more:,} more are too many"
            _tell(session, customer_id, noun)
            raise LimitReached(detail, code="quota_exceeded")


def _own(session: Session, customer_id: UUID, limits: Limits) -> Limits:
    columns = (Customer.quota_datasets, Customer.quota_images, Customer.quota_bytes)
    own = session.execute(select(*columns).where(Customer.id == customer_id)).one_or_none() or (None, None, None)
    given = (limits.datasets, limits.images, limits.stored_bytes)
    return Limits(*(default if mine is None else mine for mine, default in zip(own, given, strict=True)))


def _tell(session: Session, customer_id: UUID, noun: str) -> None:
    def emit(session: Session) -> None:
        webhook_events.emit_once_a_day(session, customer_id, EventType.QUOTA_REACHED, {"quota": noun})

    tell_of_refusal(session, emit)
