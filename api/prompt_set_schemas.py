"""What is sent about prompt sets; habits as in api/schemas.py, which has what is sent back."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query
from pydantic import AfterValidator, Field

from api.schemas import Metadata, PromptSetName, Request
from bpt_store.prompt_sets import Label

_TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"
_PAIR = r"^[^\x00-\x1f\x7f]*=[^\x00-\x1f\x7f]*$"


def _text(text: str) -> str:
    if not re.fullmatch(_TEXT, text):
        raise ValueError("control characters but tabs and line breaks are not allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("lone surrogates are not allowed") from None
    return text


def _pair(text: str) -> str:
    if not re.fullmatch(_PAIR, text):
        raise ValueError("as in metadata=team=birds")
    return text


Description = Annotated[
    str,
    AfterValidator(_text),
    Field(max_length=2000, json_schema_extra={"pattern": _TEXT}, examples=["birds of Lake Constance"]),
]
MetadataFilter = Annotated[
    list[Annotated[str, AfterValidator(_pair), Field(max_length=600, json_schema_extra={"pattern": _PAIR})]] | None,
    Query(max_length=16, description="only what has this `key=value` in its metadata; several: all of them"),
]


class LabelChange(Request):
    """What is absent stays as it is; metadata are replaced as a whole."""

    description: Description | None = Field(None, description="an empty one removes it")
    metadata: Metadata | None = None

    def label(self) -> Label:
        return Label(self.description, self.metadata)


class PromptSetCreate(LabelChange):
    name: PromptSetName


def wanted(metadata: list[str] | None) -> dict[str, str]:
    """What a MetadataFilter asks for."""
    return dict(each.split("=", 1) for each in metadata or ())
