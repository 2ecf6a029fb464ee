"""Customers and their API keys; administrators' keys only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.customer_schemas import ApiKey, ApiKeyCreate, ApiKeyRotate, Customer, CustomerChange, CustomerCreate
from api.deps import AdminSession, After, Limit, ServicesDep, ring_after_commit
from api.idempotency import OnceRoute
from api.problems import responses
from api.schemas import Page
from bpt_store import audit, customers, ids, models
from bpt_store.audit import Action, Fact
from bpt_store.models import JobKind
from bpt_store.paging import page

router = APIRouter(prefix="/v1", route_class=OnceRoute)


@router.post(
    "/customers", status_code=201, tags=["customers"], summary="Create a customer", responses=responses("name_taken")
)
def create_customer(body: CustomerCreate, session: AdminSession) -> Customer:
    customer = customers.create(session, body.name)
    _record(session, Action.CUSTOMER_CREATED, customer.id)
    return Customer.of(customer)


@router.get("/customers", tags=["customers"], summary="List customers", responses=responses("not_found"))
def list_customers(session: AdminSession, limit: Limit = 20, after: After = None) -> Page[Customer]:
    cursor = ids.parse(ids.CUSTOMER, after) if after else None
    rows, has_more = page(session, select(models.Customer), models.Customer.id, cursor, limit)
    data = [Customer.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/customers/{customer_id}", tags=["customers"], summary="Show a customer", responses=responses("not_found"))
def get_customer(customer_id: str, session: AdminSession) -> Customer:
    return Customer.of(customers.get(session, ids.parse(ids.CUSTOMER, customer_id)))


@router.patch(
    "/customers/{customer_id}",
    tags=["customers"],
    summary="Rename a customer; change his share, limits and quotas",
    responses=responses("not_found", "name_taken"),
)
def change_customer(customer_id: str, body: CustomerChange, session: AdminSession) -> Customer:
    identifier, changes = ids.parse(ids.CUSTOMER, customer_id), body.changes()
    old = customers.get(session, identifier)
    before = {name: getattr(old, name) for name in changes}
    customer = customers.change(session, identifier, changes)
    renamed = {"renamed": True} if before.pop("name", customer.name) != customer.name else {}
    _record(session, Action.CUSTOMER_CHANGED, identifier, before, {name: changes[name] for name in before} | renamed)
    return Customer.of(customer)


@router.post(
    "/customers/{customer_id}/suspend",
    tags=["customers"],
    summary="Refuse a customer's keys from now on, and let his queued jobs wait; what runs comes to its end",
    responses=responses("not_found"),
)
def suspend_customer(customer_id: str, session: AdminSession) -> Customer:
    customer = customers.suspend(session, ids.parse(ids.CUSTOMER, customer_id))
    _record(session, Action.CUSTOMER_SUSPENDED, customer.id)
    return Customer.of(customer)


@router.post(
    "/customers/{customer_id}/resume",
    tags=["customers"],
    summary="End a suspension: all is as it was before",
    responses=responses("not_found"),
)
def resume_customer(customer_id: str, session: AdminSession) -> Customer:
    customer = customers.resume(session, ids.parse(ids.CUSTOMER, customer_id))
    _record(session, Action.CUSTOMER_RESUMED, customer.id)
    for kind in JobKind:
        ring_after_commit(session, kind)
    return Customer.of(customer)


@router.delete(
    "/customers/{customer_id}",
    status_code=204,
    tags=["customers"],
    summary="Delete a customer with all that is his, for good; running jobs stop",
    responses=responses("not_found", "name_mismatch"),
)
def delete_customer(
    customer_id: str,
    services: ServicesDep,
    session: AdminSession,
    name: Annotated[str, Query(description="the customer's name, to confirm that this one is meant")],
) -> None:
    settings, identifier = services.settings, ids.parse(ids.CUSTOMER, customer_id)
    customers.delete(
        session,
        identifier,
        name,
        # The longest that a lease or the request of an upload can last.
        look_again_seconds=max(settings.lease_seconds, settings.upload_expiry_seconds),
    )
    _record(session, Action.CUSTOMER_DELETED, identifier)


@router.post(
    "/api-keys",
    status_code=201,
    tags=["api-keys"],
    summary="Create an API key of a customer; the reply shows its token once",
    responses=responses("not_found"),
)
def create_api_key(body: ApiKeyCreate, session: AdminSession) -> ApiKey:
    customer = customers.get(session, ids.parse(ids.CUSTOMER, body.customer))
    key, token = customers.create_key(session, customer.id, body.name, body.scopes, body.expires_at)
    _record_key(session, Action.KEY_CREATED, key, after={"scopes": [*body.scopes], "expires_at": body.expires_at})
    return ApiKey.of(key, token)


@router.get("/api-keys", tags=["api-keys"], summary="List a customer's API keys", responses=responses("not_found"))
def list_api_keys(
    session: AdminSession, customer: str = Query(description="cus_..."), limit: Limit = 20, after: After = None
) -> Page[ApiKey]:
    owner = customers.get(session, ids.parse(ids.CUSTOMER, customer))
    cursor = ids.parse(ids.KEY, after) if after else None
    query = select(models.ApiKey).where(models.ApiKey.customer_id == owner.id)
    rows, has_more = page(session, query, models.ApiKey.id, cursor, limit)
    data = [ApiKey.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/api-keys/{key_id}", tags=["api-keys"], summary="Show an API key", responses=responses("not_found"))
def get_api_key(key_id: str, session: AdminSession) -> ApiKey:
    return ApiKey.of(customers.get_key(session, ids.parse(ids.KEY, key_id)))


@router.post(
    "/api-keys/{key_id}/rotate",
    status_code=201,
    tags=["api-keys"],
    summary="Replace an API key by a new one that may do the same; for a while both hold",
    responses=responses("not_found", "key_ended"),
)
def rotate_api_key(key_id: str, session: AdminSession, body: Annotated[ApiKeyRotate | None, Body()] = None) -> ApiKey:
    overlap_seconds = (body or ApiKeyRotate()).overlap_seconds
    key, token = customers.rotate_key(session, ids.parse(ids.KEY, key_id), overlap_seconds=overlap_seconds)
    facts: dict[str, Fact] = {"key": ids.public(ids.KEY, key.id), "overlap_seconds": overlap_seconds}
    _record_key(session, Action.KEY_ROTATED, customers.get_key(session, ids.parse(ids.KEY, key_id)), after=facts)
    return ApiKey.of(key, token)


@router.post(
    "/api-keys/{key_id}/revoke",
    tags=["api-keys"],
    summary="Revoke an API key, at once and for good",
    responses=responses("not_found"),
)
def revoke_api_key(key_id: str, session: AdminSession) -> ApiKey:
    key = customers.get_key(session, ids.parse(ids.KEY, key_id))
    assert key.customer_id is not None
    revoked = customers.revoke_key(session, key.customer_id, key.id)
    _record_key(session, Action.KEY_REVOKED, revoked)
    return ApiKey.of(revoked)


def _record(
    session: Session,
    action: Action,
    customer_id: UUID,
    before: Mapping[str, Fact] | None = None,
    after: Mapping[str, Fact] | None = None,
) -> None:
    resource = ids.public(ids.CUSTOMER, customer_id)
    audit.record(session, action, resource, customer_id=customer_id, before=before, after=after)


def _record_key(
    session: Session, action: Action, key: models.ApiKey, *, after: Mapping[str, Fact] | None = None
) -> None:
    audit.record(session, action, ids.public(ids.KEY, key.id), customer_id=key.customer_id, after=after)
