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


def _written(pattern: str, example: str) -> BeforeValidator:
    """Pydantic alone would take seconds since 1970 as well."""

    def check(value: object) -> object:
        if not isinstance(value, str) or not re.match(pattern, value):
            raise ValueError(f"as in {example}")
        return value

    return BeforeValidator(check)


def _is_whole(number: object) -> object:
    return int(number) if isinstance(number, float) and number.is_integer() else number


PlainText = Annotated[str, AfterValidator(_plain), Field(json_schema_extra={"pattern": _PLAIN})]
Name = Annotated[PlainText, Field(min_length=1, max_length=200)]
Metadata = Annotated[
    dict[Annotated[PlainText, Field(min_length=1, max_length=64)], Annotated[PlainText, Field(max_length=512)]],
    Field(max_length=16, json_schema_extra={"additionalProperties": False}),
]
# An integer as JSON Schema has it: 5 and 5.0, neither "5" nor true.
WHOLE = BeforeValidator(_is_whole)
Moment = Annotated[AwareDatetime, _written(r"\d{4}-\d{2}-\d{2}[Tt ]", "2026-01-02T00:00:00Z")]
Day = Annotated[date, _written(r"\d{4}-\d{2}-\d{2}\Z", "2026-01-02")]
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
