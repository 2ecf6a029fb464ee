"""ETags, and the conditions that requests set with them (RFC 9110, sections 8.8.3 and 13)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

IfMatch = Annotated[str | None, Header(max_length=1000, description="only if it is at this ETag")]
IfNoneMatch = Annotated[str | None, Header(max_length=1000, description="only if it is not at this ETag")]

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "what If-None-Match names is still what there is"}
}
# Kept by whoever asked, and asked for again each time: what lies under a name may be another thing one day.
ASK_AGAIN = "private, no-cache"

_TAG = re.compile(r'(?P<weak>W/)?"(?P<tag>[^"]*)"')


@dataclass(frozen=True)
class Conditions:
    """A dependency: what has to hold for a request that changes something."""

    if_match: IfMatch = None
    if_none_match: IfNoneMatch = None

    def hold(self, tag: str | None) -> bool:
        """`tag`, without quotes, is of what there is now; None where there is nothing."""
        if self.if_match is not None and not _names(self.if_match, tag, weak=False):
            return False
        return self.if_none_match is None or not _names(self.if_none_match, tag, weak=True)


def is_known(if_none_match: str | None, tag: str) -> bool:
    """Whether the caller has it already."""
    return if_none_match is not None and _names(if_none_match, tag, weak=True)


def unless_known(shown: BaseModel, if_none_match: str | None) -> Response:
    """A JSON reply whose ETag is the hash of what it shows, or 304 for a caller that has it."""
    body = shown.model_dump_json().encode()
    tag = hashlib.sha256(body).hexdigest()
    headers = {"ETag": f'"{tag}"', "Cache-Control": ASK_AGAIN}
    if is_known(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _names(condition: str, tag: str | None, *, weak: bool) -> bool:
    if tag is None:
        return False
    if condition.strip() == "*":
        return True
    return any(each["tag"] == tag and (weak or not each["weak"]) for each in _TAG.finditer(condition))
