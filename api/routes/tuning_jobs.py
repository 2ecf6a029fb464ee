"""Tuning jobs: ask for one, follow it, pause it, call it off, try it again, delete it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select

from api import job_events, plans
from api.deps import (
    After,
    JobsReadSession,
    JobsWriteSession,
    Limit,
    ServicesDep,
    customer_of,
    require,
    ring_after_commit,
)
from api.idempotency import OnceRoute
from api.problems import Problem, responses
from api.report_schemas import TuningReport
from api.schemas import Page
from api.tuning_schemas import JobEvent, TuningJob, TuningJobCreate, TuningPlan
from bpt_store import audit, datasets, ids, jobs, models, prompt_sets, scheduling
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind, JobState
from bpt_store.paging import page

router = APIRouter(prefix="/v1/tuning-jobs", tags=["tuning-jobs"], route_class=OnceRoute)


@router.post(
    "",
    status_code=201,
    summary="Tune a prompt set on a dataset; with `dry_run`, only say what that would be and cost",
    response_model=TuningJob,
    responses={
        200: {"model": TuningPlan, "description": "the plan, for a dry run"},
        **responses(
            *("not_found", "dataset_not_ready", "dataset_unlabelled"),
            *("backbone_unknown", "backbone_noncommercial", "invalid_setting", "queue_limit"),
            *("continue_mismatch", "artifact_corrupt", "artifact_integrity"),
        ),
    },
)
def create_tuning_job(
    body: TuningJobCreate,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.JOBS_WRITE))],
    session: JobsWriteSession,
) -> object:
    customer_id = customer_of(identity)
    dataset = datasets.get_labelled(session, datasets.Reference.parse(body.dataset))
    plan = plans.make(body, dataset, session, services.settings)
    payload = plan.payload(body.prompt_set)
    if body.dry_run:
        return JSONResponse(TuningPlan.of(payload).model_dump(mode="json"))
    job = jobs.create(
        session,
        customer_id,
        JobKind.TUNE,
        dataset_id=dataset.dataset_id,
        dataset_version=dataset.number,
        prompt_set_id=prompt_sets.get_or_create(session, customer_id, body.prompt_set).id,
        payload=payload,
        custom=body.metadata,
        priority=body.priority,
        unfinished_limit=services.settings.queued_jobs_limit,
    )
    audit.record(
        session,
        Action.JOB_CREATED,
        ids.public(ids.JOB, job.id),
        after={"dataset": ids.public(ids.DATASET, dataset.dataset_id)},
    )
    ring_after_commit(session, JobKind.TUNE)
    response.headers["Location"] = f"/v1/tuning-jobs/{ids.public(ids.JOB, job.id)}"
    session.refresh(job)
    return TuningJob.of(job)


@router.get("", summary="List tuning jobs", responses=responses("not_found"))
def list_tuning_jobs(
    session: JobsReadSession,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
) -> Page[TuningJob]:
    query = select(models.Job).where(models.Job.kind == JobKind.TUNE)
    if state is not None:
        query = query.where(models.Job.state == state)
    cursor = ids.parse(ids.JOB, after) if after else None
    rows, has_more = page(session, query, models.Job.id, cursor, limit)
    data = [TuningJob.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{job_id}", summary="Show a tuning job", responses=responses("not_found"))
def get_tuning_job(job_id: str, services: ServicesDep, session: JobsReadSession) -> TuningJob:
    job = jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    waiting = None
    if job.state is JobState.QUEUED:
        with services.database.system() as everybody:  # where it stands depends on the others
            waiting = scheduling.waiting(everybody, job, services.settings.running_jobs_limit or None)
    return TuningJob.of(job, waiting)


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a tuning job: at once while it waits, within seconds while it runs",
    responses=responses("not_found", "job_terminal"),
)
def cancel_tuning_job(job_id: str, session: JobsWriteSession) -> TuningJob:
    job = jobs.cancel(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    audit.record(session, Action.JOB_CANCELLED, job_id, after={"state": job.state})
    session.refresh(job)
    return TuningJob.of(job)


@router.post(
    "/{job_id}/pause",
    summary="Pause a tuning job: at once while it waits, within seconds while it runs",
    responses=responses("not_found", "job_cancelling", "job_terminal"),
)
def pause_tuning_job(job_id: str, session: JobsWriteSession) -> TuningJob:
    job = jobs.pause(session, ids.parse(ids.JOB, job_id))
    audit.record(session, Action.JOB_PAUSED, job_id, after={"state": job.state})
    session.refresh(job)
    return TuningJob.of(job)


@router.post(
    "/{job_id}/resume",
    summary="Let a paused tuning job go on from its last checkpoint",
    responses=responses("not_found", "job_pausing", "job_cancelling", "job_terminal"),
)
def resume_tuning_job(job_id: str, session: JobsWriteSession) -> TuningJob:
    job = jobs.resume(session, ids.parse(ids.JOB, job_id))
    audit.record(session, Action.JOB_RESUMED, job_id, after={"state": job.state})
    ring_after_commit(session, JobKind.TUNE)
    session.refresh(job)
    return TuningJob.of(job)


@router.post(
    "/{job_id}/retry",
    summary="Try a tuning job that failed or was cancelled again, from its last checkpoint if that is still there",
    responses=responses("not_found", "job_succeeded", "job_unfinished", "dataset_not_ready", "queue_limit"),
)
def retry_tuning_job(job_id: str, services: ServicesDep, session: JobsWriteSession) -> TuningJob:
    job = jobs.retry(session, ids.parse(ids.JOB, job_id), unfinished_limit=services.settings.queued_jobs_limit)
    assert job.dataset_id is not None
    datasets.get_ready(session, datasets.Reference(job.dataset_id, job.dataset_version))
    if "reproduces" not in job.payload:
        # It may have been deleted meanwhile.
        job.prompt_set_id = prompt_sets.get_or_create(session, job.customer_id, job.payload["prompt_set"]).id
    session.flush()
    audit.record(session, Action.JOB_RETRIED, job_id, after={"state": job.state})
    ring_after_commit(session, JobKind.TUNE)
    session.refresh(job)
    return TuningJob.of(job)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a tuning job that has ended, with its events and checkpoints; versions that it published stay",
    responses=responses("not_found", "job_unfinished"),
)
def delete_tuning_job(job_id: str, session: JobsWriteSession) -> None:
    jobs.delete(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    audit.record(session, Action.JOB_DELETED, job_id)


@router.get(
    "/{job_id}/report",
    summary="What a tuning job found out about single images: probable label errors, hard images, confused classes",
    responses=responses("not_found", "job_unfinished"),
)
def get_tuning_job_report(job_id: str, session: JobsReadSession) -> TuningReport:
    job = jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    if not job.state.is_terminal:
        raise Problem("job_unfinished", f"the job is {job.state}; the report is there once it has succeeded")
    if job.report is None:
        why = "it is older than reports are" if job.state is JobState.SUCCEEDED else f"it is {job.state}"
        raise Problem("not_found", f"the job has no report: {why}")
    return TuningReport.of(job)


@router.get(
    "/{job_id}/events",
    summary="The events of a tuning job; as a live stream with `Accept: text/event-stream`",
    response_model=Page[JobEvent],
    responses=job_events.RESPONSES,
)
async def list_tuning_job_events(
    job_id: str,
    asked: job_events.AskedDep,
    identity: Annotated[Identity, Depends(require(Scope.JOBS_READ))],
) -> object:
    return await job_events.of_job(asked, identity, JobKind.TUNE, job_id)
