"""Items of datasets over the wire; habits as in api/schemas.py."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from bpt_core.items import IndexedItem

SplitName = Literal["train", "val", "test"]


class DatasetItem(BaseModel):
    id: str = Field(description="the same for the same picture at the same place in every version")
    path: str = Field(description="where it lay in what was sent")
    labels: list[str]
    split: SplitName
    group: str | None
    format: str = Field(description="of the original")
    width: int = Field(description="pixels of the original, upright")
    height: int
    stored_width: int = Field(description="pixels as stored")
    stored_height: int
    brightness: float = Field(description="mean, 0 black to 1 white")
    contrast: float
    sharpness: float
    entropy: float = Field(description="bits per pixel; next to nothing for a picture of one colour")
    findings: list[str] = Field(description="codes of the findings of the report that concern it")
    sha256: str = Field(description="of size and pixels")

    @classmethod
    def of(cls, item: IndexedItem) -> Self:
        facts = item.facts
        return cls(
            id=item.id,
            path=item.path,
            labels=list(item.labels),
            split=item.split.value,
            group=item.group,
            format=item.format,
            width=facts.width,
            height=facts.height,
            stored_width=item.size[0],
            stored_height=item.size[1],
            brightness=facts.brightness,
            contrast=facts.contrast,
            sharpness=facts.sharpness,
            entropy=facts.entropy,
            findings=list(item.findings),
            sha256=item.digest,
        )
