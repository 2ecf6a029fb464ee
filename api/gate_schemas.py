"""Gates and what they ask for, over the wire; habits as in api/schemas.py."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from api.batch_schemas import Split
from api.schemas import PlainText, Request
from bpt_store import gates, ids, models
from bpt_store.prompt_sets import NAME_PATTERN

_METRIC = "single-label: top1, top5, balanced_top1, coverage, accepted_accuracy; multi-label: exact_match, f1_micro, "
_METRIC += "f1_macro"


class GateChange(Request):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset": "ds_0199c0de000070008000000000000000:3",
                    "metric": "balanced_top1",
                    "floor": 0.9,
                    "aliases": ["production"],
                }
            ]
        },
    )

    dataset: str = Field(description="the golden images: `ds_...:3`, or `ds_...` for the version that is newest now")
    split: Split | None = Field(None, description="absent: all images of the dataset")
    metric: PlainText = Field("top1", max_length=64, description=_METRIC)
    floor: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    aliases: list[Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]] | None = Field(
        None, min_length=1, max_length=100, description="those it guards; absent: all"
    )


class Gate(BaseModel):
    prompt_set: str
    dataset: str
    dataset_version: int
    split: Split | None
    metric: str
    floor: float
    aliases: list[str] | None = Field(description="null: it guards all")
    set_at: datetime

    @classmethod
    def of(cls, name: str, row: models.Gate) -> Self:
        return cls(
            prompt_set=name,
            dataset=ids.public(ids.DATASET, row.dataset_id),
            dataset_version=row.dataset_version,
            split=row.split,
            metric=row.metric,
            floor=row.floor,
            aliases=row.aliases,
            set_at=row.set_at,
        )


class GateCheck(BaseModel):
    """How a version did on a dataset, found by a gate check or any other batch prediction."""

    id: str
    prompt_set: str
    version: int
    dataset: str
    dataset_version: int
    split: Split | None
    metrics: dict[str, float | None]
    passed: bool | None = Field(
        description="the gate as it is now; null where it asks for other images, or there is none"
    )
    job: str = Field(description="the batch prediction; its results tell what became of each image")
    created_at: datetime

    @classmethod
    def of(cls, name: str, row: models.Evaluation, gate: models.Gate | None) -> Self:
        return cls(
            id=ids.public(ids.EVALUATION, row.id),
            prompt_set=name,
            version=row.version,
            dataset=ids.public(ids.DATASET, row.dataset_id),
            dataset_version=row.dataset_version,
            split=row.split,
            metrics=row.metrics,
            passed=gates.passes(gate, row) if gate is not None and gates.asks_for(gate, row) else None,
            job=ids.public(ids.JOB, row.job_id),
            created_at=row.created_at,
        )
