"""Webhook endpoints and deliveries as frozen dataclasses; see models.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from bpt_client.models import Json


@dataclass(frozen=True)
class WebhookEndpoint:
    """Without `events` it is told of all. `secret` is shown once, in the answers that create and rotate it."""

    id: str
    url: str
    created_at: datetime
    events: tuple[str, ...] = ()
    description: str = ""
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    secret: str | None = field(default=None, repr=False)  # must not end up in a log by way of repr


@dataclass(frozen=True)
class WebhookDelivery:
    """`state` is "pending", "delivered" or "dead"; `event` is what the endpoint sees as `webhook-id`."""

    id: str
    endpoint: str
    event: str
    type: str
    state: str
    attempts: int
    created_at: datetime
    data: Json = field(default_factory=dict)
    next_at: datetime | None = None
    last_status: int | None = None
    last_error: str | None = None
    delivered_at: datetime | None = None
