"""The body of a prediction, a form with files or JSON with base64, brought into one shape."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from api.bodies import validated
from api.prediction_schemas import PredictionCreate, PredictionOptions
from api.problems import Problem, never_null
from bpt_store.settings import Settings

JSON = "application/json"
FORM = "multipart/form-data"


@dataclass(frozen=True)
class GivenImage:
    """Encoded, and not looked at yet; `prompt_sets` are references, at least one."""

    name: str | None
    data: bytes
    prompt_sets: list[str]


@dataclass(frozen=True)
class Given:
    images: list[GivenImage]
    options: PredictionOptions

    @property
    def references(self) -> list[str]:
        """Each once, in the order of their first use."""
        return list(dict.fromkeys(reference for image in self.images for reference in image.prompt_sets))


def openapi() -> dict[str, Any]:
    """What the route's OpenAPI says of its body; the schemas are registered in api/app.py."""
    form = PredictionOptions.model_json_schema(ref_template="#/components/schemas/{model}")
    for field in form["properties"].values():
        never_null(field)
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    form["properties"] = {**form["properties"], "images": files}
    form["required"] = ["images", "prompt_sets"]
    json = {"$ref": f"#/components/schemas/{PredictionCreate.__name__}"}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": form}, JSON: {"schema": json}}}}


async def read(request: Request, settings: Settings) -> Given:
    """Raises Problem: payload_too_large, unsupported_media_type, invalid_request; RequestValidationError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        async with request.form() as form:
            given = await _of_form(form, settings)
    elif kind == JSON:
        given = await run_in_threadpool(_of_json, await _within(request, settings.predict_json_limit_bytes))
    else:
        raise Problem("unsupported_media_type", f"images come as {FORM} or, in base64, as {JSON}")
    if not given.images:
        raise Problem("invalid_request", "no images were sent", param="images")
    if len(given.images) > settings.images_per_prediction:
        raise Problem("payload_too_large", f"at most {settings.images_per_prediction} images in one request")
    if any(len(image.data) > settings.image_limit_bytes for image in given.images):
        raise Problem("payload_too_large", f"at most {settings.image_limit_bytes} bytes for one image")
    if any(not image.prompt_sets for image in given.images):
        raise Problem("invalid_request", "every image needs a prompt set", param="prompt_sets")
    if len(given.references) > settings.predict_prompt_sets:
        raise Problem("payload_too_large", f"at most {settings.predict_prompt_sets} prompt sets in one request")
    return given


async def _of_form(form: FormData, settings: Settings) -> Given:
    fields: dict[str, Any] = {name: value for name, value in form.items() if name not in ("images", "prompt_sets")}
    if "prompt_sets" in form:
        fields["prompt_sets"] = form.getlist("prompt_sets")
    options = validated(PredictionOptions, fields)
    files = [file for file in form.getlist("images") if isinstance(file, UploadFile)]
    if len(files) != len(form.getlist("images")):
        raise Problem("invalid_request", "`images` are files, each with a filename", param="images")
    if len(files) > settings.images_per_prediction:
        raise Problem("payload_too_large", f"at most {settings.images_per_prediction} images in one request")
    data = [await file.read(settings.image_limit_bytes + 1) for file in files]
    return Given(
        [GivenImage(file.filename, each, options.prompt_sets) for file, each in zip(files, data, strict=True)], options
    )


async def _within(request: Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise Problem("payload_too_large", f"at most {limit_bytes} bytes of JSON; a form may be larger")
    return bytes(body)


def _of_json(body: bytes) -> Given:
    asked = validated(PredictionCreate, body)
    images = []
    for index, image in enumerate(asked.images):
        try:
            data = base64.b64decode(image.data, validate=True)
        except (binascii.Error, ValueError):
            raise Problem("invalid_request", "this is no base64", param=f"images.{index}.data") from None
        images.append(GivenImage(image.name, data, image.prompt_sets or asked.prompt_sets))
    return Given(images, asked)
