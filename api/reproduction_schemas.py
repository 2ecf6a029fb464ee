"""What is told of a version that was learned once more."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Reproduced(BaseModel):
    """A version, resolved when the job was created."""

    prompt_set: str
    version: int
    artifact_sha256: str


class TensorDifference(BaseModel):
    """Null where the tensor is there only once, or in another shape."""

    is_equal: bool = Field(description="bit for bit")
    largest: float | None = Field(description="between two numbers")
    relative: float | None = Field(description="the norm of the difference as a share of the norm of what was")


class Learned(BaseModel):
    artifact_sha256: str
    code_version: str | None = Field(description="the release of this service that learned it")
    metrics: dict[str, Any]


class Reproduction(BaseModel):
    """`then` and `now` on the same images."""

    verdict: Literal["identical", "equivalent", "different"] = Field(
        description="identical: bit for bit; equivalent: no tensor differs by more than 1 % of its norm, "
        "and 99 % of the answers are the same"
    )
    tensors: dict[str, TensorDifference] = Field(description="prompts, head.weight, head.bias")
    split: Literal["test", "val"] = Field(description="where answers were compared; val where there is no test split")
    images: int
    agreement: float = Field(description="the share of these images that both answer the same")
    then: Learned
    now: Learned
