"""Webhook endpoints: URLs of customers' that are told of what happens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy import select

from api.deps import (
    After,
    Limit,
    ServicesDep,
    WebhookSecretSession,
    WebhooksReadSession,
    WebhooksWriteSession,
    customer_of,
    require,
)
from api.idempotency import OnceRoute
from api.problems import responses
from api.schemas import Page
from api.webhook_schemas import (
    SecretRotation,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointCreate,
    WebhookEndpointUpdate,
)
from bpt_store import audit, ids, models, webhooks
from bpt_store.addresses import Outside
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.paging import page

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhooks"], route_class=OnceRoute)

Writer = Annotated[Identity, Depends(require(Scope.WEBHOOKS_WRITE))]


def _check_new(body: WebhookEndpointCreate, services: ServicesDep, _: Writer) -> None:
    """Before there is a transaction: names may be slow to look up."""
    Outside.of(services.settings).check(body.url)


def _check_changed(body: WebhookEndpointUpdate, services: ServicesDep, _: Writer) -> None:
    if body.url is not None:
        Outside.of(services.settings).check(body.url)


@router.post(
    "",
    status_code=201,
    summary="Have a URL told of what happens; the reply shows its secret once",
    dependencies=[Depends(_check_new)],
    responses=responses("webhook_url_forbidden", "webhook_limit"),
)
def create_webhook_endpoint(
    body: WebhookEndpointCreate, response: Response, writer: Writer, session: WebhookSecretSession
) -> WebhookEndpoint:
    row = webhooks.create(session, customer_of(writer), body.url, body.events, body.description)
    audit.record(session, Action.WEBHOOK_CREATED, ids.public(ids.WEBHOOK, row.id))
    response.headers["Location"] = f"/v1/webhook-endpoints/{ids.public(ids.WEBHOOK, row.id)}"
    return WebhookEndpoint.of(row, row.secret)


@router.get("", summary="List webhook endpoints", responses=responses("not_found"))
def list_webhook_endpoints(
    session: WebhooksReadSession, limit: Limit = 20, after: After = None
) -> Page[WebhookEndpoint]:
    cursor = ids.parse(ids.WEBHOOK, after) if after else None
    rows, has_more = page(session, select(models.WebhookEndpoint), models.WebhookEndpoint.id, cursor, limit)
    data = [WebhookEndpoint.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{endpoint_id}", summary="Show a webhook endpoint", responses=responses("not_found"))
def get_webhook_endpoint(endpoint_id: str, session: WebhooksReadSession) -> WebhookEndpoint:
    return WebhookEndpoint.of(webhooks.get(session, ids.parse(ids.WEBHOOK, endpoint_id)))


@router.patch(
    "/{endpoint_id}",
    summary="Change a webhook endpoint; what waits for it goes to the new URL",
    dependencies=[Depends(_check_changed)],
    responses=responses("not_found", "webhook_url_forbidden"),
)
def update_webhook_endpoint(
    endpoint_id: str, body: WebhookEndpointUpdate, session: WebhooksWriteSession
) -> WebhookEndpoint:
    changes = body.model_dump(exclude_none=True)
    row = webhooks.update(session, ids.parse(ids.WEBHOOK, endpoint_id), **changes)
    audit.record(session, Action.WEBHOOK_CHANGED, endpoint_id)
    return WebhookEndpoint.of(row)


@router.delete(
    "/{endpoint_id}",
    status_code=204,
    summary="Delete a webhook endpoint with its deliveries",
    responses=responses("not_found"),
)
def delete_webhook_endpoint(endpoint_id: str, session: WebhooksWriteSession) -> None:
    webhooks.delete(session, ids.parse(ids.WEBHOOK, endpoint_id))
    audit.record(session, Action.WEBHOOK_DELETED, endpoint_id)


@router.post(
    "/{endpoint_id}/rotate-secret",
    summary="Give a webhook endpoint a new secret; the reply shows it once, and the old one holds for a while",
    responses=responses("not_found"),
)
def rotate_webhook_secret(endpoint_id: str, body: SecretRotation, session: WebhookSecretSession) -> WebhookEndpoint:
    endpoint = ids.parse(ids.WEBHOOK, endpoint_id)
    row = webhooks.rotate_secret(session, endpoint, old_secret_hours=body.old_secret_hours)
    audit.record(session, Action.WEBHOOK_SECRET_ROTATED, endpoint_id)
    return WebhookEndpoint.of(row, row.secret)


@router.post(
    "/{endpoint_id}/enable",
    summary="Enable a webhook endpoint that was disabled; what waited is sent",
    responses=responses("not_found"),
)
def enable_webhook_endpoint(endpoint_id: str, session: WebhooksWriteSession) -> WebhookEndpoint:
    row = webhooks.enable(session, ids.parse(ids.WEBHOOK, endpoint_id))
    audit.record(session, Action.WEBHOOK_ENABLED, endpoint_id)
    return WebhookEndpoint.of(row)


@router.post(
    "/{endpoint_id}/test",
    status_code=201,
    summary="Send a webhook endpoint an event of the type `webhook.test`",
    responses=responses("not_found", "webhook_disabled"),
)
def test_webhook_endpoint(endpoint_id: str, session: WebhooksWriteSession) -> WebhookDelivery:
    row = webhooks.test(session, ids.parse(ids.WEBHOOK, endpoint_id))
    audit.record(session, Action.WEBHOOK_TESTED, endpoint_id)
    return WebhookDelivery.of(row)
