"""The Open Inference Protocol over the wire: what is asked, and what is answered.

Unlike everywhere else unknown fields and parameters are let pass: clients send hints that other servers know.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(max_length=256)]
Dimension = Annotated[StrictInt, Field(ge=1, lt=2**31)]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """-1 is a length that requests choose."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] | None = Field(
        None, description="of the input: the shape it has in each of the other datatypes it may come in"
    )


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputParameters(BaseModel):
    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None
    shared_memory_region: Any = None


class InferInput(BaseModel):
    """`data`, or behind the JSON as many bytes as `binary_data_size` says."""

    name: Text
    datatype: Text = Field(examples=["BYTES", "UINT8", "FP32"])
    shape: list[Dimension] = Field(min_length=1, max_length=8)
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    binary_data: StrictBool | None = None
    classification: Annotated[StrictInt, Field(ge=1, lt=2**31)] | None = None
    shared_memory_region: Any = None


class InferOutput(BaseModel):
    name: Text
    parameters: OutputParameters = OutputParameters()


class RequestParameters(BaseModel):
    binary_data_output: StrictBool = False


class InferRequest(BaseModel):
    id: Text | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] = Field([], max_length=8, description="none: `scores` and `label`")
    parameters: RequestParameters = RequestParameters()


class InferredTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class InferReply(BaseModel):
    """`parameters` name the artifact and the backbone that answered."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, str]
    outputs: list[InferredTensor]
