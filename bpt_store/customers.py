"""Customers and their API keys: `bpt_<id>_<secret>`, of which only the SHA-256 of the secret is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from psycopg.errors import DeadlockDetected
from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from bpt_store import datasets, ids, jobs, uploads
from bpt_store.errors import Conflict, Invalid, NotFound, Suspended, Unauthenticated
from bpt_store.models import ApiKey, Customer, Dataset, Job, JobKind, Upload
from bpt_store.rate_limits import Rates

_SEEN_MINUTES = 1  # `last_used_at` is no more precise, so that requests are not a write each
_DELETE_TRIES = 5
_RATES = (Customer.requests_per_minute, Customer.images_per_minute, Customer.upload_bytes_per_day)


class Scope(StrEnum):
    """What a key may do. `admin` is for administrators' keys alone and manages customers, not their data."""

    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    PROMPTS_READ = "prompts:read"
    PROMPTS_WRITE = "prompts:write"
    PREDICT = "predict"
    AUDIT_READ = "audit:read"
    USAGE_READ = "usage:read"
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
    rates: Rates


def create(session: Session, name: str) -> Customer:
    """A new customer (system session); Conflict `name_taken`."""
    customer = Customer(name=name)
    session.add(customer)
    try:
        session.flush()
    except IntegrityError:
        raise Conflict(f"there is a customer named {name!r} already", code="name_taken") from None
    return customer


def get(session: Session, customer_id: UUID, *, lock: bool = False) -> Customer:
    customer = session.get(Customer, customer_id, with_for_update=lock, populate_existing=lock)
    if customer is None:
        raise NotFound("there is no such customer")
    return customer


def change(session: Session, customer_id: UUID, changes: Mapping[str, Any]) -> Customer:
    """Set these columns; a limit that is None becomes the service's own. NotFound, Conflict `name_taken`."""
    customer = get(session, customer_id, lock=True)
    for name, value in changes.items():
        setattr(customer, name, value)
    try:
        session.flush()
    except IntegrityError:
        raise Conflict("there is another customer of that name", code="name_taken") from None
    return customer


def suspend(session: Session, customer_id: UUID) -> Customer:
    """His keys are refused from the next request on and his queued jobs wait. What runs comes to its end.

    Suspending twice is the same as once. NotFound.
    """
    customer = get(session, customer_id, lock=True)
    if customer.suspended_at is None:
        customer.suspended_at = session.scalars(select(func.now())).one()
    return customer


def resume(session: Session, customer_id: UUID) -> Customer:
    """All is as before; ring for what waits after the commit. NotFound."""
    customer = get(session, customer_id, lock=True)
    customer.suspended_at = None
    return customer


def delete(session: Session, customer_id: UUID, name: str, *, look_again_seconds: float) -> None:
    """Every row of a customer's now, every object with the next sweeps (system session).

    Who works for him just then finds his rows gone, and gives up what he has stored. For one that dies before he finds
    out, everything is looked for once more after so many seconds, in which he has come to an end one way or another.

    NotFound; Invalid `name_mismatch` where it is not the customer's name.
    """
    for tried in range(1, _DELETE_TRIES + 1):
        try:
            with session.begin_nested():
                _delete(session, customer_id, name, look_again_seconds)
            return
        except OperationalError as error:
            # With somebody who holds one of the rows and is about to add another.
            if tried == _DELETE_TRIES or not isinstance(error.orig, DeadlockDetected):
                raise


def _delete(session: Session, customer_id: UUID, name: str, look_again_seconds: float) -> None:
    customer = get(session, customer_id, lock=True)  # from now on nobody adds rows to it
    if name != customer.name:
        raise Invalid(f"this is not the name of {ids.public(ids.CUSTOMER, customer_id)}", code="name_mismatch")
    for prefix in [*_prefixes(session, customer_id)]:
        jobs.doom(session, customer_id, prefix)
        jobs.doom(session, customer_id, prefix, after_seconds=look_again_seconds)
    session.flush()
    session.execute(sql_delete(Customer).where(Customer.id == customer_id))


