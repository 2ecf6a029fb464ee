"""Prompt sets: a name of the customer's, and immutable numbered versions under it.

Whoever adds or removes a version, or moves an alias, holds the prompt set's row lock (`lock`), so that one comes after
the other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, func, select
from sqlalchemy import delete as sql_delete
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import Session

from bpt_store import ids, quarantine, webhook_events
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import TERMINAL_STATES, Job, JobKind, PromptSet, PromptSetAlias, PromptSetVersion
from bpt_store.webhook_events import EventType

NAME_PATTERN = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
LATEST = "latest"
_NAME = re.compile(NAME_PATTERN)
_REFERENCE = re.compile(rf"(?P<name>{NAME_PATTERN})(?::(?P<version>[1-9][0-9]{{0,8}})|@(?P<alias>{NAME_PATTERN}))?")


@dataclass(frozen=True)
class Publication:
    """What is published: the artifact's bytes and the facts that are looked up without opening it."""

    artifact: bytes
    backbone: str
    backbone_fingerprint: str
    class_names: Sequence[str]
    recipe: Mapping[str, Any]
    parameters: int
    metrics: Mapping[str, Any]
    continued_from: Mapping[str, Any] | None = None
    code_version: str | None = None


@dataclass(frozen=True)
class Label:
    """What people write on a prompt set or a version; None leaves a part as it is, an empty description removes it."""

    description: str | None = None
    metadata: Mapping[str, str] | None = None

    def put_on(self, row: PromptSet | PromptSetVersion) -> None:
        if self.description is not None:
            row.description = self.description or None
        if self.metadata is not None:
            row.custom = dict(self.metadata)


NO_LABEL = Label()


def create(session: Session, customer_id: UUID, name: str, label: Label = NO_LABEL) -> PromptSet:
    """An empty one. Conflict `name_taken`."""
    made: PromptSet | None = session.scalar(_make(customer_id, name).returning(PromptSet))
    if made is None:
        raise Conflict(f"there is a prompt set named {name!r} already", code="name_taken")
    label.put_on(made)
    session.flush()
    return made


def get_or_create(session: Session, customer_id: UUID, name: str) -> PromptSet:
    """Two at once get the same one; it cannot be deleted before this transaction has ended."""
    named = select(PromptSet).where(PromptSet.customer_id == customer_id, PromptSet.name == name)
    while True:
        session.execute(_make(customer_id, name))
        found = session.scalar(named.with_for_update(read=True, key_share=True))
        if found is not None:  # else it was deleted while we waited
            return found


def _make(customer_id: UUID, name: str) -> Insert:
    made = insert(PromptSet).values(customer_id=customer_id, name=name)
    return made.on_conflict_do_nothing(index_elements=["customer_id", "name"])


def get(session: Session, name: str) -> PromptSet:
    # What cannot be a name is not asked for: PostgreSQL takes no NUL.
    named = select(PromptSet).where(PromptSet.name == name)
    prompt_set = session.scalar(named) if _NAME.fullmatch(name) else None
    if prompt_set is None:
        raise NotFound(f"there is no prompt set {name!r}")
    return prompt_set


def lock(session: Session, prompt_set_id: UUID) -> PromptSet:
    """Held until the transaction ends. Others may go on to refer to the row. NotFound."""
    query = select(PromptSet).where(PromptSet.id == prompt_set_id).execution_options(populate_existing=True)
    prompt_set = session.scalar(query.with_for_update(key_share=True))
    if prompt_set is None:
        raise NotFound("there is no such prompt set")
    return prompt_set


def delete(session: Session, name: str) -> PromptSet:
    """With all versions and the history of its aliases -> what it was. One made anew under the name is another one.

    Conflict `prompt_set_in_use` while it has aliases, or an unfinished job is to publish into it or reproduces it.
    """
    prompt_set = get(session, name)
    # Waits for those that create a job for it just now, and they for us.
    session.execute(select(PromptSet.id).where(PromptSet.id == prompt_set.id).with_for_update())
    named = select(PromptSetAlias.name).where(PromptSetAlias.prompt_set_id == prompt_set.id)
    if left := list(session.scalars(named.order_by(PromptSetAlias.name))):
        raise Conflict(f"the prompt set has aliases: {', '.join(left)}", code="prompt_set_in_use")
    unfinished = select(Job.id).where(
        Job.customer_id == prompt_set.customer_id,
        Job.kind == JobKind.TUNE,
        Job.prompt_set_id == prompt_set.id,
        Job.state.not_in(TERMINAL_STATES),
    )
    if session.scalar(unfinished.limit(1)) is not None:
        raise Conflict("an unfinished tuning job needs the prompt set", code="prompt_set_in_use")
    session.execute(sql_delete(PromptSet).where(PromptSet.id == prompt_set.id))
    return prompt_set


