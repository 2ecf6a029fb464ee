"""The audit log: a customer reads his own, an administrator anybody's, also after a deletion."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from sqlalchemy.orm import Session

from api.customer_schemas import AuditEntry
from api.deps import AdminSession, After, AuditReadSession, Limit, customer_of, require
from api.problems import responses
from api.schemas import Moment, Page, PlainText
from api.turns import OneTurnRoute
from bpt_store import audit, ids, models
from bpt_store.audit import Action, Filters
from bpt_store.customers import Identity, Scope
from bpt_store.paging import page

router = APIRouter(prefix="/v1", tags=["audit-log"], route_class=OneTurnRoute)


def _filters(
    action: Annotated[Action | None, Query(description="only this action")] = None,
    resource: Annotated[PlainText | None, Query(max_length=100, description="only about this one, by its id")] = None,
    actor: Annotated[str | None, Query(max_length=100, description="only by this key (key_...)")] = None,
    since: Annotated[Moment | None, Query(description="RFC 3339; not before")] = None,
    until: Annotated[Moment | None, Query(description="RFC 3339; before")] = None,
) -> Filters:
    return Filters(action, resource, ids.parse(ids.KEY, actor) if actor else None, since, until)


FiltersDep = Annotated[Filters, Depends(_filters)]


@router.get(
    "/audit-log",
    summary="List what was done in the name of the customer, or to him by administrators, newest first",
    responses=responses("not_found"),
)
def list_audit_log(
    session: AuditReadSession,
    identity: Annotated[Identity, Depends(require(Scope.AUDIT_READ))],
    filters: FiltersDep,
    limit: Limit = 20,
    after: After = None,
) -> Page[AuditEntry]:
    return page_of(session, customer_of(identity), filters, limit, after)


@router.get(
    "/customers/{customer_id}/audit-log",
    summary="List the audit log of a customer; it stays when he is deleted",
    responses=responses("not_found"),
)
def list_customer_audit_log(
    customer_id: str, session: AdminSession, filters: FiltersDep, limit: Limit = 20, after: After = None
) -> Page[AuditEntry]:
    return page_of(session, ids.parse(ids.CUSTOMER, customer_id), filters, limit, after)


def page_of(
    session: Session, customer_id: UUID | None, filters: Filters, limit: int, after: str | None
) -> Page[AuditEntry]:
    cursor = ids.parse(ids.AUDIT, after) if after else None
    rows, has_more = page(session, audit.entries(customer_id, filters), models.AuditEntry.id, cursor, limit)
    data = [AuditEntry.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)
