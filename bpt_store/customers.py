"""Customers and their API keys: `bpt_<id>_<secret>`, of which only the SHA-256 of the secret is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from bpt_store.errors import Conflict, NotFound, Unauthenticated
from bpt_store.models import ApiKey, Customer


class Scope(StrEnum):
    """What a key may do. `admin` is for administrators' keys alone and manages customers, not their data."""

    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    PROMPTS_READ = "prompts:read"
    PROMPTS_WRITE = "prompts:write"
    PREDICT = "predict"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    ADMIN = "admin"


CUSTOMER_SCOPES = tuple(scope for scope in Scope if scope is not Scope.ADMIN)


@dataclass(frozen=True)
class Identity:
    """Who is asking. `customer_id` is None for an administrator."""

    key_id: UUID
    customer_id: UUID | None
    scopes: frozenset[str]


def create(session: Session, name: str) -> Customer:
    """A new customer (system session); Conflict `name_taken`."""
    customer = Customer(name=name)
    session.add(customer)
    try:
        session.flush()
    except IntegrityError:
        raise Conflict(f"there is a customer named {name!r} already", code="name_taken") from None
    return customer


def get(session: Session, customer_id: UUID) -> Customer:
    customer = session.get(Customer, customer_id)
    if customer is None:
        raise NotFound("there is no such customer")
    return customer


def create_key(
    session: Session,
    customer_id: UUID | None,
    name: str,
    scopes: Sequence[Scope],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key -> (row, token). The token is seen here and never again."""
    secret = secrets.token_urlsafe(32)
    key = ApiKey(
        customer_id=customer_id,
        name=name,
        secret_sha256=hashlib.sha256(secret.encode()).digest(),
        scopes=[str(scope) for scope in scopes],
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, f"bpt_{key.id.hex}_{secret}"


def bootstrap(session: Session) -> str | None:
    """The first administrator's token, or None where there is an administrator's key that holds already."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("bpt bootstrap"))))
    alive = select(ApiKey.id).where(ApiKey.customer_id.is_(None), ApiKey.revoked_at.is_(None)).limit(1)
    if session.scalar(alive) is not None:
        return None
    _, token = create_key(session, None, "bootstrap", [Scope.ADMIN])
    return token


def revoke_key(session: Session, customer_id: UUID, key_id: UUID) -> ApiKey:
    """Revoking twice is the same as once."""
    key: ApiKey | None = session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.customer_id == customer_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey)
    )
    if key is None:
        raise NotFound("there is no such key")
    return key


def authenticate(session: Session, token: str) -> Identity:
    """Who a token belongs to (system session); Unauthenticated for anything that does not hold right now."""
    refused = Unauthenticated("the API key is missing, malformed, unknown, expired or revoked")
    parts = token.split("_", 2)
    if len(parts) != 3 or parts[0] != "bpt" or len(parts[1]) != 32:
        raise refused
    try:
        key_id = UUID(hex=parts[1])
    except ValueError:
        raise refused from None
    key = session.scalar(
        select(ApiKey).where(
            ApiKey.id == key_id,
            ApiKey.revoked_at.is_(None),
            ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()),
        )
    )
    presented = hashlib.sha256(parts[2].encode("utf-8", "surrogateescape")).digest()
    if key is None or not hmac.compare_digest(presented, key.secret_sha256):
        raise refused
    return Identity(key_id=key.id, customer_id=key.customer_id, scopes=frozenset(key.scopes))
