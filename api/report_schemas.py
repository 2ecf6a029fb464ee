"""The report of a tuning job over the wire; habits as in api/schemas.py."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from api.schemas import Trouble
from bpt_store import ids, models

Split = Literal["train", "val", "test"]


class JudgedImage(BaseModel):
    """One image of the dataset the job was tuned on."""

    item: str | None = Field(description="`itm_...`; null where the dataset has no index")
    path: str
    split: Split
    given: list[str] = Field(description="labels the dataset has")


class LabelError(JudgedImage):
    suggested: list[str] = Field(description="labels that are probably right")
    confidence: float = Field(
        description="between 0 and 1: the probability of what is suggested less that of what is given"
    )
    source: Literal["tuned", "cross-validation"] = Field(
        description="who says so: the prompt set itself, of images it has not learned from, or, of training images, "
        "linear heads on the frozen backbone that were each fitted without the images they judge"
    )


class LabelErrors(BaseModel):
    total: int
    items: list[LabelError] = Field(description="the worst, at most 200, worst first")


class HardImage(JudgedImage):
    predicted: list[str]
    loss: float = Field(description="cross-entropy in nats; with several labels the mean over them")


class ConfusedPair(BaseModel):
    """With several labels: images where `true` was missed and `predicted` was found without being there."""

    split: Split
    true: str
    predicted: str
    images: int
    rate: float = Field(description="share of the images of `true` in this split")


class Sampled(BaseModel):
    images: int
    of: int


class LeftOut(BaseModel):
    """A class whose label was not judged among the training images."""

    class_name: str
    images: int
    reason: str


class TuningReport(BaseModel):
    """What a tuning job found out about single images. Look before you relabel: these are probabilities."""

    job: str
    dataset: str
    dataset_version: int | None
    error: Trouble | None = Field(description="why there is no report, where it could not be made; the rest is empty")
    label_errors: LabelErrors
    hardest: list[HardImage] = Field(description="of validation and test, by the prompt set; at most 50, worst first")
    confused_pairs: list[ConfusedPair] = Field(
        description="of the test split, or of validation where there is none; at most 20, worst first"
    )
    sampled: Sampled | None = Field(description="how many training images were judged, where that is not all")
    left_out: list[LeftOut]

    @classmethod
    def of(cls, row: models.Job) -> Self:
        report = row.report
        assert report is not None
        assert row.dataset_id is not None
        return cls(
            job=ids.public(ids.JOB, row.id),
            dataset=ids.public(ids.DATASET, row.dataset_id),
            dataset_version=row.dataset_version,
            error=Trouble.of(report["error"]),
            label_errors=LabelErrors.model_validate(report["label_errors"]),
            hardest=[HardImage.model_validate(each) for each in report["hardest"]],
            confused_pairs=[ConfusedPair.model_validate(each) for each in report["confused_pairs"]],
            sampled=Sampled(**report["sampled"]) if report["sampled"] else None,
            left_out=[
                LeftOut(class_name=each["class"], images=each["images"], reason=each["reason"])
                for each in report["left_out"]
            ],
        )
