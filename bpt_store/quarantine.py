"""Versions whose stored artifact is not what was published: they serve nobody until it is again.

Whoever reads the bytes finds out and has the version marked; whoever asks for it from then on is told so, by every
process. Aliases stay where they are: what they mean is the customer's to decide. prompt_sets.release leads out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session

from bpt_store import audit, ids, logs
from bpt_store.audit import SERVICE, Action, Actor
from bpt_store.db import tell_of_refusal
from bpt_store.errors import Damaged
from bpt_store.models import PromptSet, PromptSetVersion
from bpt_store.webhook_events import EventType, emit

logger = logging.getLogger(__name__)

ALTERED = "the stored bytes are not those that were published"


def check(name: str, version: PromptSetVersion) -> None:
    """Damaged for a version of the prompt set `name` that is in quarantine."""
    if version.quarantined_at is not None:
        since = f"{version.quarantined_at:%Y-%m-%d %H:%M} UTC"
        raise Damaged(f"{name}:{version.version} is in quarantine since {since}: {version.quarantine_reason}")


def altered(session: Session, version: PromptSetVersion) -> Damaged:
    """The error to raise for bytes of another hash; with the end of the session the version is in quarantine.

    Only where the database's own copy has another hash: what was garbled on the way here must not count.
    """
    sha256 = func.encode(func.sha256(PromptSetVersion.artifact), "hex")
    return _found(session, version, ALTERED, PromptSetVersion.artifact_sha256 != sha256)


def unreadable(session: Session, version: PromptSetVersion, reason: str) -> Damaged:
    """As `altered`, for bytes that are what was published and no artifact all the same."""
    return _found(session, version, f"the artifact cannot be read: {reason}", true())


def count(session: Session) -> int:
    """Of all customers (system session)."""
    quarantined = select(func.count()).select_from(PromptSetVersion).where(PromptSetVersion.quarantined_at.is_not(None))
    return session.scalars(quarantined).one()


def _found(session: Session, version: PromptSetVersion, reason: str, holds: ColumnElement[bool]) -> Damaged:
    name = session.scalar(select(PromptSet.name).where(PromptSet.id == version.prompt_set_id))
    # Not the row itself: what it holds is forgotten when the session ends with an error.
    facts = {"id": ids.public(ids.PROMPT_SET, version.prompt_set_id), "name": name, "version": version.version}
    tell_of_refusal(session, partial(_mark, version.prompt_set_id, facts, reason, holds))
    return Damaged(f"{name}:{version.version} is not served: {reason}")


def _mark(
    prompt_set_id: UUID, facts: Mapping[str, Any], reason: str, holds: ColumnElement[bool], session: Session
) -> None:
    """Once, however many find out: whoever is told of it is told by the one who marked it."""
    customer_id = session.scalar(
        update(PromptSetVersion)
        .where(
            PromptSetVersion.prompt_set_id == prompt_set_id,
            PromptSetVersion.version == facts["version"],
            PromptSetVersion.quarantined_at.is_(None),
            holds,
        )
        .values(quarantined_at=func.now(), quarantine_reason=reason)
        .returning(PromptSetVersion.customer_id)
        .execution_options(synchronize_session=False)
    )
    if customer_id is None:
        return
    audit.act_as(session, Actor(SERVICE, logs.request_id.get()))
    audit.record(session, Action.SET_VERSION_QUARANTINED, facts["id"], after={"version": facts["version"]})
    emit(session, customer_id, EventType.VERSION_QUARANTINED, facts)
    told = {"prompt_set": facts["id"], "version": facts["version"], "reason": reason}
    logger.error("a version is in quarantine", extra=told)
