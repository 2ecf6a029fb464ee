"""Public ids: a prefix that says what it is, and the hexadecimal UUIDv7 that PostgreSQL made."""

from __future__ import annotations

from uuid import UUID

from bpt_store.errors import NotFound

CUSTOMER, KEY, DATASET, UPLOAD, JOB, PROMPT_SET = "cus", "key", "ds", "upl", "job", "ps"
AUDIT, EVALUATION, WEBHOOK, EVENT, DELIVERY = "aud", "ev", "whk", "evt", "dlv"


def public(prefix: str, identifier: UUID) -> str:
    return f"{prefix}_{identifier.hex}"


def parse(prefix: str, text: str) -> UUID:
    """The UUID in a public id. A malformed id names nothing, so it is NotFound like any other."""
    head, _, tail = text.partition("_")
    try:
        if head != prefix or len(tail) != 32:
            raise ValueError(text)
        return UUID(hex=tail)
    except ValueError:
        raise NotFound(f"there is no {text!r}") from None
