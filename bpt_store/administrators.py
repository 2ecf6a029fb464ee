"""Administrators' keys: they manage customers, and each other.

One of them always holds for good, so that nobody locks everybody out: whoever ends a key waits for whoever else does.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from bpt_store import customers, ids
from bpt_store.customers import Scope
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import ApiKey


def keys() -> Select[ApiKey]:
    return select(ApiKey).where(ApiKey.customer_id.is_(None))


def get_key(session: Session, key_id: UUID) -> ApiKey:
    """NotFound, also for a customer's."""
    key = session.scalar(keys().where(ApiKey.id == key_id))
    if key is None:
        raise NotFound(f"there is no {ids.public(ids.KEY, key_id)!r} of administrators")
    return key


def create_key(session: Session, name: str, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """A new key -> (row, token)."""
    return customers.create_key(session, None, name, [Scope.ADMIN], expires_at)


def bootstrap(session: Session) -> str | None:
    """The first administrator's token, or None where there is an administrator's key that holds already."""
    _one_after_the_other(session)
    holds = keys().where(ApiKey.revoked_at.is_(None), ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()))
    if session.scalar(holds.limit(1)) is not None:
        return None
    return create_key(session, "bootstrap")[1]


def rotate_key(session: Session, key_id: UUID, *, overlap_seconds: float) -> tuple[ApiKey, str]:
    """As that of a customer's. NotFound, Conflict `key_ended`, `last_admin_key`."""
    _one_after_the_other(session)
    made = customers.replace_key(session, get_key(session, key_id), overlap_seconds=overlap_seconds)
    _check_one_left(session)
    return made


def revoke_key(session: Session, key_id: UUID) -> ApiKey:
    """Revoking twice is the same as once. NotFound, Conflict `last_admin_key`."""
    _one_after_the_other(session)
    key = customers.revoke_key(session, None, key_id)
    _check_one_left(session)
    return key


def _one_after_the_other(session: Session) -> None:
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("bpt bootstrap"))))


def _check_one_left(session: Session) -> None:
    for_good = keys().where(ApiKey.revoked_at.is_(None), ApiKey.expires_at.is_(None))
    if session.scalar(for_good.limit(1)) is None:
        raise Conflict(
            "no other administrator's key would hold for good; make one without an end first", code="last_admin_key"
        )
