"""Lists in pages, newest first, by a key that is unique and only ever grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

Row = TypeVar("Row")


def page(
    session: Session, query: Select[Row], key: InstrumentedAttribute[Any], after: Any | None, limit: int
) -> tuple[Sequence[Row], bool]:
    """Up to `limit` rows whose key lies before `after` -> (rows, whether there are more)."""
    if after is not None:
        query = query.where(key < after)
    rows: Sequence[Row] = session.scalars(query.order_by(key.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
