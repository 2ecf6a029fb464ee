"""What webhook endpoints are told of, written in the transaction in which it happens: both are there, or neither.

Who has no endpoint for it leaves no row. worker/webhooks.py sends what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, delete, func, select, text
from sqlalchemy.orm import Session

from bpt_store.models import WebhookEvent

_FORGOTTEN_AT_ONCE = 1_000


class EventType(StrEnum):
    """What can happen: the resource, and what became of it."""

    DATASET_READY = "dataset.ready"
    DATASET_FAILED = "dataset.failed"
    TUNING_JOB_SUCCEEDED = "tuning_job.succeeded"
    TUNING_JOB_FAILED = "tuning_job.failed"
    TUNING_JOB_CANCELLED = "tuning_job.cancelled"
    TUNING_JOB_PAUSED = "tuning_job.paused"
    BATCH_PREDICTION_SUCCEEDED = "batch_prediction.succeeded"
    BATCH_PREDICTION_FAILED = "batch_prediction.failed"
    BATCH_PREDICTION_CANCELLED = "batch_prediction.cancelled"
    VERSION_PUBLISHED = "prompt_set.version_published"
    VERSION_QUARANTINED = "prompt_set.version_quarantined"
    ALIAS_MOVED = "prompt_set.alias_moved"
    QUOTA_REACHED = "quota.reached"
    TEST = "webhook.test"


# One statement. An endpoint that is just being deleted is waited for, so that its end is not this transaction's, too.
_EMIT = text("""
    WITH receivers AS MATERIALIZED (
        SELECT id FROM webhook_endpoints
        WHERE customer_id = :customer_id AND disabled_at IS NULL
        AND CASE WHEN :endpoint_id IS NULL THEN events = '{}' OR :type = ANY (events) ELSE id = :endpoint_id END
        FOR KEY SHARE
    ), written AS (
        INSERT INTO webhook_events (customer_id, type, data, once)
        SELECT :customer_id, :type, :data, :once WHERE EXISTS (SELECT FROM receivers)
        ON CONFLICT (customer_id, once) DO NOTHING
        RETURNING id
    )
    INSERT INTO webhook_deliveries (customer_id, endpoint_id, event_id)
    SELECT :customer_id, receivers.id, written.id FROM receivers, written
    RETURNING id
""").bindparams(
    *(bindparam(name, type_=WebhookEvent.id.type) for name in ("customer_id", "endpoint_id")),
    *(bindparam(name, type_=WebhookEvent.type.type) for name in ("type", "once")),
    bindparam("data", type_=WebhookEvent.data.type),
)


def emit(session: Session, customer_id: UUID, event: EventType, data: Mapping[str, Any]) -> None:
    """For every endpoint of the customer's that wishes to know: ids, version numbers and states, no more."""
    _emit(session, customer_id, event, data)


def emit_once_a_day(session: Session, customer_id: UUID, event: EventType, data: Mapping[str, Any]) -> None:
    """As `emit`, if the same was not said already today (UTC)."""
    said = ", ".join(f"{name} {value}" for name, value in sorted(data.items()))
    _emit(session, customer_id, event, data, once=f"{event} {said} {datetime.now(UTC).date()}")


def emit_to(session: Session, customer_id: UUID, endpoint_id: UUID, event: EventType, data: Mapping[str, Any]) -> UUID:
    """For one endpoint, which is not disabled, whatever it wishes to know -> the delivery."""
    (delivery_id,) = _emit(session, customer_id, event, data, endpoint_id=endpoint_id)
    return delivery_id


def forget_old(session: Session, days: float) -> int:
    """Events of long ago, with their deliveries (system session) -> how many."""
    old = (
        select(WebhookEvent.id)
        .where(WebhookEvent.created_at < func.now() - timedelta(days=days))
        .limit(_FORGOTTEN_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    gone = delete(WebhookEvent).where(WebhookEvent.id.in_(old)).returning(WebhookEvent.id)
    return len(session.scalars(gone.execution_options(synchronize_session=False)).all())


def _emit(
    session: Session,
    customer_id: UUID,
    event: EventType,
    data: Mapping[str, Any],
    *,
    endpoint_id: UUID | None = None,
    once: str | None = None,
) -> list[UUID]:
    facts = {"type": str(event), "data": dict(data), "once": once}
    return list(session.scalars(_EMIT, {"customer_id": customer_id, "endpoint_id": endpoint_id, **facts}))
