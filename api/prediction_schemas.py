"""Predictions over the wire: what is asked, and what is answered."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field

from api.schemas import PlainText, Request, Trouble
from bpt_store.models import PromptSet, PromptSetVersion

REFERENCE_LENGTH = 129  # of a name, "@" and an alias

Reference = Annotated[
    PlainText,
    Field(
        min_length=1,
        max_length=REFERENCE_LENGTH,
        description="`name` (newest version), `name:3` or `name@alias`",
        examples=["birds@production"],
    ),
]
Threshold = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="the least score for a label to apply; absent: what was fitted when the prompt set was tuned",
    ),
]


class PredictionOptions(Request):
    """How images are to be seen; as JSON or as the fields of a form."""

    prompt_sets: list[Reference] = Field(
        [], description="applied to every image that names none of its own; in a form the field may come repeatedly"
    )
    top_k: int = Field(3, ge=1, le=100, description="how many classes per image")
    threshold: Threshold | None = None
    return_features: bool = Field(False, description="also the features that the head saw")


class ImageGiven(Request):
    data: str = Field(
        min_length=1,
        description="the encoded image in base64: JPEG, PNG, WebP, BMP, TIFF",
        json_schema_extra={"pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"},
    )
    name: PlainText | None = Field(None, max_length=255, description="given back as `filename`")
    prompt_sets: list[Reference] = Field([], description="instead of those of the request")


class PredictionCreate(PredictionOptions):
    images: list[ImageGiven] = Field(min_length=1)


class Score(BaseModel):
    label: str
    score: float


class Seen(BaseModel):
    """What one prompt set says of one image. `labels` apply; none where it is `unknown`."""

    prompt_set: str = Field(examples=["birds:3"])
    labels: list[str]
    unknown: bool
    predictions: list[Score] = Field(description="the `top_k` classes with calibrated probabilities, best first")
    features: list[float] | None = Field(None, description="for `return_features`")


class ImagePrediction(BaseModel):
    """One per image of the request, in its order; `status` is 200, or that of the image's own error."""

    index: int
    filename: str | None
    status: int
    results: list[Seen] = Field(description="one for each prompt set, in the order they were asked for")
    error: Trouble | None


class ExactPromptSet(BaseModel):
    """What a reference meant when it was resolved."""

    name: str
    version: int
    artifact_sha256: str
    backbone: str
    backbone_fingerprint: str


class UsedPromptSet(ExactPromptSet):
    """The version that a reference of the request led to."""

    reference: str

    @classmethod
    def of(cls, reference: str, named: PromptSet, version: PromptSetVersion) -> Self:
        return cls(
            reference=reference,
            name=named.name,
            version=version.version,
            artifact_sha256=version.artifact_sha256,
            backbone=version.backbone,
            backbone_fingerprint=version.backbone_fingerprint,
        )


class Timings(BaseModel):
    """Of the image that was done last: they add up to the whole."""

    queue_ms: float
    decode_ms: float
    compute_ms: float


class Predictions(BaseModel):
    prompt_sets: list[UsedPromptSet]
    data: list[ImagePrediction]
    timings: Timings