def publish(
    session: Session,
    prompt_set_id: UUID,
    publication: Publication,
    *,
    job_id: UUID | None,
    dataset_id: UUID | None,
    dataset_version: int | None = None,
    job_epoch: int | None = None,
) -> PromptSetVersion:
    """The next version, part of the job's last transaction; with a `job_epoch`, from a checkpoint at any other time,
    and without a job from outside.

    The prompt set's row lock keeps numbers gapless.
    """
    prompt_set = lock(session, prompt_set_id)
    newest = select(func.coalesce(func.max(PromptSetVersion.version), 0)).where(
        PromptSetVersion.prompt_set_id == prompt_set_id
    )
    version = PromptSetVersion(
        prompt_set_id=prompt_set_id,
        version=max(session.scalars(newest).one(), prompt_set.last_deleted) + 1,
        customer_id=prompt_set.customer_id,
        artifact=publication.artifact,
        artifact_sha256=_sha256(publication.artifact),
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
        code_version=publication.code_version,
    )
    session.add(version)
    session.flush()
    told = {"id": ids.public(ids.PROMPT_SET, prompt_set_id), "name": prompt_set.name, "version": version.version}
    webhook_events.emit(session, prompt_set.customer_id, EventType.VERSION_PUBLISHED, told)
    return version


def archive(session: Session, name: str, number: int) -> PromptSetVersion:
    """From now on no name means it and no alias moves to it; `name:3` still does. Conflict `version_in_use`."""
    version = _locked(session, name, number)
    _check_unused(session, version)
    if version.archived_at is None:
        version.archived_at = session.scalars(select(func.now())).one()
        session.flush()
    return version


def unarchive(session: Session, name: str, number: int) -> PromptSetVersion:
    version = _locked(session, name, number)
    version.archived_at = None
    session.flush()
    return version


def delete_version(session: Session, name: str, number: int) -> PromptSetVersion:
    """What it was; its number is not given again. Conflict `version_not_archived`, `version_in_use`."""
    version = _locked(session, name, number)
    _check_unused(session, version)  # archived by an older release it may have an alias yet
    if version.archived_at is None:
        raise Conflict(f"version {number} is to be archived before it is deleted", code="version_not_archived")
    prompt_set = session.get_one(PromptSet, version.prompt_set_id)
    prompt_set.last_deleted = max(prompt_set.last_deleted, number)
    session.delete(version)
    session.flush()
    return version


def release(session: Session, name: str, number: int, artifact: bytes | None = None) -> tuple[PromptSetVersion, bool]:
    """Out of quarantine, for the stored bytes are what was published: again, or with these put in their place -> the
    version, and whether anything was changed.

    Conflict `artifact_mismatch` where these are others, Damaged where the stored ones still are. Whether they can be
    read is for the caller to see.
    """
    version = _locked(session, name, number)
    is_sound = _sha256(session.scalars(_artifact(version)).one()) == version.artifact_sha256
    if artifact is None and not is_sound:
        raise quarantine.altered(session, version)
    if artifact is not None and _sha256(artifact) != version.artifact_sha256:
        raise Conflict(
            f"{name}:{number} was published with the SHA-256 {version.artifact_sha256}, and this has another",
            code="artifact_mismatch",
        )
    was_quarantined = version.quarantined_at is not None
    if artifact is not None and not is_sound:
        version.artifact = artifact
    version.quarantined_at = version.quarantine_reason = None
    session.flush()
    return version, was_quarantined or not is_sound


def _locked(session: Session, name: str, number: int) -> PromptSetVersion:
    """With its prompt set. NotFound."""
    prompt_set = lock(session, get(session, name).id)
    version = session.get(PromptSetVersion, (prompt_set.id, number), populate_existing=True)
    if version is None:
        raise NotFound(f"there is no version {number} of {name!r}")
    return version


def _check_unused(session: Session, version: PromptSetVersion) -> None:
    pointing = select(PromptSetAlias.name).where(
        PromptSetAlias.prompt_set_id == version.prompt_set_id, PromptSetAlias.version == version.version
    )
    if found := list(session.scalars(pointing.order_by(PromptSetAlias.name))):
        raise Conflict(f"version {version.version} is where {', '.join(found)} points", code="version_in_use")


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
    """The artifact of a version; Damaged where the stored bytes no longer have the hash they were published with, by
    which the version is in quarantine then.
    """
    data = session.scalars(_artifact(version)).one()
    if _sha256(data) != version.artifact_sha256:
        raise quarantine.altered(session, version)
    if version.quarantined_at is not None:
        quarantine.check(session.get_one(PromptSet, version.prompt_set_id).name, version)
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _artifact(version: PromptSetVersion) -> Select[bytes]:
    return select(PromptSetVersion.artifact).where(
        PromptSetVersion.prompt_set_id == version.prompt_set_id, PromptSetVersion.version == version.version
    )


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
