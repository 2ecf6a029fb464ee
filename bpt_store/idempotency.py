"""Requests that carry a key of their sender's: however often one is sent, it is done once and answered the same.

A request that is under way holds an advisory lock on (owner, key), which ends with its connection: a process that was
killed blocks nobody. What was answered is kept in the transaction that did the work, so that both are there or neither.
The key itself is not kept, only its SHA-256.

An answer may show a secret that is shown once: what administrators are told, and customers of their webhooks. It is
kept sealed with the secret of the sender's own API key, which the database does not hold and every request brings
along: who reads the table reads no secret, and still the answer can be given again. A seal made of the idempotency key
would be as weak as the names that senders choose. What else customers are told shows no secrets, and any key of theirs
may ask again.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store.errors import Conflict, Invalid
from bpt_store.models import IdempotencyRecord

_SALT_BYTES = 16


@dataclass(frozen=True)
class Sender:
    """Whose keys are one name space: a customer, or a single key of an administrator's.

    With a `secret`, which seals, nobody but the API key that it belongs to is given the answer again.
    """

    owner_id: UUID
    customer_id: UUID | None
    secret: str | None = field(default=None, repr=False)
    api_key_id: UUID | None = None

    @classmethod
    def customer(cls, customer_id: UUID) -> Sender:
        return cls(customer_id, customer_id)

    @classmethod
    def customer_for_a_secret(cls, customer_id: UUID, key_id: UUID, token: str) -> Sender:
        """Where the answer is to show a secret."""
        return cls(customer_id, customer_id, token.split("_", 2)[2], key_id)

    @classmethod
    def administrator(cls, key_id: UUID, token: str) -> Sender:
        return cls(key_id, None, token.split("_", 2)[2])


@dataclass(frozen=True)
class Reply:
    """An answer whose body is JSON."""

    status: int
    body: bytes
    location: str | None = None


def lock_number(sender: Sender, key: str) -> int:
    """The advisory lock of a key, a signed 64-bit number."""
    digest = hashlib.sha256(b"idempotency" + sender.owner_id.bytes + key.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def in_progress() -> Conflict:
    return Conflict("a request with this Idempotency-Key is still under way", code="idempotency_in_progress")


def begin(session: Session, sender: Sender, key: str) -> IdempotencyRecord | None:
    """To the end of the transaction nobody else is at this key -> what was kept of it before, if anything.

    Conflict `idempotency_in_progress`.
    """
    if not session.scalar(select(func.pg_try_advisory_xact_lock(lock_number(sender, key)))):
        raise in_progress()
    # A statement of its own: what committed while the lock was asked for is seen.
    return find(session, sender, key)


def find(session: Session, sender: Sender, key: str) -> IdempotencyRecord | None:
    return session.scalar(
        select(IdempotencyRecord).where(
            IdempotencyRecord.owner_id == sender.owner_id,
            IdempotencyRecord.key_sha256 == _sha256(key),
            IdempotencyRecord.expires_at > func.now(),
        )
    )


def reply_of(record: IdempotencyRecord, sender: Sender, key: str, request_sha256: bytes) -> Reply:
    """The answer as it was first given. Invalid `idempotency_key_reused` where another request is asked about."""
    if record.request_sha256 != _asked(sender, request_sha256):
        raise Invalid("this Idempotency-Key was used for another request", code="idempotency_key_reused")
    body = record.body if record.salt is None else _sealed(record.body, sender, key, record.salt)
    return Reply(record.status, body, record.location)


def keep(session: Session, sender: Sender, key: str, request_sha256: bytes, reply: Reply, hours: float) -> None:
    """In the transaction that did what was asked. Conflict `idempotency_in_progress` if a twin was faster after all."""
    salt = None if sender.secret is None else secrets.token_bytes(_SALT_BYTES)
    values = {
        "customer_id": sender.customer_id,
        "request_sha256": _asked(sender, request_sha256),
        "status": reply.status,
        "location": reply.location,
        "body": reply.body if salt is None else _sealed(reply.body, sender, key, salt),
        "salt": salt,
        "expires_at": func.now() + timedelta(hours=hours),
    }
    kept = session.scalar(
        insert(IdempotencyRecord)
        .values(owner_id=sender.owner_id, key_sha256=_sha256(key), **values)
        .on_conflict_do_update(
            index_elements=["owner_id", "key_sha256"],
            set_=values,
            where=IdempotencyRecord.expires_at <= func.now(),
        )
        .returning(IdempotencyRecord.status)
    )
    if kept is None:
        raise in_progress()


def forget_expired(session: Session) -> int:
    """Records whose time is over (system session) -> how many."""
    gone = session.scalars(
        delete(IdempotencyRecord)
        .where(IdempotencyRecord.expires_at <= func.now())
        .returning(IdempotencyRecord.status)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def _asked(sender: Sender, request_sha256: bytes) -> bytes:
    """The same from another API key is another request, where the answer is for one of them alone."""
    if sender.api_key_id is None:
        return request_sha256
    return hashlib.sha256(request_sha256 + sender.api_key_id.bytes).digest()


def _sealed(body: bytes, sender: Sender, key: str, salt: bytes) -> bytes:
    """Combined with a stream that SHAKE-256 makes of the secret, a new salt and the key; twice is the body again."""
    assert sender.secret is not None
    stream = hashlib.shake_256(b"\0".join((sender.secret.encode(), salt, key.encode()))).digest(len(body))
    return bytes(one ^ other for one, other in zip(body, stream, strict=True))


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
