"""Events on their way to endpoints: pending -> delivered | dead, and back by a replay.

A claim counts an attempt and pushes `next_at` ahead, before anything is sent: until then nobody else tries, and then
somebody does, whatever has become of the attempt. So a delivery that is sent is sent at least once, and an endpoint
knows by `webhook-id` what it has had before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, case, func, select, update
from sqlalchemy.orm import Session

from bpt_store import ids
from bpt_store.errors import NotFound
from bpt_store.models import DeliveryState, WebhookDelivery, WebhookEndpoint, WebhookEvent

_JITTER = 0.2  # what failed together is not tried again together


@dataclass(frozen=True)
class Sending:
    """A claimed delivery, with all that is needed to send it."""

    delivery_id: UUID
    endpoint_id: UUID
    attempt: int
    url: str
    secrets: Sequence[str]
    event_id: UUID
    body: bytes

    @property
    def message_id(self) -> str:
        """The same for every attempt."""
        return ids.public(ids.EVENT, self.event_id)


def of_endpoint(
    endpoint_id: UUID, state: DeliveryState | None = None, event_type: str | None = None
) -> Select[WebhookDelivery]:
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    if event_type is not None:
        query = query.where(WebhookDelivery.event.has(WebhookEvent.type == event_type))
    return query


def get(session: Session, endpoint_id: UUID, delivery_id: UUID) -> WebhookDelivery:
    found = session.scalar(of_endpoint(endpoint_id).where(WebhookDelivery.id == delivery_id))
    if found is None:
        raise NotFound(f"there is no {ids.public(ids.DELIVERY, delivery_id)!r}")
    return found


def replay(session: Session, endpoint_id: UUID, delivery_id: UUID) -> WebhookDelivery:
    """Sent once more, as soon as may be, whatever has become of it; one that waits does not wait any longer."""
    delivery = get(session, endpoint_id, delivery_id)
    session.execute(_again().where(WebhookDelivery.id == delivery_id))
    session.refresh(delivery)
    return delivery


def replay_dead(session: Session, endpoint_id: UUID, since: datetime) -> int:
    """All that are dead and whose event is not older -> how many."""
    young = select(WebhookEvent.id).where(WebhookEvent.created_at >= since)
    dead = WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.state == DeliveryState.DEAD
    again = _again().where(*dead, WebhookDelivery.event_id.in_(young)).returning(WebhookDelivery.id)
    return len(session.scalars(again).all())


# --- the sender's side, system sessions ------------------------------------------------------------------------


def claim(
    session: Session, most: int, *, lease_seconds: float, most_of_endpoint: int, busy: Collection[UUID] = ()
) -> list[Sending]:
    """What is due, longest due first. Commit before anything is sent.

    Endpoints that are `busy` are left alone, and of one that fails a single delivery is tried at a time: whoever
    answers slowly, or not at all, makes the others wait as little as can be.
    """
    now = func.clock_timestamp()
    due = (
        select(WebhookDelivery.id, WebhookDelivery.next_at)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        .where(WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.next_at <= now)
        .order_by(WebhookDelivery.next_at)
        .limit(case((WebhookEndpoint.failing_since.is_(None), most_of_endpoint), else_=1))
        .with_for_update(skip_locked=True)
        .correlate(WebhookEndpoint)
        .lateral("due")
    )
    chosen = (
        select(due.c.id)
        .select_from(WebhookEndpoint)
        .join(due, due.c.id.is_not(None))
        .where(WebhookEndpoint.disabled_at.is_(None), WebhookEndpoint.id.not_in(busy))
        .order_by(due.c.next_at)
        .limit(most)
    )
    claimed = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(session.scalars(chosen).all()))
        .values(attempts=WebhookDelivery.attempts + 1, next_at=now + timedelta(seconds=lease_seconds))
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    )
    old_secret = case((WebhookEndpoint.old_secret_until > now, WebhookEndpoint.old_secret))
    facts = (
        select(WebhookDelivery.id, WebhookDelivery.attempts, WebhookEndpoint, WebhookEvent, old_secret)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.id.in_(session.scalars(claimed).all()))
        .order_by(WebhookDelivery.id)
    )
    return [
        Sending(
            delivery_id=delivery_id,
            endpoint_id=endpoint.id,
            attempt=attempt,
            url=endpoint.url,
            secrets=[endpoint.secret, *([old] if old else [])],
            event_id=event.id,
            body=_body(event),
        )
        for delivery_id, attempt, endpoint, event, old in session.execute(facts)
    ]


def delivered(session: Session, sending: Sending, status: int) -> None:
    """By whichever attempt, also one that had been given up."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == sending.delivery_id)
        .values(
            state=DeliveryState.DELIVERED,
            last_status=status,
            last_error=None,
            delivered_at=func.clock_timestamp(),
        )
    )
    session.execute(
        update(WebhookEndpoint)
        .where(WebhookEndpoint.id == sending.endpoint_id, WebhookEndpoint.failing_since.is_not(None))
        .values(failing_since=None)
    )


def failed(
    session: Session,
    sending: Sending,
    status: int | None,
    error: str,
    *,
    retry_seconds: Sequence[float],
    failing_days: float,
) -> None:
    """It is tried again after the pause that comes next, or dead. An endpoint that fails for too long is disabled."""
    is_last = sending.attempt > len(retry_seconds)
    pause = 0.0 if is_last else retry_seconds[sending.attempt - 1] * random.uniform(1, 1 + _JITTER)  # noqa: S311
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == sending.delivery_id, WebhookDelivery.attempts == sending.attempt)
        .where(WebhookDelivery.state == DeliveryState.PENDING)
        .values(
            state=DeliveryState.DEAD if is_last else DeliveryState.PENDING,
            last_status=status,
            last_error=error,
            next_at=func.clock_timestamp() + timedelta(seconds=pause),
        )
    )
    endpoint = session.scalar(
        select(WebhookEndpoint)
        .where(WebhookEndpoint.id == sending.endpoint_id, WebhookEndpoint.disabled_at.is_(None))
        .with_for_update(key_share=True)
    )
    if endpoint is None:
        return
    if endpoint.failing_since is None:
        endpoint.failing_since = func.clock_timestamp()
    elif session.scalar(select(endpoint.failing_since < func.clock_timestamp() - timedelta(days=failing_days))):
        _disable(endpoint, f"all has failed for {failing_days:g} days, last: {error}")


def gone(session: Session, sending: Sending) -> None:
    """The endpoint wishes to be told nothing any more. What waits for it waits until it is enabled again."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == sending.delivery_id, WebhookDelivery.attempts == sending.attempt)
        .values(last_status=410, last_error="the endpoint is gone", next_at=func.clock_timestamp())
    )
    endpoint = session.get(WebhookEndpoint, sending.endpoint_id, with_for_update={"key_share": True})
    if endpoint is not None:
        _disable(endpoint, "it answered 410 Gone")


def _disable(endpoint: WebhookEndpoint, reason: str) -> None:
    endpoint.disabled_at, endpoint.disabled_reason = func.clock_timestamp(), reason


def _again() -> Any:
    return (
        update(WebhookDelivery)
        .values(
            state=DeliveryState.PENDING,
            attempts=case((WebhookDelivery.state == DeliveryState.PENDING, WebhookDelivery.attempts), else_=0),
            next_at=func.clock_timestamp(),
            delivered_at=None,
        )
        .execution_options(synchronize_session=False)
    )


def _body(event: WebhookEvent) -> bytes:
    """The same bytes for every attempt: they are what is signed."""
    told = {"type": event.type, "timestamp": event.created_at.isoformat(), "data": event.data}
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
