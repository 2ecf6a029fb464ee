"""The bodies of inference: a request's JSON and binary brought to images, predictions to a reply's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from api import tensors
from api.bodies import validated
from api.inference_schemas import InferInput, InferOutput, InferredTensor, InferReply, InferRequest
from api.problems import Problem
from api.tensors import TensorError
from bpt_core import images
from bpt_store.settings import Settings

if TYPE_CHECKING:
    # The role `api` never loads torch.
    from bpt_core.engine import Input
    from bpt_core.predict import Prediction

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
IMAGE = "image"
SCORES, LABEL, FEATURES = "scores", "label", "features"


@dataclass(frozen=True)
class Body:
    """`json` is the request, `binary` what came behind it."""

    json: bytes
    binary: memoryview


@dataclass(frozen=True)
class Asked:
    id: str | None
    images: list[Input]
    outputs: list[InferOutput]
    binary_by_default: bool


def openapi() -> dict[str, Any]:
    """What the route's OpenAPI says of its body; the schema is registered in api/app.py."""
    json = {"schema": {"$ref": f"#/components/schemas/{InferRequest.__name__}"}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    header = {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "schema": {"type": "integer"},
        "description": "where tensors come in binary: the bytes of the JSON before them",
    }
    content = {"application/json": json, BINARY: binary}
    return {"parameters": [header], "requestBody": {"required": True, "content": content}}


async def receive(request: Request, settings: Settings) -> Body:
    """Raises Problem: unsupported_media_type, invalid_request, payload_too_large."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # Images hardly get smaller, and what is small may become anything.
        raise Problem("unsupported_media_type", "send the body as it is: Content-Encoding is not supported")
    announced = request.headers.get(HEADER_LENGTH)
    if announced is not None and not (announced.isascii() and announced.isdigit() and len(announced) < 12):
        raise Problem("invalid_request", f"{HEADER_LENGTH} is no number of bytes")
    limit_bytes = settings.predict_json_limit_bytes
    if announced is not None and int(announced) > limit_bytes:
        raise Problem("payload_too_large", f"at most {limit_bytes} bytes of JSON")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if announced is None and len(body) > limit_bytes:
            raise Problem("payload_too_large", f"at most {limit_bytes} bytes of JSON; tensors in binary may be larger")
    length = len(body) if announced is None else int(announced)
    if length > len(body):
        raise Problem("invalid_request", f"{HEADER_LENGTH} is {length}, and {len(body)} bytes came")
    whole = memoryview(body)
    return Body(bytes(whole[:length]), whole[length:])


def read(body: Body, image_size: int, settings: Settings) -> Asked:
    """`image_size` is the side of the backbone's pictures.

    Raises Problem: invalid_request, payload_too_large; ImageError; RequestValidationError.
    """
    asked = validated(InferRequest, body.json)
    _check_outputs(asked.outputs)
    try:
        given = _images(asked.inputs[0], body.binary, image_size, settings)
    except TensorError as error:
        raise Problem("invalid_request", f"input {IMAGE}: {error}") from None
    outputs = asked.outputs or [InferOutput(name=SCORES), InferOutput(name=LABEL)]
    return Asked(asked.id, given, outputs, asked.parameters.binary_data_output)


def reply(
    model_name: str, version: str, used: dict[str, str], asked: Asked, predictions: Sequence[Prediction]
) -> Response:
    """JSON, and behind it what was asked for in binary."""
    described, parts = [], []
    for output in asked.outputs:
        tensor = _tensor(output, predictions)
        one = InferredTensor(name=output.name, datatype=tensors.datatype_of(tensor), shape=list(tensor.shape))
        wish = output.parameters.binary_data
        if asked.binary_by_default if wish is None else wish:
            parts.append(tensors.to_binary(tensor))
            one.parameters = {"binary_data_size": len(parts[-1])}
        else:
            one.data = tensors.to_json(tensor)
        described.append(one)
    answer = InferReply(model_name=model_name, model_version=version, id=asked.id, parameters=used, outputs=described)
    json = answer.model_dump_json(exclude_none=True).encode()
    if not parts:
        return Response(json, media_type="application/json")
    return Response(b"".join([json, *parts]), headers={HEADER_LENGTH: str(len(json))}, media_type=BINARY)


def _check_outputs(outputs: list[InferOutput]) -> None:
    names = [output.name for output in outputs]
    if unknown := set(names) - {SCORES, LABEL, FEATURES}:
        raise Problem("invalid_request", f"there is no output {min(unknown)!r}: {SCORES}, {LABEL} and {FEATURES} are")
    if len(set(names)) < len(names):
        raise Problem("invalid_request", "an output is asked for twice")
    for output in outputs:
        if output.parameters.shared_memory_region is not None:
            raise Problem("invalid_request", "shared memory is not supported")
        if output.parameters.classification is not None and output.name != SCORES:
            raise Problem("invalid_request", f"classification is of {SCORES}, not of {output.name}")


def _images(given: InferInput, binary: memoryview, image_size: int, settings: Settings) -> list[Input]:
    size, shape = given.parameters.binary_data_size, given.shape
    if given.name != IMAGE:
        raise Problem("invalid_request", f"the one input is {IMAGE}, not {given.name!r}")
    if given.parameters.shared_memory_region is not None:
        raise TensorError("shared memory is not supported")
    if (given.data is None) == (size is None):
        raise TensorError("either data or binary_data_size is needed")
    if len(binary) != (size or 0):
        raise TensorError(f"{size or 0} bytes are announced behind the JSON, and {len(binary)} came")
    _check_shape(given.datatype, shape, image_size)
    if shape[0] > settings.images_per_prediction:
        raise Problem("payload_too_large", f"at most {settings.images_per_prediction} images in one request")
    if given.datatype == tensors.BYTES:
        if size is None:
            raise TensorError("strings of JSON cannot hold an encoded image: send BYTES in binary")
        encoded = tensors.strings_of_binary(binary, shape[0])
        if any(len(each) > settings.image_limit_bytes for each in encoded):
            raise Problem("payload_too_large", f"at most {settings.image_limit_bytes} bytes for one image")
        return [*encoded]
    if given.data is None:
        numbers = tensors.numbers_of_binary(binary, given.datatype, shape)
    else:
        numbers = tensors.numbers_of_json(given.data, given.datatype, shape)
    if given.datatype == "UINT8":
        return [images.of_pixels(each) for each in numbers]
    for index, each in enumerate(numbers):
        if not np.isfinite(each).all():
            raise TensorError(f"image {index} holds what is no finite number")
    return [*numbers]


def _check_shape(datatype: str, shape: list[int], image_size: int) -> None:
    """Everything but the first length, which is the number of images."""
    if datatype == tensors.BYTES:
        fits, wanted = len(shape) == 1, "[-1]"
    elif datatype == "UINT8":
        fits, wanted = len(shape) == 4 and shape[3] == 3, "[-1, height, width, 3]"
    elif datatype == "FP32":
        fits, wanted = shape[1:] == [3, image_size, image_size], f"[-1, 3, {image_size}, {image_size}]"
    else:
        raise TensorError(f"the datatype is BYTES, UINT8 or FP32, not {datatype!r}")
    if not fits:
        raise TensorError(f"{datatype} has the shape {wanted}, not {shape}")


def _tensor(output: InferOutput, predictions: Sequence[Prediction]) -> NDArray[Any]:
    if output.name == LABEL:
        return np.array([next(iter(each.labels()), "") for each in predictions], np.object_)
    if output.name == FEATURES:
        return np.stack([each.features.numpy() for each in predictions])
    if (count := output.parameters.classification) is not None:
        return np.array([_classes(each, count) for each in predictions], np.object_)
    return np.stack([each.probabilities.numpy() for each in predictions])


def _classes(prediction: Prediction, count: int) -> list[str]:
    """The best `count`, each as the protocol's classification extension writes it: score:index:label."""
    indices = {label: index for index, label in enumerate(prediction.facts.class_names)}
    return [f"{score:.6f}:{indices[label]}:{label}" for label, score in prediction.top(count)]
