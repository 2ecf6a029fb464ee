"""What customers have used, by the day: as JSON in pages, or all of it as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse

from api.customer_schemas import UsageDay
from api.deps import After, Limit, Services, ServicesDep
from api.keys import IdentityDep
from api.problems import Problem, responses
from api.schemas import Day, Page
from api.turns import OneTurnRoute
from bpt_store import ids, models, usage
from bpt_store.customers import Identity, Scope
from bpt_store.errors import NotFound
from bpt_store.usage import Cursor, Span

router = APIRouter(prefix="/v1/usage", tags=["usage"], route_class=OneTurnRoute)

CSV = "text/csv"
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class _Reader:
    """A page in a transaction of its own, so that a slow reader holds up nothing."""

    services: Services
    customer_id: UUID | None
    span: Span

    def __call__(self, after: Cursor | None, limit: int) -> tuple[Sequence[models.UsageDay], bool]:
        database = self.services.database
        with database.system() if self.customer_id is None else database.customer(self.customer_id) as session:
            return usage.days(session, self.span, after, limit)


def _reader(
    services: ServicesDep,
    identity: IdentityDep,
    first: Annotated[Day | None, Query(alias="from", description="the first day (UTC); absent: all")] = None,
    last: Annotated[Day | None, Query(alias="to", description="the last day (UTC), itself included")] = None,
    customer: Annotated[
        str | None, Query(max_length=100, description="for administrators: only this one's (cus_...); absent: all")
    ] = None,
) -> _Reader:
    """A customer reads his own, an administrator everybody's."""
    if Scope.ADMIN not in identity.scopes and Scope.USAGE_READ not in identity.scopes:
        raise Problem("insufficient_scope", f"the API key lacks the scope {Scope.USAGE_READ}")
    if first is not None and last is not None and first > last:
        raise Problem("invalid_request", "`from` is after `to`", param="from")
    return _Reader(services, identity.customer_id, Span(first, last, _whose(identity, customer)))


def _whose(identity: Identity, customer: str | None) -> UUID | None:
    if customer is None:
        return identity.customer_id
    asked = ids.parse(ids.CUSTOMER, customer)
    if identity.customer_id not in (None, asked):
        raise NotFound("there is no such customer")
    return asked


@router.get(
    "",
    summary="List what was used, the newest day first; all of it at once with `Accept: text/csv`",
    response_model=Page[UsageDay],
    responses={
        **responses("not_found"),
        200: {
            "description": "a page; with `Accept: text/csv` all rows, with the names of the columns above them",
            "content": {CSV: {"schema": {"type": "string"}}},
        },
    },
)
def list_usage(
    read: Annotated[_Reader, Depends(_reader)],
    limit: Limit = 20,
    after: After = None,
    accept: Annotated[str, Header()] = "",
) -> Any:
    cursor = _cursor(after) if after else None
    if CSV in accept:
        page = read(cursor, _ROWS_AT_ONCE)
        name = 'attachment; filename="usage.csv"'
        return StreamingResponse(_table(read, *page), media_type=CSV, headers={"Content-Disposition": name})
    rows, has_more = read(cursor, limit)
    data = [UsageDay.of(row) for row in rows]
    next_cursor = f"{data[-1].day}.{data[-1].customer}" if has_more else None
    return Page(data=data, has_more=has_more, next_cursor=next_cursor)


def _cursor(after: str) -> Cursor:
    """NotFound."""
    day, _, customer = after.partition(".")
    try:
        return Cursor(date.fromisoformat(day), ids.parse(ids.CUSTOMER, customer))
    except ValueError:
        raise NotFound(f"there is no page after {after!r}") from None


def _table(read: _Reader, rows: Sequence[models.UsageDay], has_more: bool) -> Iterator[str]:
    yield _lines([UsageDay.model_fields])
    while rows:
        yield _lines(UsageDay.of(row).model_dump().values() for row in rows)
        if not has_more:
            return
        rows, has_more = read(Cursor(rows[-1].day, rows[-1].customer_id), _ROWS_AT_ONCE)


def _lines(rows: Any) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()
