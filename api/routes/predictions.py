"""Predictions: a customer's prompt sets applied to images, on the shared frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from api import prediction_body
from api.deps import Services, ServicesDep, customer_of, require
from api.prediction_body import Given, GivenImage
from api.prediction_schemas import ImagePrediction, Predictions, Score, Seen, Timings, UsedPromptSet
from api.problems import STATUS, Problem, responses
from api.schemas import Trouble
from bpt_core.errors import BptError
from bpt_store import ids, prompt_sets, quarantine
from bpt_store.customers import Identity, Scope
from bpt_store.models import PromptSet, PromptSetVersion

if TYPE_CHECKING:
    # The role `api` shows this route in its OpenAPI, which is that of the whole service, and never loads torch.
    from api.engine import Serving
    from bpt_core.predict import Prediction

router = APIRouter(prefix="/v1/predictions", tags=["predictions"])

Resolved = dict[str, tuple[PromptSet, PromptSetVersion]]


@router.post(
    "",
    summary="Predict images with one prompt set or several",
    openapi_extra=prediction_body.openapi(),
    responses={
        **responses(
            *("not_found", "payload_too_large", "unsupported_media_type", "body_unreadable", "misdirected_request"),
            *("artifact_corrupt", "artifact_schema", "artifact_integrity", "prompt_set_too_large"),
            *("image_corrupt", "image_not_finite", "weights_unavailable", "overloaded"),
            *("prediction_failed", "request_timeout", "deadline_exceeded"),
        ),
        207: {"model": Predictions, "description": "some images failed: each has its own status"},
    },
)
async def create_predictions(
    request: Request,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.PREDICT))],
) -> Predictions:
    serving, customer_id = serving_of(request), customer_of(identity)
    given = await prediction_body.read(request, services.settings)
    # Resolved anew for every request: a moved alias or a deleted version counts from the next one on. Nothing stays
    # open in the database while the device computes.
    resolved = await run_in_threadpool(resolve, services, customer_id, given.references)
    wanted = {reference: serving.wanted(customer_id, version) for reference, (_, version) in resolved.items()}
    answer = await serving.predict(
        request,
        identity,
        [image.data for image in given.images],
        [[wanted[reference] for reference in image.prompt_sets] for image in given.images],
    )
    serving.metrics.saw_answer(
        ids.public(ids.CUSTOMER, customer_id),
        [[resolved[reference][0].name for reference in image.prompt_sets] for image in given.images],
        answer,
    )
    data = [
        _of_image(index, image, found, given, resolved)
        for index, (image, found) in enumerate(zip(given.images, answer.images, strict=True))
    ]
    failed = [item.error for item in data if item.error]
    if len(failed) == len(data):
        raise Problem(failed[0].code, f"no image could be predicted; the first: {failed[0].detail}", param="images")
    response.status_code = 207 if failed else 200
    return Predictions(
        prompt_sets=[UsedPromptSet.of(reference, *resolved[reference]) for reference in resolved],
        data=data,
        timings=Timings(
            queue_ms=round(answer.queue_seconds * 1000, 3),
            decode_ms=round(answer.decode_seconds * 1000, 3),
            compute_ms=round(answer.compute_seconds * 1000, 3),
        ),
    )


def serving_of(request: Request) -> Serving:
    serving: Serving | None = request.app.state.serving
    if serving is None:
        raise Problem("misdirected_request", "this process has the role api; one with the role predict answers")
    return serving


def resolve(services: Services, customer_id: UUID, references: list[str]) -> Resolved:
    """All in one transaction, so that a reply is of one moment. Damaged for a version in quarantine."""
    with services.database.customer(customer_id) as session:
        found = {reference: prompt_sets.resolve(session, reference) for reference in references}
    for prompt_set, version in found.values():
        quarantine.check(prompt_set.name, version)
    return found


def _of_image(
    index: int, image: GivenImage, found: list[Prediction] | BptError, given: Given, resolved: Resolved
) -> ImagePrediction:
    if isinstance(found, BptError):
        error = Trouble(code=found.code, detail=str(found))
        return ImagePrediction(index=index, filename=image.name, status=STATUS[found.code], results=[], error=error)
    results = []
    for reference, prediction in zip(image.prompt_sets, found, strict=True):
        named, version = resolved[reference]
        labels = prediction.labels(given.options.threshold)
        results.append(
            Seen(
                prompt_set=f"{named.name}:{version.version}",
                labels=list(labels),
                unknown=not labels,
                predictions=[Score(label=label, score=score) for label, score in prediction.top(given.options.top_k)],
                features=prediction.features.tolist() if given.options.return_features else None,
            )
        )
    return ImagePrediction(index=index, filename=image.name, status=200, results=results, error=None)
