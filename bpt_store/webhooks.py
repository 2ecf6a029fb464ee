"""Webhook endpoints: where a customer wishes to be told of what happens, and the secrets it is signed with.

One is disabled when it says that it is gone, or when all has failed for days. Nothing is kept for it then; what waited
goes on when it is enabled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bpt_store import ids, webhook_events, webhook_secrets
from bpt_store.errors import Conflict, LimitReached, NotFound
from bpt_store.models import WebhookDelivery, WebhookEndpoint
from bpt_store.webhook_events import EventType

MOST_ENDPOINTS = 10  # of one customer
OLD_SECRET_HOURS = 24.0


def create(
    session: Session, customer_id: UUID, url: str, events: Sequence[EventType] = (), description: str = ""
) -> WebhookEndpoint:
    """The URL has been checked (see addresses.py). LimitReached `webhook_limit`."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"bpt webhooks {customer_id}"))))
    there = select(func.count()).where(WebhookEndpoint.customer_id == customer_id)
    if session.scalars(there).one() >= MOST_ENDPOINTS:
        raise LimitReached(f"a customer has at most {MOST_ENDPOINTS} webhook endpoints", code="webhook_limit")
    endpoint = WebhookEndpoint(
        customer_id=customer_id,
        url=url,
        events=_names(events),
        description=description,
        secret=webhook_secrets.new(),
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get(session: Session, endpoint_id: UUID, *, lock: bool = False) -> WebhookEndpoint:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
    endpoint = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if endpoint is None:
        raise NotFound(f"there is no {ids.public(ids.WEBHOOK, endpoint_id)!r}")
    return endpoint


def update(
    session: Session,
    endpoint_id: UUID,
    *,
    url: str | None = None,
    events: Sequence[EventType] | None = None,
    description: str | None = None,
) -> WebhookEndpoint:
    """What is None stays. What waits goes to the new URL, which has been checked."""
    endpoint = get(session, endpoint_id, lock=True)
    if url is not None:
        endpoint.url = url
    if events is not None:
        endpoint.events = _names(events)
    if description is not None:
        endpoint.description = description
    session.flush()
    return endpoint


def rotate_secret(
    session: Session, endpoint_id: UUID, *, old_secret_hours: float = OLD_SECRET_HOURS
) -> WebhookEndpoint:
    """A new secret; for so long all is signed with the one before as well. One older than that ends now."""
    endpoint = get(session, endpoint_id, lock=True)
    endpoint.old_secret, endpoint.secret = endpoint.secret, webhook_secrets.new()
    endpoint.old_secret_until = func.now() + timedelta(hours=old_secret_hours)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def enable(session: Session, endpoint_id: UUID) -> WebhookEndpoint:
    """What waited is sent at once. An endpoint that is not disabled stays as it is."""
    endpoint = get(session, endpoint_id, lock=True)
    if endpoint.disabled_at is not None:
        endpoint.disabled_at = endpoint.disabled_reason = endpoint.failing_since = None
        session.flush()
    return endpoint


def test(session: Session, endpoint_id: UUID) -> WebhookDelivery:
    """An event of its own for this endpoint. Conflict `webhook_disabled`."""
    endpoint = get(session, endpoint_id, lock=True)
    if endpoint.disabled_at is not None:
        raise Conflict(f"the endpoint is disabled: {endpoint.disabled_reason}", code="webhook_disabled")
    data = {"id": ids.public(ids.WEBHOOK, endpoint_id)}
    delivery_id = webhook_events.emit_to(session, endpoint.customer_id, endpoint_id, EventType.TEST, data)
    return session.get_one(WebhookDelivery, delivery_id)


def delete(session: Session, endpoint_id: UUID) -> None:
    """With its deliveries."""
    session.delete(get(session, endpoint_id))
    session.flush()


def _names(events: Sequence[EventType]) -> list[str]:
    return sorted({str(event) for event in events})
