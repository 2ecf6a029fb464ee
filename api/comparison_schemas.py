"""Comparisons over the wire; habits as in api/schemas.py."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from bpt_core import comparison
from bpt_core.comparison import Flip, Pair, Side


class ComparedPromptSet(BaseModel):
    prompt_set: str = Field(examples=["birds:3"])
    accuracy: float | None = Field(description="share of the images that it is right about; null: there are none")
    calibration_error: float | None = Field(
        description="expected calibration error of what it answered; null: several labels, or no answer"
    )

    @classmethod
    def of(cls, prompt_set: str, side: Side) -> Self:
        return cls(prompt_set=prompt_set, accuracy=side.accuracy, calibration_error=side.calibration_error)


class ComparedClass(BaseModel):
    """`a` and `b`: the share of the images of the class that they find."""

    name: str
    images: int
    a: float
    b: float


class Comparison(BaseModel):
    """An image is right where its class comes first or, with several labels, where all are predicted and no other."""

    images: int
    errors: int = Field(description="images that could not be read: both are wrong about them")
    a: ComparedPromptSet
    b: ComparedPromptSet
    lost: int = Field(description="images that a is right about and b wrong")
    won: int = Field(description="images that a is wrong about and b right")
    agreement: float | None = Field(description="share of the images that both answer the same, right or wrong")
    p_value: float = Field(
        description="McNemar's exact test: how likely so uneven a split of lost and won is where neither is better"
    )
    classes: list[ComparedClass] = Field(description="those that have images, by name")

    @classmethod
    def of(cls, a: str, b: str, found: comparison.Comparison) -> Self:
        return cls(
            images=found.images,
            errors=found.unread,
            a=ComparedPromptSet.of(a, found.a),
            b=ComparedPromptSet.of(b, found.b),
            lost=found.flips[Flip.LOST],
            won=found.flips[Flip.WON],
            agreement=found.agreement,
            p_value=found.p_value,
            classes=[
                ComparedClass(name=name, images=images, a=of_a, b=of_b) for name, images, of_a, of_b in found.classes()
            ],
        )


class FlippedImage(BaseModel):
    """`image` as in the results; `a` and `b` are what they answered, nothing where several labels could have been."""

    image: str
    flip: Flip
    labels: list[str]
    a: list[str]
    b: list[str]

    @classmethod
    def of(cls, pair: Pair) -> Self:
        assert pair.flip is not None
        return cls(
            image=pair.image,
            flip=pair.flip,
            labels=list(pair.labels),
            a=list(pair.a.labels),
            b=list(pair.b.labels),
        )
