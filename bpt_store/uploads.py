"""Uploads: bytes on their way in, in one request or in parts, until they are what a version is made of.

Every object of an upload lies under `uploads/<id>/`, and the upload's row is there before the first byte. Where a
process dies, `forget_expired` finds the row and has all below deleted. An attempt to store a part never writes to a
key that another attempt has had, so that what is to be deleted is never what was just stored.

An upload is open, then complete: it has become a version of a dataset, in one transaction with the job that makes it.
Its row stays until its time is over, so that to complete it again gives the same answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from bpt_store import datasets, ids, jobs, quotas
from bpt_store.errors import Conflict, Invalid, NotFound
from bpt_store.models import DatasetVersion, Upload, UploadPart

MOST_PARTS = 10_000
_SHOWN_NUMBERS = 10


@dataclass(frozen=True)
class Intent:
    """What is to be made of an upload: a dataset of this name, or the next version of one that is there."""

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)
    dataset_id: UUID | None = None
    base: int | None = None
    changes: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, upload: Upload) -> Intent:
        kept = upload.intent
        dataset_id = UUID(hex=kept["dataset"]) if "dataset" in kept else None
        rest = {key: kept[key] for key in ("name", "options", "custom", "base", "changes") if key in kept}
        return cls(dataset_id=dataset_id, **rest)

    def kept(self) -> dict[str, Any]:
        if self.dataset_id is None:
            return {"name": self.name, "options": dict(self.options), "custom": dict(self.custom)}
        return {"dataset": self.dataset_id.hex, "base": self.base, "changes": self.changes}


@dataclass(frozen=True)
class Made:
    """What an upload has become."""

    dataset_id: UUID
    version: int


@dataclass(frozen=True)
class Part:
    """Bytes that are stored; `sha256` is hexadecimal."""

    number: int
    key: str
    sha256: str
    bytes: int


def prefix(upload_id: UUID) -> str:
    return f"uploads/{upload_id.hex}/"


def new_key(upload_id: UUID, name: str) -> str:
    """Where one attempt to store a part may write, and no other will."""
    return f"{prefix(upload_id)}{name}-{secrets.token_hex(4)}"


# --- open ------------------------------------------------------------------------------------------------------


def begin(
    session: Session,
    customer_id: UUID,
    intent: Intent,
    media_type: str,
    *,
    limits: quotas.Limits,
    seconds: float,
    size_bytes: int | None = None,
    part_bytes: int | None = None,
    fingerprint: str | None = None,
) -> Upload:
    """An open upload, with room for `size_bytes` set aside; without `part_bytes` all is to come in one request.

    NotFound, Conflict `dataset_not_ready`, `version_moved`, and for one request `version_unfinished`.
    LimitReached `quota_exceeded`.
    """
    if intent.dataset_id is not None:
        datasets.get_at(session, intent.dataset_id, intent.base)
        if part_bytes is None:
            datasets.next_number(session, intent.dataset_id)
    fresh = 1 if intent.dataset_id is None else 0
    quotas.check(session, customer_id, limits, datasets=fresh, stored_bytes=size_bytes or 0)
    upload = Upload(
        customer_id=customer_id,
        intent=intent.kept(),
        media_type=media_type,
        size_bytes=size_bytes,
        part_bytes=part_bytes,
        fingerprint=fingerprint,
        expires_at=_after(seconds),
    )
    session.add(upload)
    session.flush()
    session.refresh(upload)
    return upload


def get(session: Session, upload_id: UUID) -> Upload:
    upload = session.get(Upload, upload_id)
    if upload is None:
        raise _missing(upload_id)
    return upload


def parts_of(session: Session, upload_id: UUID) -> Sequence[UploadPart]:
    """In the order of their numbers."""
    return session.scalars(
        select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.number)
    ).all()


def received_bytes(session: Session, upload_ids: Sequence[UUID]) -> dict[UUID, int]:
    """What has been stored of each of them; those of which nothing was are left out."""
    rows = session.execute(
        select(UploadPart.upload_id, func.sum(UploadPart.bytes))
        .where(UploadPart.upload_id.in_(upload_ids))
        .group_by(UploadPart.upload_id)
    )
    return {upload_id: int(total) for upload_id, total in rows}


def open_in_parts(fingerprint: str | None = None) -> Select[Upload]:
    """Those that can be gone on with."""
    query = select(Upload).where(
        Upload.part_bytes.is_not(None), Upload.dataset_id.is_(None), Upload.expires_at > func.now()
    )
    return query if fingerprint is None else query.where(Upload.fingerprint == fingerprint)


def set_aside(session: Session, upload_id: UUID, size_bytes: int, limits: quotas.Limits) -> None:
    """Room for so much in all, for what comes in one request of unknown length. LimitReached `quota_exceeded`."""
    upload = _open(session, upload_id)
    more = size_bytes - (upload.size_bytes or 0)
    if more > 0:
        quotas.check(session, upload.customer_id, limits, stored_bytes=more)
        upload.size_bytes = size_bytes


def find_part(
    session: Session, upload_id: UUID, number: int, sha256: str, announced_bytes: int, limits: quotas.Limits, most: int
) -> tuple[UploadPart | None, int]:
    """Before a part's bytes are read: the part if these are there already, None if they may come; and how many may.

    Nothing is locked or written: `keep_part` looks again.
    NotFound, Conflict `upload_complete`, `upload_expired`, Invalid `payload_too_large`, LimitReached `quota_exceeded`.
    """
    now = _standing(session, upload_id, number)
    part_bytes = now.upload.part_bytes
    if part_bytes is None:
        raise NotFound("an upload in one request has no parts to send")
    if announced_bytes > part_bytes:
        detail = f"a part has at most {part_bytes} bytes; the request announces {announced_bytes}"
        raise Invalid(detail, code="payload_too_large")
    if now.part is not None and now.part.sha256 == sha256:
        return now.part, part_bytes
    _make_room(session, now, announced_bytes, limits, most)
    return None, part_bytes


def keep_part(
    session: Session, upload_id: UUID, part: Part, limits: quotas.Limits, *, most: int, seconds: float
) -> UploadPart:
    """A part's bytes are stored -> the part as it is now; one that was there before is given up.

    Where the same bytes were faster, these are given up. `most` bounds the bytes of the whole upload, which has so
    many seconds more from now. Errors as of `find_part`; the caller then gives up `part.key`.
    """
    is_held = _extend(session, upload_id, seconds)
    now = _standing(session, upload_id, part.number)
    if not is_held:
        raise _expired()
    kept, customer_id = now.part, now.upload.customer_id
    if kept is not None and kept.sha256 == part.sha256:
        jobs.doom(session, customer_id, part.key)
        return kept
    _make_room(session, now, part.bytes, limits, most)
    if kept is None:
        kept = UploadPart(upload_id=upload_id, number=part.number, customer_id=customer_id)
        session.add(kept)
    else:
        jobs.doom(session, customer_id, kept.key)
    kept.key, kept.sha256, kept.bytes = part.key, part.sha256, part.bytes
    session.flush()
    return kept


# --- complete --------------------------------------------------------------------------------------------------


def complete(session: Session, upload_id: UUID, *, sha256: str | None, seconds: float) -> tuple[Made, bool]:
    """All parts are there -> what the upload has become, and whether it has only now; ring for the job then.

    `sha256` of the whole, hexadecimal, is checked when it is read. The row stays for so many seconds more.
    NotFound, Conflict `upload_expired` and those of datasets.add_version, Invalid `upload_incomplete`.
    """
    upload, is_over = _look(session, upload_id)
    if upload.dataset_id is not None:
        assert upload.version is not None
        return Made(upload.dataset_id, upload.version), False
    if is_over:
        raise _expired()
    parts = parts_of(session, upload_id)
    _refuse_incomplete(upload, parts)
    upload.expires_at = _after(seconds)
    return _become(session, upload, parts, sha256), True


def finish_whole(session: Session, upload_id: UUID, part: Part) -> Made:
    """What came in one request is stored. Conflict `upload_expired` and those of datasets.add_version."""
    try:
        upload = _open(session, upload_id)
    except NotFound:
        raise _expired() from None
    kept = UploadPart(
        upload_id=upload_id,
        number=part.number,
        customer_id=upload.customer_id,
        key=part.key,
        sha256=part.sha256,
        bytes=part.bytes,
    )
    session.add(kept)
    session.flush()
    return _become(session, upload, [kept], part.sha256)


def _become(session: Session, upload: Upload, parts: Sequence[UploadPart], sha256: str | None) -> Made:
    intent = Intent.of(upload)
    source: dict[str, Any] = {
        "parts": [{"key": part.key, "sha256": part.sha256, "bytes": part.bytes} for part in parts],
        "media_type": upload.media_type,
        **({} if sha256 is None else {"sha256": sha256}),
    }
    if intent.dataset_id is None:
        assert intent.name is not None
        dataset, _ = datasets.create(session, upload.customer_id, intent.name, intent.options, source, intent.custom)
        made = Made(dataset.id, 1)
    else:
        version, _ = datasets.add_version(
            session, intent.dataset_id, source=source, changes=intent.changes, base=intent.base
        )
        made = Made(version.dataset_id, version.number)
    upload.dataset_id, upload.version = made.dataset_id, made.version
    session.flush()
    return made


# --- given up --------------------------------------------------------------------------------------------------


def abandon(session: Session, upload_id: UUID) -> None:
    """No row stays, and what was stored is deleted. NotFound, Conflict `upload_complete`."""
    upload, _ = _look(session, upload_id)
    if upload.dataset_id is not None:
        raise Conflict("the upload is complete", code="upload_complete")
    _forget(session, upload)


def give_up_whole(session: Session, customer_id: UUID, upload_id: UUID) -> None:
    """After a request that did not end well, also where the row was swept meanwhile; if it did end well, nothing."""
    upload = session.scalar(select(Upload).where(Upload.id == upload_id).with_for_update())
    if upload is None:
        jobs.doom(session, customer_id, prefix(upload_id))
    elif upload.dataset_id is None:
        _forget(session, upload)


def give_up_part(session: Session, customer_id: UUID, key: str) -> None:
    """After an attempt to store a part that did not end well; where it did, nothing."""
    if session.scalar(select(UploadPart.number).where(UploadPart.key == key)) is None:
        jobs.doom(session, customer_id, key)


def forget_expired(session: Session) -> int:
    """Uploads whose time is over (system session) -> how many; complete ones once what they became was read."""
    being_read = exists().where(
        DatasetVersion.dataset_id == Upload.dataset_id,
        DatasetVersion.number == Upload.version,
        DatasetVersion.source.is_not(None),
    )
    expired = session.scalars(
        select(Upload)
        .where(Upload.expires_at <= func.now(), or_(Upload.dataset_id.is_(None), ~being_read))
        .order_by(Upload.id)
        .with_for_update(skip_locked=True)
    ).all()
    for upload in expired:
        _forget(session, upload)
    return len(expired)


def _forget(session: Session, upload: Upload) -> None:
    jobs.doom(session, upload.customer_id, prefix(upload.id))
    session.delete(upload)
    session.flush()


# --- inside ----------------------------------------------------------------------------------------------------


def _look(session: Session, upload_id: UUID) -> tuple[Upload, bool]:
    """Locked, and whether its time is over."""
    query = select(Upload, func.now() >= Upload.expires_at).where(Upload.id == upload_id)
    row = session.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise _missing(upload_id)
    return row[0], row[1]


def _missing(upload_id: UUID) -> NotFound:
    return NotFound(f"there is no {ids.public(ids.UPLOAD, upload_id)!r}")


def _expired() -> Conflict:
    return Conflict("the upload has expired", code="upload_expired")


def _open(session: Session, upload_id: UUID) -> Upload:
    """Locked, as long as something can still be sent. NotFound, Conflict `upload_complete`, `upload_expired`."""
    upload, is_over = _look(session, upload_id)
    _refuse_ended(upload, is_over)
    return upload


def _refuse_ended(upload: Upload, is_over: bool) -> None:
    if upload.dataset_id is not None:
        raise Conflict("the upload is complete", code="upload_complete")
    if is_over:
        raise _expired()


def _extend(session: Session, upload_id: UUID, seconds: float) -> bool:
    """Locked, and with so many seconds more, if something can still be sent."""
    is_open = Upload.id == upload_id, Upload.dataset_id.is_(None), Upload.expires_at > func.now()
    query = update(Upload).where(*is_open).values(expires_at=_after(seconds)).returning(Upload.id)
    return session.scalar(query.execution_options(synchronize_session=False)) is not None


@dataclass(frozen=True)
class _Standing:
    """An upload to which something can still be sent, one part of it if that is there, and the bytes of all."""

    upload: Upload
    part: UploadPart | None
    received_bytes: int


def _standing(session: Session, upload_id: UUID, number: int) -> _Standing:
    """Not locked, in one query. NotFound, Conflict `upload_complete`, `upload_expired`."""
    received = select(func.sum(UploadPart.bytes)).where(UploadPart.upload_id == upload_id).scalar_subquery()
    is_this = and_(UploadPart.upload_id == Upload.id, UploadPart.number == number)
    query = select(Upload, func.now() >= Upload.expires_at, UploadPart, func.coalesce(received, 0))
    row = session.execute(query.outerjoin(UploadPart, is_this).where(Upload.id == upload_id)).one_or_none()
    if row is None:
        raise _missing(upload_id)
    upload, is_over, part, received_bytes = row
    _refuse_ended(upload, is_over)
    return _Standing(upload, part, int(received_bytes))


def _make_room(session: Session, now: _Standing, part_bytes: int, limits: quotas.Limits, most: int) -> None:
    """For a part of so many bytes, in place of the one that is there."""
    upload, there = now.upload, now.received_bytes
    will_be = there - (now.part.bytes if now.part is not None else 0) + part_bytes
    if will_be > most:
        raise Invalid(f"at most {most} bytes; with this part there are {will_be}", code="payload_too_large")
    set_aside = upload.size_bytes or 0
    more = max(set_aside, will_be) - max(set_aside, there)
    if more > 0:
        quotas.check(session, upload.customer_id, limits, stored_bytes=more)


def _refuse_incomplete(upload: Upload, parts: Sequence[UploadPart]) -> None:
    if not parts:
        raise Invalid("no part has been sent", code="upload_incomplete")
    numbers = {part.number for part in parts}
    missing = [number for number in range(1, parts[-1].number) if number not in numbers]
    if missing:
        raise Invalid(f"missing parts: {_few(missing)}", code="upload_incomplete")
    wrong = [part.number for part in parts[:-1] if part.bytes != upload.part_bytes]
    if wrong:
        detail = f"all parts but the last must have {upload.part_bytes} bytes; these have not: {_few(wrong)}"
        raise Invalid(detail, code="upload_incomplete")
    received = sum(part.bytes for part in parts)
    if upload.size_bytes is not None and received != upload.size_bytes:
        detail = f"{upload.size_bytes} bytes were announced, {received} have been sent"
        raise Invalid(detail, code="upload_incomplete")


def _few(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN_NUMBERS} more" if len(numbers) > _SHOWN_NUMBERS else ""
    return ", ".join(str(number) for number in numbers[:_SHOWN_NUMBERS]) + more


def _after(seconds: float) -> Any:
    return func.now() + timedelta(seconds=seconds)
