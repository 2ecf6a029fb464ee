"""Datasets and their versions, over the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from api.schemas import Metadata, Name, Request, Trouble
from bpt_store import ids, models


class Source(BaseModel):
    """What was sent. `sha256` is absent where it came in parts and nobody said."""

    sha256: str | None
    bytes: int


Counts = dict[str, dict[str, int]]


class DatasetContents(BaseModel):
    """What a dataset and a version of it have in common."""

    state: models.DatasetState
    task: str | None = Field(description="single-label, multi-label or unlabelled, once ready")
    class_names: list[str]
    counts: Counts | None = Field(description="images per class and split, once ready")
    splits: dict[str, int] | None = Field(description="images per split, once ready")
    image_count: int | None = Field(description="images in all, once ready")
    verdict: str | None = Field(description="good to tune, tune with care, or fix first: see the report")
    source: Source | None
    error: Trouble | None
    created_at: datetime


class DatasetVersion(DatasetContents):
    """Complete by itself; never changes once it is ready."""

    dataset: str
    number: int
    base: int | None = Field(description="the version it was made from; null for the first")

    @classmethod
    def of(cls, row: models.DatasetVersion) -> Self:
        return cls(dataset=ids.public(ids.DATASET, row.dataset_id), number=row.number, base=row.base, **_shown(row))


class Dataset(DatasetContents):
    """As its newest ready version is, or the first one before that."""

    id: str
    name: str
    version: int | None = Field(description="the newest ready version; `<id>:<number>` names one for good")
    options: dict[str, Any] = Field(description="how it is read")
    metadata: dict[str, str]

    @classmethod
    def of(cls, row: models.Dataset, shown: models.DatasetVersion) -> Self:
        return cls(
            id=ids.public(ids.DATASET, row.id),
            name=row.name,
            version=row.latest,
            options=row.options,
            metadata=row.custom,
            **{**_shown(shown), "created_at": row.created_at},
        )


class DatasetChange(Request):
    """What is absent stays as it is; metadata are replaced as a whole."""

    name: Name | None = Field(None, examples=["birds"])
    metadata: Metadata | None = None


def _shown(row: models.DatasetVersion) -> dict[str, Any]:
    """The fields of DatasetContents."""
    known = row.source_sha256 is not None or bool(row.source_bytes)
    return {
        "state": row.state,
        "task": row.task,
        "class_names": row.class_names,
        "counts": row.counts,
        "splits": row.splits,
        "image_count": row.images,
        "verdict": row.verdict,
        "source": Source(sha256=row.source_sha256, bytes=row.source_bytes or 0) if known else None,
        "error": Trouble.of(row.error),
        "created_at": row.created_at,
    }
