"""What webhook endpoints were sent, and sending it once more."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import After, Limit, WebhooksReadSession, WebhooksWriteSession
from api.idempotency import OnceRoute
from api.problems import responses
from api.schemas import Page
from api.webhook_schemas import DeadReplay, Replayed, WebhookDelivery
from bpt_store import audit, ids, models, webhook_deliveries, webhooks
from bpt_store.audit import Action
from bpt_store.models import DeliveryState
from bpt_store.paging import page
from bpt_store.webhook_events import EventType

router = APIRouter(prefix="/v1/webhook-endpoints/{endpoint_id}/deliveries", tags=["webhooks"], route_class=OnceRoute)


@router.get("", summary="List what a webhook endpoint was sent, or is to be sent", responses=responses("not_found"))
def list_webhook_deliveries(
    endpoint_id: str,
    session: WebhooksReadSession,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[DeliveryState | None, Query(description="only deliveries in this state")] = None,
    event_type: Annotated[EventType | None, Query(alias="type", description="only events of this type")] = None,
) -> Page[WebhookDelivery]:
    endpoint = webhooks.get(session, ids.parse(ids.WEBHOOK, endpoint_id))
    cursor = ids.parse(ids.DELIVERY, after) if after else None
    query = webhook_deliveries.of_endpoint(endpoint.id, state, event_type)
    rows, has_more = page(session, query, models.WebhookDelivery.id, cursor, limit)
    data = [WebhookDelivery.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{delivery_id}", summary="Show a delivery", responses=responses("not_found"))
def get_webhook_delivery(endpoint_id: str, delivery_id: str, session: WebhooksReadSession) -> WebhookDelivery:
    endpoint, delivery = ids.parse(ids.WEBHOOK, endpoint_id), ids.parse(ids.DELIVERY, delivery_id)
    return WebhookDelivery.of(webhook_deliveries.get(session, endpoint, delivery))


@router.post(
    "/replay",
    summary="Send all that are dead once more, as far as their events are not older than a time",
    responses=responses("not_found"),
)
def replay_dead_webhook_deliveries(endpoint_id: str, body: DeadReplay, session: WebhooksWriteSession) -> Replayed:
    endpoint = webhooks.get(session, ids.parse(ids.WEBHOOK, endpoint_id))
    deliveries = webhook_deliveries.replay_dead(session, endpoint.id, body.since)
    audit.record(session, Action.WEBHOOK_REPLAYED, endpoint_id, after={"deliveries": deliveries})
    return Replayed(deliveries=deliveries)


@router.post(
    "/{delivery_id}/replay",
    summary="Send a delivery once more, whatever has become of it",
    responses=responses("not_found"),
)
def replay_webhook_delivery(endpoint_id: str, delivery_id: str, session: WebhooksWriteSession) -> WebhookDelivery:
    endpoint, delivery = ids.parse(ids.WEBHOOK, endpoint_id), ids.parse(ids.DELIVERY, delivery_id)
    row = webhook_deliveries.replay(session, endpoint, delivery)
    audit.record(session, Action.WEBHOOK_REPLAYED, endpoint_id, after={"delivery": delivery_id})
    return WebhookDelivery.of(row)
