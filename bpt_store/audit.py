"""The audit log: who changed what, when and by which request; written in the transaction that makes the change.

It is append-only, and its entries outlive the customer. So they hold ids, numbers and words of ours, and never text
of a customer's: an alias is told by the numbers of its versions, a rename without the names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from bpt_store.models import AuditEntry

Fact = StrEnum | str | int | float | bool | datetime | list[str] | None
SERVICE = UUID(int=0)  # acts for itself where it finds something damaged
_ACTOR = "audit actor"
_OURS = re.compile(r"req_[0-9a-f]{24}")
_PUBLIC_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")


class Action(StrEnum):
    """`<type of the resource>.<what was done>`."""

    CUSTOMER_CREATED = "customer.created"
    CUSTOMER_CHANGED = "customer.changed"
    CUSTOMER_SUSPENDED = "customer.suspended"
    CUSTOMER_RESUMED = "customer.resumed"
    CUSTOMER_DELETED = "customer.deleted"
    KEY_CREATED = "api_key.created"
    KEY_ROTATED = "api_key.rotated"
    KEY_REVOKED = "api_key.revoked"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_COMPLETED = "upload.completed"
    UPLOAD_DELETED = "upload.deleted"
    DATASET_CREATED = "dataset.created"
    DATASET_CHANGED = "dataset.changed"
    DATASET_DELETED = "dataset.deleted"
    VERSION_CREATED = "dataset.version.created"
    JOB_CREATED = "tuning_job.created"
    JOB_CANCELLED = "tuning_job.cancelled"
    JOB_PAUSED = "tuning_job.paused"
    JOB_RESUMED = "tuning_job.resumed"
    JOB_RETRIED = "tuning_job.retried"
    JOB_DELETED = "tuning_job.deleted"
    SET_CREATED = "prompt_set.created"
    SET_CHANGED = "prompt_set.changed"
    SET_DELETED = "prompt_set.deleted"
    SET_VERSION_CHANGED = "prompt_set.version.changed"
    SET_VERSION_ARCHIVED = "prompt_set.version.archived"
    SET_VERSION_UNARCHIVED = "prompt_set.version.unarchived"
    SET_VERSION_DELETED = "prompt_set.version.deleted"
    SET_VERSION_QUARANTINED = "prompt_set.version.quarantined"
    SET_VERSION_RELEASED = "prompt_set.version.released"
    GATE_SET = "prompt_set.gate.set"
    GATE_REMOVED = "prompt_set.gate.removed"
    SET_VERSION_IMPORTED = "prompt_set.version.imported"
    CHECKPOINT_PUBLISHED = "prompt_set.version.published"
    ALIAS_MOVED = "prompt_set.alias.moved"
    ALIAS_REMOVED = "prompt_set.alias.removed"
    BATCH_CREATED = "batch_prediction.created"
    BATCH_CANCELLED = "batch_prediction.cancelled"
    BATCH_DELETED = "batch_prediction.deleted"
    WEBHOOK_CREATED = "webhook_endpoint.created"
    WEBHOOK_CHANGED = "webhook_endpoint.changed"
    WEBHOOK_ENABLED = "webhook_endpoint.enabled"
    WEBHOOK_SECRET_ROTATED = "webhook_endpoint.secret.rotated"  # noqa: S105  # the name of what was done
    WEBHOOK_TESTED = "webhook_endpoint.tested"
    WEBHOOK_REPLAYED = "webhook_endpoint.replayed"
    WEBHOOK_DELETED = "webhook_endpoint.deleted"


@dataclass(frozen=True)
class Actor:
    key_id: UUID
    request_id: str | None


def act_as(session: Session, actor: Actor) -> None:
    """Whatever is recorded in this session was done by that one."""
    session.info[_ACTOR] = actor


def record(
    session: Session,
    action: Action,
    resource: str,
    *,
    customer_id: UUID | None = None,
    before: Mapping[str, Fact] | None = None,
    after: Mapping[str, Fact] | None = None,
) -> None:
    """An entry about a resource, by its public id. Whose it is, is known of a customer's session and told of others.

    Nothing where nobody acts: what the service does by itself is told by the events of jobs, but for quarantine.
    """
    actor: Actor | None = session.info.get(_ACTOR)
    if actor is None:
        return
    entry = AuditEntry(
        customer_id=session.info.get("customer_id", customer_id),
        actor=actor.key_id,
        action=str(action),
        resource=resource,
        before=_plain(before),
        after=_plain(after),
        request_id=_without_text(actor.request_id),
    )
    session.add(entry)
    session.flush()


@dataclass(frozen=True)
class Filters:
    """Those that are None let everything through; `until` itself is not in."""

    action: Action | None = None
    resource: str | None = None
    actor: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


def entries(customer_id: UUID | None, filters: Filters) -> Select[AuditEntry]:
    """About one customer, who may be deleted; or about none, that is to say about administrators' keys."""
    query = select(AuditEntry).where(AuditEntry.customer_id == customer_id)
    for column in ("action", "resource", "actor"):
        wanted = getattr(filters, column)
        if wanted is not None:
            query = query.where(getattr(AuditEntry, column) == wanted)
    if filters.since is not None:
        query = query.where(AuditEntry.at >= filters.since)
    if filters.until is not None:
        query = query.where(AuditEntry.at < filters.until)
    return query


def _plain(facts: Mapping[str, Fact] | None) -> dict[str, Any] | None:
    return None if facts is None else {name: _fact(value) for name, value in facts.items()}


def _fact(value: Fact) -> Any:
    if isinstance(value, list):
        return [_fact(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        assert isinstance(value, StrEnum) or _PUBLIC_ID.fullmatch(value), "text that may be a customer's"
        return str(value)
    return value


def _without_text(request_id: str | None) -> str | None:
    """A request id that the caller chose may say anything: of it the hash is kept, by which he still finds it."""
    if request_id is None or _OURS.fullmatch(request_id):
        return request_id
    return f"sha256:{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"
