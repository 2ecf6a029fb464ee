"""Webhook endpoints and deliveries over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, Field

from api.schemas import Moment, PlainText, Request
from bpt_store import ids, models
from bpt_store.models import DeliveryState
from bpt_store.webhook_events import EventType
from bpt_store.webhooks import OLD_SECRET_HOURS

Url = Annotated[str, Field(max_length=2_048, examples=["https://example.com/hooks/bpt"])]
Events = Annotated[
    list[EventType], Field(max_length=len(EventType), description="of which types it is told; none: of all")
]
Description = Annotated[PlainText, Field(max_length=200)]


class WebhookEndpointCreate(Request):
    url: Url
    events: Events = Field(default=[])
    description: Description = ""


class WebhookEndpointUpdate(Request):
    """What is absent stays as it is."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None


class SecretRotation(Request):
    old_secret_hours: float = Field(
        OLD_SECRET_HOURS,
        ge=0,
        le=24 * 30,
        strict=True,
        description="so long all is signed with the secret before as well",
    )


class WebhookEndpoint(BaseModel):
    """`secret` is there in the replies to creation and rotation and never again."""

    id: str
    url: str
    events: list[str]
    description: str
    failing_since: datetime | None = Field(description="since when no delivery has succeeded; null: the last one has")
    disabled_at: datetime | None
    disabled_reason: str | None
    created_at: datetime
    secret: str | None = Field(None, examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])

    @classmethod
    def of(cls, row: models.WebhookEndpoint, secret: str | None = None) -> Self:
        return cls(
            id=ids.public(ids.WEBHOOK, row.id),
            url=row.url,
            events=row.events,
            description=row.description,
            failing_since=row.failing_since,
            disabled_at=row.disabled_at,
            disabled_reason=row.disabled_reason,
            created_at=row.created_at,
            secret=secret,
        )


class WebhookDelivery(BaseModel):
    """An event on its way to an endpoint. `event` is what the endpoint sees as `webhook-id`."""

    id: str
    endpoint: str
    event: str
    type: str
    data: dict[str, object]
    state: DeliveryState
    attempts: int
    next_at: datetime | None = Field(description="when it is tried next; null once it is delivered or dead")
    last_status: int | None = Field(description="the HTTP status of the last answer; null where there was none")
    last_error: str | None
    delivered_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: models.WebhookDelivery) -> Self:
        return cls(
            id=ids.public(ids.DELIVERY, row.id),
            endpoint=ids.public(ids.WEBHOOK, row.endpoint_id),
            event=ids.public(ids.EVENT, row.event_id),
            type=row.event.type,
            data=row.event.data,
            state=row.state,
            attempts=row.attempts,
            next_at=row.next_at if row.state is DeliveryState.PENDING else None,
            last_status=row.last_status,
            last_error=row.last_error,
            delivered_at=row.delivered_at,
            created_at=row.created_at,
        )


class DeadReplay(Request):
    since: Moment = Field(
        description="all that are dead and whose event is not older", examples=["2026-01-02T00:00:00Z"]
    )


class Replayed(BaseModel):
    deliveries: int = Field(description="how many are sent once more")
