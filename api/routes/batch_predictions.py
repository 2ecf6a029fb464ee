"""Batch predictions: a whole dataset through some prompt sets, as a job whose results are files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from api import job_events
from api.batch_schemas import BatchPrediction, BatchPredictionCreate, ResultsFormat
from api.deps import (
    After,
    Limit,
    PredictSession,
    ServicesDep,
    customer_of,
    require,
    ring_after_commit,
)
from api.idempotency import OnceRoute
from api.problems import Problem, responses
from api.schemas import Page
from api.tuning_schemas import JobEvent
from bpt_store import audit, batch_predictions, datasets, ids, jobs, models
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind, JobState
from bpt_store.paging import page

router = APIRouter(prefix="/v1/batch-predictions", tags=["batch-predictions"], route_class=OnceRoute)

KIND = JobKind.BATCH_PREDICT


@router.post(
    "",
    status_code=201,
    summary="Predict the images of a dataset with up to 16 prompt sets",
    responses=responses("not_found", "dataset_not_ready", "dataset_empty", "queue_limit", "artifact_integrity"),
)
def create_batch_prediction(
    body: BatchPredictionCreate,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.PREDICT))],
    session: PredictSession,
) -> BatchPrediction:
    dataset = datasets.get_ready(session, datasets.Reference.parse(body.dataset))
    images = datasets.images(dataset, body.split)
    if not images:
        raise Problem("dataset_empty", f"the dataset has no images in the split {body.split}", param="split")
    job = batch_predictions.create(
        session,
        customer_of(identity),
        dataset,
        body.prompt_sets,
        split=body.split,
        top_k=body.top_k,
        images=images,
        custom=body.metadata,
        priority=body.priority,
        unfinished_limit=services.settings.queued_jobs_limit,
    )
    audit.record(session, Action.BATCH_CREATED, ids.public(ids.JOB, job.id))
    ring_after_commit(session, KIND)
    response.headers["Location"] = f"/v1/batch-predictions/{ids.public(ids.JOB, job.id)}"
    session.refresh(job)
    return BatchPrediction.of(job)


@router.get("", summary="List batch predictions", responses=responses("not_found"))
def list_batch_predictions(
    session: PredictSession,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
) -> Page[BatchPrediction]:
    query = select(models.Job).where(models.Job.kind == KIND)
    if state is not None:
        query = query.where(models.Job.state == state)
    cursor = ids.parse(ids.JOB, after) if after else None
    rows, has_more = page(session, query, models.Job.id, cursor, limit)
    data = [BatchPrediction.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{job_id}", summary="Show a batch prediction", responses=responses("not_found"))
def get_batch_prediction(job_id: str, session: PredictSession) -> BatchPrediction:
    return BatchPrediction.of(jobs.get(session, ids.parse(ids.JOB, job_id), KIND))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a batch prediction: at once while it waits, within seconds while it runs",
    responses=responses("not_found", "job_terminal"),
)
def cancel_batch_prediction(job_id: str, session: PredictSession) -> BatchPrediction:
    job = jobs.cancel(session, ids.parse(ids.JOB, job_id), KIND)
    audit.record(session, Action.BATCH_CANCELLED, job_id, after={"state": job.state})
    session.refresh(job)
    return BatchPrediction.of(job)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a batch prediction that has ended, with its results",
    responses=responses("not_found", "job_unfinished"),
)
def delete_batch_prediction(job_id: str, session: PredictSession) -> None:
    jobs.delete(session, ids.parse(ids.JOB, job_id), KIND)
    audit.record(session, Action.BATCH_DELETED, job_id)


@router.get(
    "/{job_id}/events",
    summary="The events of a batch prediction; as a live stream with `Accept: text/event-stream`",
    response_model=Page[JobEvent],
    responses=job_events.RESPONSES,
)
async def list_batch_prediction_events(
    job_id: str,
    asked: job_events.AskedDep,
    identity: Annotated[Identity, Depends(require(Scope.PREDICT))],
) -> object:
    return await job_events.of_job(asked, identity, KIND, job_id)


@router.get(
    "/{job_id}/results",
    summary="Download the results: a row for each image and prompt set",
    response_class=StreamingResponse,
    responses={
        **responses("not_found", "job_unfinished"),
        200: {
            "description": "the file; its sha256 is the ETag",
            "content": {kind.media_type: {"schema": {"type": "string", "format": "binary"}} for kind in ResultsFormat},
        },
    },
)
def download_batch_prediction_results(
    job_id: str,
    services: ServicesDep,
    session: PredictSession,
    wanted: Annotated[ResultsFormat, Query(alias="format")] = ResultsFormat.JSONL,
) -> StreamingResponse:
    job = jobs.get(session, ids.parse(ids.JOB, job_id), KIND)
    file = batch_predictions.result_of(job)["files"][wanted]
    return StreamingResponse(
        services.objects.open(file["key"]),
        media_type=wanted.media_type,
        headers={
            "ETag": f'"{file["sha256"]}"',
            "Content-Length": str(file["bytes"]),
            "Content-Disposition": f'attachment; filename="{job_id}.{wanted}"',
        },
    )
