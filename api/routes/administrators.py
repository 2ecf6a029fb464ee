"""Administrators' own keys, and what they did that is about no customer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Body
from sqlalchemy.orm import Session

from api.customer_schemas import AdminApiKeyCreate, ApiKey, ApiKeyRotate, AuditEntry
from api.deps import AdminSession, After, Limit
from api.idempotency import OnceRoute
from api.problems import responses
from api.routes.audit_log import FiltersDep, page_of
from api.schemas import Page
from bpt_store import administrators, audit, ids, models
from bpt_store.audit import Action, Fact
from bpt_store.customers import Scope
from bpt_store.paging import page

router = APIRouter(prefix="/v1/admin", tags=["administrators"], route_class=OnceRoute)


@router.post(
    "/api-keys",
    status_code=201,
    summary="Create an administrator's API key; the reply shows its token once",
    responses=responses(),
)
def create_admin_api_key(body: AdminApiKeyCreate, session: AdminSession) -> ApiKey:
    key, token = administrators.create_key(session, body.name, body.expires_at)
    _record(session, Action.KEY_CREATED, key, after={"scopes": [Scope.ADMIN], "expires_at": body.expires_at})
    return ApiKey.of(key, token)


@router.get("/api-keys", summary="List administrators' API keys", responses=responses("not_found"))
def list_admin_api_keys(session: AdminSession, limit: Limit = 20, after: After = None) -> Page[ApiKey]:
    cursor = ids.parse(ids.KEY, after) if after else None
    rows, has_more = page(session, administrators.keys(), models.ApiKey.id, cursor, limit)
    data = [ApiKey.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/api-keys/{key_id}", summary="Show an administrator's API key", responses=responses("not_found"))
def get_admin_api_key(key_id: str, session: AdminSession) -> ApiKey:
    return ApiKey.of(administrators.get_key(session, ids.parse(ids.KEY, key_id)))


@router.post(
    "/api-keys/{key_id}/rotate",
    status_code=201,
    summary="Replace an administrator's API key by a new one; for a while both hold",
    responses=responses("not_found", "key_ended", "last_admin_key"),
)
def rotate_admin_api_key(
    key_id: str, session: AdminSession, body: Annotated[ApiKeyRotate | None, Body()] = None
) -> ApiKey:
    overlap_seconds = (body or ApiKeyRotate()).overlap_seconds
    old = ids.parse(ids.KEY, key_id)
    key, token = administrators.rotate_key(session, old, overlap_seconds=overlap_seconds)
    facts: dict[str, Fact] = {"key": ids.public(ids.KEY, key.id), "overlap_seconds": overlap_seconds}
    _record(session, Action.KEY_ROTATED, administrators.get_key(session, old), after=facts)
    return ApiKey.of(key, token)


@router.post(
    "/api-keys/{key_id}/revoke",
    summary="Revoke an administrator's API key, at once and for good; not the last one that has no end",
    responses=responses("not_found", "last_admin_key"),
)
def revoke_admin_api_key(key_id: str, session: AdminSession) -> ApiKey:
    key = administrators.revoke_key(session, ids.parse(ids.KEY, key_id))
    _record(session, Action.KEY_REVOKED, key)
    return ApiKey.of(key)


@router.get(
    "/audit-log",
    summary="List what administrators did to their own keys, newest first",
    responses=responses("not_found"),
)
def list_admin_audit_log(
    session: AdminSession, filters: FiltersDep, limit: Limit = 20, after: After = None
) -> Page[AuditEntry]:
    return page_of(session, None, filters, limit, after)


def _record(session: Session, action: Action, key: models.ApiKey, *, after: Mapping[str, Fact] | None = None) -> None:
    audit.record(session, action, ids.public(ids.KEY, key.id), after=after)
