"""The Open Inference Protocol (KServe's v2) with binary tensors: a model is a prompt set."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import inference_body, tensors
from api.deps import PredictSession, Services, ServicesDep, customer_of, require
from api.inference_body import BINARY, FEATURES, HEADER_LENGTH, IMAGE, LABEL, SCORES
from api.inference_schemas import (
    InferReply,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from api.problems import Problem, protocol_responses
from api.routes import health
from api.routes.predictions import resolve, serving_of
from bpt_core import catalog
from bpt_core.errors import BptError
from bpt_store import ids, prompt_sets, quarantine
from bpt_store.customers import Identity, Scope
from bpt_store.errors import NotFound

router = APIRouter(prefix="/v2", tags=["inference protocol"])

PLATFORM = "pytorch_bpt"

ModelName = Annotated[str, Path(description="a prompt set: `name` or `name@alias`", examples=["birds@production"])]
ModelVersion = Annotated[str, Path(description="the number of a version", examples=["3"])]
Predicting = Annotated[Identity, Depends(require(Scope.PREDICT))]

_MODEL_ERRORS = protocol_responses(
    *("unauthenticated", "insufficient_scope", "not_found", "invalid_request", "rate_limited"),
    "database_unavailable",
)
_INFER: dict[str, Any] = {
    "openapi_extra": inference_body.openapi(),
    "response_class": Response,
    "responses": {
        **_MODEL_ERRORS,
        **protocol_responses(
            *("payload_too_large", "unsupported_media_type", "artifact_corrupt", "image_corrupt"),
            *("overloaded", "prediction_failed", "request_timeout", "deadline_exceeded"),
        ),
        200: {
            "model": InferReply,
            "description": "JSON; with tensors in binary, these come behind it, and the header tells where",
            "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
            "headers": {HEADER_LENGTH: {"schema": {"type": "integer"}, "description": "the bytes of the JSON"}},
        },
    },
}


@router.get("", summary="Describe the server", responses=protocol_responses())
async def get_server_metadata(request: Request) -> ServerMetadata:
    serving_of(request)
    app = request.app
    return ServerMetadata(name=app.title, version=app.version, extensions=["binary_tensor_data", "classification"])


@router.get("/health/live", summary="The server lives", responses=protocol_responses())
async def get_server_live(request: Request) -> ServerLive:
    serving_of(request)
    return ServerLive(live=True)


@router.get(
    "/health/ready",
    summary="The server can infer: the database answers, backbones are loaded",
    responses=protocol_responses("not_ready", "database_unavailable"),
)
def get_server_ready(request: Request, services: ServicesDep) -> ServerReady:
    serving_of(request)
    health.get_readiness(request, services)
    return ServerReady(ready=True)


@router.get("/models/{name}", summary="Describe a model: a prompt set", responses=_MODEL_ERRORS)
def get_model_metadata(request: Request, name: ModelName, session: PredictSession) -> ModelMetadata:
    return _metadata(request, session, _reference(name))


@router.get("/models/{name}/versions/{version}", summary="Describe a version of a model", responses=_MODEL_ERRORS)
def get_model_version_metadata(
    request: Request, name: ModelName, version: ModelVersion, session: PredictSession
) -> ModelMetadata:
    return _metadata(request, session, _reference(name, version))


@router.get("/models/{name}/ready", summary="A model can infer", responses=_MODEL_ERRORS)
def get_model_ready(request: Request, name: ModelName, session: PredictSession) -> ModelReady:
    return _ready(request, session, _reference(name))


@router.get("/models/{name}/versions/{version}/ready", summary="A version can infer", responses=_MODEL_ERRORS)
def get_model_version_ready(
    request: Request, name: ModelName, version: ModelVersion, session: PredictSession
) -> ModelReady:
    return _ready(request, session, _reference(name, version))


@router.post("/models/{name}/infer", summary="Infer with a model", **_INFER)
async def infer(request: Request, name: ModelName, services: ServicesDep, identity: Predicting) -> Response:
    return await _infer(request, services, identity, _reference(name))


@router.post("/models/{name}/versions/{version}/infer", summary="Infer with a version of a model", **_INFER)
async def infer_with_version(
    request: Request, name: ModelName, version: ModelVersion, services: ServicesDep, identity: Predicting
) -> Response:
    return await _infer(request, services, identity, _reference(name, version))


def _reference(name: str, version: str | None = None) -> str:
    """A version belongs into the path: what has one is no name."""
    if ":" in name:
        raise NotFound(f"there is no model {name!r}")
    return name if version is None else f"{name}:{version}"


def _metadata(request: Request, session: Session, reference: str) -> ModelMetadata:
    serving_of(request)
    named, version = prompt_sets.resolve(session, reference)
    backbone = catalog.find(version.backbone)
    size = backbone.image_size
    others = {"UINT8": "[-1, -1, -1, 3]", "FP32": f"[-1, 3, {size}, {size}]"}
    return ModelMetadata(
        name=named.name,
        versions=[str(number) for number in prompt_sets.versions(session, named.id)],
        platform=PLATFORM,
        # One of the three, since a client takes every entry for an input of its own.
        inputs=[TensorMetadata(name=IMAGE, datatype=tensors.BYTES, shape=[-1], parameters=others)],
        outputs=[
            TensorMetadata(name=SCORES, datatype="FP32", shape=[-1, len(version.class_names)]),
            TensorMetadata(name=LABEL, datatype=tensors.BYTES, shape=[-1]),
            TensorMetadata(name=FEATURES, datatype="FP32", shape=[-1, backbone.embed_dim]),
        ],
    )


def _ready(request: Request, session: Session, reference: str) -> ModelReady:
    if not serving_of(request).is_ready:
        raise Problem("not_ready", "the backbones are not loaded yet")
    named, version = prompt_sets.resolve(session, reference)
    quarantine.check(named.name, version)
    return ModelReady(name=named.name, ready=True)


async def _infer(request: Request, services: Services, identity: Identity, reference: str) -> Response:
    serving, customer_id = serving_of(request), customer_of(identity)
    # As with predictions: anew for every request, and nothing stays open in the database meanwhile.
    named, version = (await run_in_threadpool(resolve, services, customer_id, [reference]))[reference]
    size = catalog.find(version.backbone).image_size
    # No name for the body, so that it does not outlive its reading: it may be more than a gigabyte.
    asked = await run_in_threadpool(
        inference_body.read, await inference_body.receive(request, services.settings), size, services.settings
    )
    wanted = [[serving.wanted(customer_id, version)]] * len(asked.images)
    answer = await serving.predict(request, identity, asked.images, wanted)
    serving.metrics.saw_answer(ids.public(ids.CUSTOMER, customer_id), [[named.name]] * len(asked.images), answer)
    predictions = []
    for index, found in enumerate(answer.images):
        if isinstance(found, BptError):
            # The protocol knows no error of a single image.
            raise Problem(found.code, f"image {index}: {found}")
        predictions += found
    used = {"artifact_sha256": version.artifact_sha256, "backbone_fingerprint": version.backbone_fingerprint}
    return await run_in_threadpool(inference_body.reply, named.name, str(version.version), used, asked, predictions)
