"""Predictions: a customer's prompt set applied to images, on the shared frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from api import schemas
from api.deps import ServicesDep, customer_of, require
from api.problems import STATUS, Problem, responses
from bpt_core.errors import ImageError
from bpt_store import prompt_sets
from bpt_store.customers import Identity, Scope

if TYPE_CHECKING:
    # The role `api` shows this route in its OpenAPI, which is that of the whole service, and never loads torch.
    from api.engine import Answer, Engine

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])


@router.post(
    "",
    summary="Predict images with a prompt set",
    responses={
        **responses(
            "not_found",
            "payload_too_large",
            "artifact_schema",
            "artifact_integrity",
            "weights_unavailable",
            "image_corrupt",
            "misdirected_request",
        ),
        207: {"model": schemas.Predictions, "description": "some images failed: each has its own status"},
    },
)
def create_predictions(
    request: Request,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.PREDICT))],
    images: Annotated[list[UploadFile], File(description="encoded images: JPEG, PNG, WebP, BMP, TIFF")],
    prompt_set: Annotated[str, Form(max_length=100, description="`name` (newest version) or `name:3`")],
    top_k: Annotated[int, Form(ge=1, le=100, description="how many classes per image")] = 3,
) -> schemas.Predictions:
    engine: Engine | None = request.app.state.engine
    if engine is None:
        raise Problem("misdirected_request", "this process has the role api; one with the role predict answers")
    settings = services.settings
    if len(images) > settings.images_per_prediction:
        raise Problem("payload_too_large", f"at most {settings.images_per_prediction} images in one request")
    encoded = [image.file.read(settings.image_limit_bytes + 1) for image in images]
    if any(len(data) > settings.image_limit_bytes for data in encoded):
        raise Problem("payload_too_large", f"at most {settings.image_limit_bytes} bytes for one image")
    with services.database.customer(customer_of(identity)) as session:
        named, version = prompt_sets.resolve(session, prompt_set)
        served = engine.known(version.artifact_sha256)
        stored = prompt_sets.artifact(session, version) if served is None else b""
    # Nothing stays open in the database while the device computes.
    answer = engine.predict(encoded, served or engine.load(version.artifact_sha256, stored))
    data = _per_image(answer, [image.filename for image in images], top_k)
    failed = [item for item in data if item.error]
    if failed and len(failed) == len(data):
        first = failed[0].error
        assert first is not None
        raise Problem(first.code, f"no image could be read; the first: {first.detail}", param="images")
    response.status_code = 207 if failed else 200
    return schemas.Predictions(
        prompt_set=schemas.UsedPromptSet(
            name=named.name,
            version=version.version,
            artifact_sha256=version.artifact_sha256,
            backbone=version.backbone,
            backbone_fingerprint=version.backbone_fingerprint,
        ),
        data=data,
        timings=schemas.Timings(
            decode_ms=round(answer.decode_seconds * 1000, 3), compute_ms=round(answer.compute_seconds * 1000, 3)
        ),
    )


def _per_image(answer: Answer, filenames: list[str | None], top_k: int) -> list[schemas.ImagePrediction]:
    rows = iter(answer.probabilities)
    class_names = answer.prompt_set.class_names
    found = []
    for index, (image, filename) in enumerate(zip(answer.decoded, filenames, strict=True)):
        predictions: list[schemas.Score] = []
        error = None
        if isinstance(image, ImageError):
            error = schemas.Trouble(code=image.code, detail=str(image))
        else:
            scores, labels = next(rows).topk(min(top_k, len(class_names)))
            predictions = [
                schemas.Score(label=class_names[label], score=score)
                for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
            ]
        found.append(
            schemas.ImagePrediction(
                index=index,
                filename=filename,
                status=STATUS[error.code] if error else 200,
                predictions=predictions,
                error=error,
            )
        )
    return found
