"""Prompt sets: a name of the customer's, and immutable numbered versions under it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store import ids, webhook_events
from bpt_store.errors import Damaged, NotFound
from bpt_store.models import PromptSet, PromptSetAlias, PromptSetVersion
from bpt_store.webhook_events import EventType

NAME_PATTERN = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
LATEST = "latest"
_NAME = re.compile(NAME_PATTERN)
_REFERENCE = re.compile(rf"(?P<name>{NAME_PATTERN})(?::(?P<version>[1-9][0-9]{{0,8}})|@(?P<alias>{NAME_PATTERN}))?")


@dataclass(frozen=True)
class Publication:
    """What a tuning job publishes: the artifact's bytes and the facts that are looked up without opening it."""

    artifact: bytes
    backbone: str
    backbone_fingerprint: str
    class_names: Sequence[str]
    recipe: Mapping[str, Any]
    parameters: int
    metrics: Mapping[str, Any]
    continued_from: Mapping[str, Any] | None = None


def get_or_create(session: Session, customer_id: UUID, name: str) -> PromptSet:
    """Two at once get the same one."""
    session.execute(
        insert(PromptSet)
        .values(customer_id=customer_id, name=name)
        .on_conflict_do_nothing(index_elements=["customer_id", "name"])
    )
    return session.scalars(select(PromptSet).where(PromptSet.customer_id == customer_id, PromptSet.name == name)).one()


def get(session: Session, name: str) -> PromptSet:
    # What cannot be a name is not asked for: PostgreSQL takes no NUL.
    named = select(PromptSet).where(PromptSet.name == name)
    prompt_set = session.scalar(named) if _NAME.fullmatch(name) else None
    if prompt_set is None:
        raise NotFound(f"there is no prompt set {name!r}")
    return prompt_set


def publish(
    session: Session,
    prompt_set_id: UUID,
    publication: Publication,
    *,
    job_id: UUID,
    dataset_id: UUID | None,
    dataset_version: int | None = None,
    job_epoch: int | None = None,
) -> PromptSetVersion:
    """The next version, part of the job's last transaction; with a `job_epoch`, from a checkpoint at any other time.

    The prompt set's row lock keeps numbers gapless.
    """
    prompt_set = session.scalars(select(PromptSet).where(PromptSet.id == prompt_set_id).with_for_update()).one()
    newest = select(func.coalesce(func.max(PromptSetVersion.version), 0)).where(
        PromptSetVersion.prompt_set_id == prompt_set_id
    )
    version = PromptSetVersion(
        prompt_set_id=prompt_set_id,
        version=session.scalars(newest).one() + 1,
        customer_id=prompt_set.customer_id,
        artifact=publication.artifact,
        artifact_sha256=hashlib.sha256(publication.artifact).hexdigest(),
        artifact_bytes=len(publication.artifact),
        backbone=publication.backbone,
        backbone_fingerprint=publication.backbone_fingerprint,
        class_names=list(publication.class_names),
        recipe=dict(publication.recipe),
        parameters=publication.parameters,
        metrics=dict(publication.metrics),
        job_id=job_id,
        job_epoch=job_epoch,
        dataset_id=dataset_id,
        dataset_version=dataset_version,
        continued_from=dict(publication.continued_from) if publication.continued_from else None,
    )
    session.add(version)
    session.flush()
    told = {"id": ids.public(ids.PROMPT_SET, prompt_set_id), "name": prompt_set.name, "version": version.version}
    webhook_events.emit(session, prompt_set.customer_id, EventType.VERSION_PUBLISHED, told)
    return version


def resolve(session: Session, reference: str) -> tuple[PromptSet, PromptSetVersion]:
    """`name` or `name@latest` (newest version that is not archived), `name:3` or `name@alias`; NotFound otherwise.

    One query, and never cached: a move of an alias that has committed counts from the next call on.
    """
    missing = NotFound(f"there is no published prompt set {reference!r}")
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise missing
    query = (
        select(PromptSet, PromptSetVersion)
        .join(PromptSetVersion, PromptSetVersion.prompt_set_id == PromptSet.id)
        .where(PromptSet.name == match["name"])
    )
    if match["version"] is not None:
        query = query.where(PromptSetVersion.version == int(match["version"]))
    elif match["alias"] not in (None, LATEST):
        query = query.join(
            PromptSetAlias,
            and_(
                PromptSetAlias.prompt_set_id == PromptSetVersion.prompt_set_id,
                PromptSetAlias.version == PromptSetVersion.version,
            ),
        ).where(PromptSetAlias.name == match["alias"])
    else:
        query = query.where(PromptSetVersion.archived_at.is_(None))
    row = session.execute(query.order_by(PromptSetVersion.version.desc()).limit(1)).first()
    if row is None:
        raise missing
    return row[0], row[1]


def artifact(session: Session, version: PromptSetVersion) -> bytes:
    """The artifact of a version; Damaged where the stored bytes no longer have the hash they were published with."""
    data: bytes = session.scalars(
        select(PromptSetVersion.artifact).where(
            PromptSetVersion.prompt_set_id == version.prompt_set_id, PromptSetVersion.version == version.version
        )
    ).one()
    if hashlib.sha256(data).hexdigest() != version.artifact_sha256:
        raise Damaged(f"version {version.version} is not what was published: the stored bytes have another hash")
    return data


def versions(session: Session, prompt_set_id: UUID) -> list[int]:
    """The numbers of all versions, in their order."""
    query = select(PromptSetVersion.version).where(PromptSetVersion.prompt_set_id == prompt_set_id)
    return list(session.scalars(query.order_by(PromptSetVersion.version)))


def newest_versions(session: Session, prompt_set_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The newest version that is not archived, for those prompt sets that have one."""
    rows = session.execute(
        select(PromptSetVersion.prompt_set_id, func.max(PromptSetVersion.version))
        .where(PromptSetVersion.prompt_set_id.in_(prompt_set_ids), PromptSetVersion.archived_at.is_(None))
        .group_by(PromptSetVersion.prompt_set_id)
    )
    return {row[0]: row[1] for row in rows}
