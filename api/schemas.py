"""What goes over the wire. Requests refuse unknown fields; replies are made from rows by `of`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from bpt_store.prompt_sets import NAME_PATTERN

Item = TypeVar("Item")


# As the OpenAPI has them, too.
_PLAIN = r"^[^\x00-\x1f\x7f]*$"


def _plain(text: str) -> str:
    if not re.fullmatch(_PLAIN, text):
        raise ValueError("control characters are not allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("lone surrogates are not allowed") from None
    return text


def _is_a_moment(moment: object) -> object:
    if not isinstance(moment, str) or not _RFC_3339.match(moment):
        raise ValueError("as in 2026-01-02T00:00:00Z")
    return moment


def _is_a_day(day: object) -> object:
    if not isinstance(day, str) or not _DAY.fullmatch(day):
        raise ValueError("as in 2026-01-02")
    return day


def _is_whole(number: object) -> object:
    return int(number) if isinstance(number, float) and number.is_integer() else number


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")
PlainText = Annotated[str, AfterValidator(_plain), Field(json_schema_extra={"pattern": _PLAIN})]
Name = Annotated[PlainText, Field(min_length=1, max_length=200)]
Metadata = Annotated[
    dict[Annotated[PlainText, Field(min_length=1, max_length=64)], Annotated[PlainText, Field(max_length=512)]],
    Field(max_length=16, json_schema_extra={"additionalProperties": False}),
]
# An integer as JSON Schema has it: 5 and 5.0, neither "5" nor true.
WHOLE = BeforeValidator(_is_whole)
# Pydantic alone would take seconds since 1970 as well.
Moment = Annotated[AwareDatetime, BeforeValidator(_is_a_moment)]
Day = Annotated[date, BeforeValidator(_is_a_day)]
PromptSetName = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", examples=["birds"])]
PositiveFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first; give `next_cursor` as `after` to get the next."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


class Trouble(BaseModel):
    """Why something failed."""

    code: str
    detail: str
    log: list[str] = Field([], description="the last lines of what the process that worked on it said, as far as known")

    @classmethod
    def of(cls, error: Mapping[str, Any] | None) -> Self | None:
        return cls(code=error["code"], detail=error["detail"], log=error.get("log", [])) if error else None
