"""Batch predictions over the wire; habits as in api/schemas.py."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.prediction_schemas import ExactPromptSet
from api.schemas import Metadata, PlainText, Request, Trouble
from bpt_store import ids, models
from bpt_store.scheduling import Priority

Reference = Annotated[PlainText, Field(min_length=1, max_length=150)]
Split = Literal["train", "val", "test"]


class ResultsFormat(StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def media_type(self) -> str:
        return _MEDIA_TYPES[self]


_MEDIA_TYPES = {
    ResultsFormat.JSONL: "application/x-ndjson",
    ResultsFormat.CSV: "text/csv",
    ResultsFormat.PARQUET: "application/vnd.apache.parquet",
}


class BatchPredictionCreate(Request):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset": "ds_0199c0de000070008000000000000000",
                    "prompt_sets": ["birds@production", "quality:4"],
                    "top_k": 3,
                }
            ]
        },
    )

    dataset: str = Field(description="`ds_...`, the newest version, or `ds_...:3`")
    prompt_sets: list[Reference] = Field(
        min_length=1,
        max_length=16,
        description="`name` (newest version), `name:3` or `name@alias`; those of the same version count once",
    )
    split: Split | None = Field(None, description="absent: all images of the dataset")
    top_k: int = Field(5, ge=1, le=100, description="how many classes per image and prompt set")
    priority: Priority = Field(Priority.NORMAL, description="among your own batch predictions that wait")
    metadata: Metadata = Field(default_factory=dict)


class BatchProgress(BaseModel):
    """Images."""

    done: int
    total: int


class ResultsFile(BaseModel):
    bytes: int
    sha256: str


class BatchResult(BaseModel):
    """One row for each image and prompt set; `errors` counts those of images that could not be read."""

    images: int
    rows: int
    errors: int
    metrics: dict[str, dict[str, float | None]] = Field(
        {},
        description="of a labelled dataset, for each prompt set that knows its classes: shares between 0 and 1, where "
        "an image that could not be read counts as answered wrong; null where there is nothing to say",
        examples=[{"birds:3": {"top1": 0.93, "balanced_top1": 0.91}}],
    )
    files: dict[ResultsFormat, ResultsFile]


class BatchPrediction(BaseModel):
    id: str
    state: models.JobState
    dataset: str
    dataset_version: int | None
    prompt_sets: list[ExactPromptSet]
    split: Split | None
    top_k: int
    images: int = Field(description="images to predict, with every prompt set")
    priority: Priority
    attempt: int
    failures: int
    progress: BatchProgress | None
    result: BatchResult | None
    error: Trouble | None
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: models.Job) -> Self:
        assert row.dataset_id is not None
        return cls(
            id=ids.public(ids.JOB, row.id),
            state=row.state,
            dataset=ids.public(ids.DATASET, row.dataset_id),
            dataset_version=row.dataset_version,
            prompt_sets=[ExactPromptSet(**used) for used in row.payload["prompt_sets"]],
            split=row.payload["split"],
            top_k=row.payload["top_k"],
            images=row.payload["images"],
            priority=Priority.of(row.priority),
            attempt=row.attempt,
            failures=row.failures,
            progress=BatchProgress(**row.progress) if row.progress else None,
            result=BatchResult(**row.result) if row.result else None,
            error=Trouble.of(row.error),
            metadata=row.custom,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
