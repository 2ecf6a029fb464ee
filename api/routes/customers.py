"""Customers and their API keys; administrators' keys only."""

from __future__ import annotations

from fastapi import APIRouter, Query
from sqlalchemy import select

from api import schemas
from api.deps import AdminSession, After, Limit
from api.idempotency import OnceRoute
from api.problems import responses
from bpt_store import customers, ids, models
from bpt_store.errors import NotFound
from bpt_store.paging import page

router = APIRouter(prefix="/v1", route_class=OnceRoute)


@router.post(
    "/customers", status_code=201, tags=["customers"], summary="Create a customer", responses=responses("name_taken")
)
def create_customer(body: schemas.CustomerCreate, session: AdminSession) -> schemas.Customer:
    return schemas.Customer.of(customers.create(session, body.name))


@router.get("/customers", tags=["customers"], summary="List customers", responses=responses("not_found"))
def list_customers(session: AdminSession, limit: Limit = 20, after: After = None) -> schemas.Page[schemas.Customer]:
    cursor = ids.parse(ids.CUSTOMER, after) if after else None
    rows, has_more = page(session, select(models.Customer), models.Customer.id, cursor, limit)
    data = [schemas.Customer.of(row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/customers/{customer_id}", tags=["customers"], summary="Show a customer", responses=responses("not_found"))
def get_customer(customer_id: str, session: AdminSession) -> schemas.Customer:
    return schemas.Customer.of(customers.get(session, ids.parse(ids.CUSTOMER, customer_id)))


@router.post(
    "/api-keys",
    status_code=201,
    tags=["api-keys"],
    summary="Create an API key of a customer; the reply shows its token once",
    responses=responses("not_found"),
)
def create_api_key(body: schemas.ApiKeyCreate, session: AdminSession) -> schemas.ApiKey:
    customer = customers.get(session, ids.parse(ids.CUSTOMER, body.customer))
    key, token = customers.create_key(session, customer.id, body.name, body.scopes, body.expires_at)
    return schemas.ApiKey.of(key, token)


@router.get("/api-keys", tags=["api-keys"], summary="List a customer's API keys", responses=responses("not_found"))
def list_api_keys(
    session: AdminSession, customer: str = Query(description="cus_..."), limit: Limit = 20, after: After = None
) -> schemas.Page[schemas.ApiKey]:
    owner = customers.get(session, ids.parse(ids.CUSTOMER, customer))
    cursor = ids.parse(ids.KEY, after) if after else None
    query = select(models.ApiKey).where(models.ApiKey.customer_id == owner.id)
    rows, has_more = page(session, query, models.ApiKey.id, cursor, limit)
    data = [schemas.ApiKey.of(row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.post(
    "/api-keys/{key_id}/revoke",
    tags=["api-keys"],
    summary="Revoke an API key, at once and for good",
    responses=responses("not_found"),
)
def revoke_api_key(key_id: str, session: AdminSession) -> schemas.ApiKey:
    key = session.get(models.ApiKey, ids.parse(ids.KEY, key_id))
    if key is None or key.customer_id is None:
        raise NotFound(f"there is no {key_id!r}")
    return schemas.ApiKey.of(customers.revoke_key(session, key.customer_id, key.id))