def _prefixes(session: Session, customer_id: UUID) -> Iterator[str]:
    """Below which all objects of a customer's lie."""
    for upload_id in session.scalars(select(Upload.id).where(Upload.customer_id == customer_id)):
        yield uploads.prefix(upload_id)
    for dataset_id in session.scalars(select(Dataset.id).where(Dataset.customer_id == customer_id)):
        yield datasets.prefix(dataset_id)
    for job_id, kind in session.execute(select(Job.id, Job.kind).where(Job.customer_id == customer_id)):
        yield jobs.work_prefix(job_id)
        if kind is JobKind.BATCH_PREDICT:
            yield jobs.results_prefix(job_id)


# --- keys ------------------------------------------------------------------------------------------------------


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


def get_key(session: Session, key_id: UUID) -> ApiKey:
    """A customer's key. NotFound, also for an administrator's."""
    key = session.get(ApiKey, key_id)
    if key is None or key.customer_id is None:
        raise NotFound(f"there is no {ids.public(ids.KEY, key_id)!r}")
    return key


def rotate_key(session: Session, key_id: UUID, *, overlap_seconds: float) -> tuple[ApiKey, str]:
    """As `replace_key`, for a customer's key. NotFound, Conflict `key_ended`."""
    return replace_key(session, get_key(session, key_id), overlap_seconds=overlap_seconds)


def replace_key(session: Session, old: ApiKey, *, overlap_seconds: float) -> tuple[ApiKey, str]:
    """A new key that may do the same, in place of one that holds no longer than the overlap -> (row, token).

    Where the old one was to expire, the new one lives as long as that one was to. Conflict `key_ended`.
    """
    session.refresh(old, with_for_update=True)
    ended = or_(ApiKey.revoked_at.is_not(None), ApiKey.expires_at <= func.now())
    if session.scalar(select(ApiKey.id).where(ApiKey.id == old.id, ended)) is not None:
        raise Conflict("the key is revoked or expired: there is nothing to replace", code="key_ended")
    now: datetime = session.scalars(select(func.now())).one()
    expires_at = None if old.expires_at is None else now + (old.expires_at - old.created_at)
    key, token = create_key(session, old.customer_id, old.name, [Scope(scope) for scope in old.scopes], expires_at)
    overlapped = now + timedelta(seconds=overlap_seconds)
    old.expires_at = overlapped if old.expires_at is None else min(overlapped, old.expires_at)
    session.flush()
    return key, token


def revoke_key(session: Session, customer_id: UUID | None, key_id: UUID) -> ApiKey:
    """Revoking twice is the same as once. Without a customer it is an administrator's. NotFound."""
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
    """Who a token belongs to (system session): asked anew for each request, so that what changes holds at once.

    Unauthenticated for anything that does not hold right now, Suspended for a customer who is.
    """
    refused = Unauthenticated("the API key is missing, malformed, unknown, expired or revoked")
    parts = token.split("_", 2)
    if len(parts) != 3 or parts[0] != "bpt" or len(parts[1]) != 32:
        raise refused
    try:
        key_id = UUID(hex=parts[1])
    except ValueError:
        raise refused from None
    found = session.execute(
        select(ApiKey, Customer.suspended_at, _is_due(), *_RATES)
        .outerjoin(Customer, Customer.id == ApiKey.customer_id)
        .where(
            ApiKey.id == key_id,
            ApiKey.revoked_at.is_(None),
            ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()),
        )
    ).one_or_none()
    presented = hashlib.sha256(parts[2].encode("utf-8", "surrogateescape")).digest()
    if found is None or not hmac.compare_digest(presented, found[0].secret_sha256):
        raise refused
    key, suspended_at, due, *rates = found
    if suspended_at is not None:
        raise Suspended("the customer is suspended; nothing is lost")
    if due:
        _note_use(session, key_id)
    return Identity(key_id=key.id, customer_id=key.customer_id, scopes=frozenset(key.scopes), rates=Rates(*rates))


def _is_due() -> ColumnElement[bool]:
    return or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(minutes=_SEEN_MINUTES))


def _note_use(session: Session, key_id: UUID) -> None:
    """Unless another request does it at this moment: nobody waits for that."""
    free = select(ApiKey.id).where(ApiKey.id == key_id, _is_due()).with_for_update(skip_locked=True)
    session.execute(
        update(ApiKey)
        .where(ApiKey.id.in_(free))
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )
