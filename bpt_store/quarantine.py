"""Versions whose stored artifact is not what was published: they serve nobody until it is again.

Whoever reads the bytes finds out and has the version marked; whoever asks for it from then on is told so, by every
process. Aliases stay where they are: what they mean is the customer's to decide. prompt_sets.release leads out.
"""

from __future__ import annotations

import logging
from functools import partial
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session

from bpt_store import audit, ids, logs
from bpt_store.audit import SERVICE, Action, Actor
from bpt_store.db import tell_of_refusal
from bpt_store.errors import Damaged
from bpt_store.models import PromptSet, PromptSetVersion

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
    mark = partial(_mark, prompt_set_id=version.prompt_set_id, version=version.version, reason=reason, holds=holds)
    tell_of_refusal(session, mark)
    return Damaged(f"{name}:{version.version} is not served: {reason}")


def _mark(session: Session, *, prompt_set_id: UUID, version: int, reason: str, holds: ColumnElement[bool]) -> None:
    marked = session.scalar(
        update(PromptSetVersion)
        .where(
            PromptSetVersion.prompt_set_id == prompt_set_id,
            PromptSetVersion.version == version,
            PromptSetVersion.quarantined_at.is_(None),
            holds,
        )
        .values(quarantined_at=func.now(), quarantine_reason=reason)
        .returning(PromptSetVersion.version)
        .execution_options(synchronize_session=False)
    )
    if marked is None:
        return
    resource = ids.public(ids.PROMPT_SET, prompt_set_id)
    audit.act_as(session, Actor(SERVICE, logs.request_id.get()))
    audit.record(session, Action.SET_VERSION_QUARANTINED, resource, after={"version": version})
    facts = {"prompt_set": resource, "version": version, "reason": reason}
    logger.error("a version is in quarantine", extra=facts)
