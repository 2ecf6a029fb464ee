"""Tuning jobs: ask for one, follow it, call it off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api import plans, schemas
from api.deps import (
    After,
    JobsReadSession,
    JobsWriteSession,
    Limit,
    Services,
    ServicesDep,
    customer_of,
    require,
    ring_after_commit,
)
from api.problems import responses
from bpt_store import datasets, ids, jobs, models, prompt_sets
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind, JobState
from bpt_store.paging import page

router = APIRouter(prefix="/v1/tuning-jobs", tags=["tuning-jobs"])

EVENTS_PER_READ = 500
PING_SECONDS = 15


@router.post(
    "",
    status_code=201,
    summary="Tune a prompt set on a dataset; with `dry_run`, only say what that would be and cost",
    response_model=schemas.TuningJob,
    responses={
        200: {"model": schemas.TuningPlan, "description": "the plan, for a dry run"},
        **responses(
            *("not_found", "dataset_not_ready", "backbone_unknown", "backbone_noncommercial", "invalid_setting"),
            "queue_limit",
        ),
    },
)
def create_tuning_job(
    body: schemas.TuningJobCreate,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.JOBS_WRITE))],
    session: JobsWriteSession,
) -> object:
    customer_id = customer_of(identity)
    dataset = datasets.get_ready(session, ids.parse(ids.DATASET, body.dataset))
    plan = plans.make(body, dataset, session, services.settings)
    payload = plan.payload(body.prompt_set)
    if body.dry_run:
        return JSONResponse(schemas.TuningPlan.of(payload).model_dump(mode="json"))
    job = jobs.create(
        session,
        customer_id,
        JobKind.TUNE,
        dataset_id=dataset.id,
        prompt_set_id=prompt_sets.get_or_create(session, customer_id, body.prompt_set).id,
        payload=payload,
        custom=body.metadata,
        unfinished_limit=services.settings.queued_jobs_limit,
    )
    ring_after_commit(session, JobKind.TUNE)
    response.headers["Location"] = f"/v1/tuning-jobs/{ids.public(ids.JOB, job.id)}"
    session.refresh(job)
    return schemas.TuningJob.of(job)


@router.get("", summary="List tuning jobs", responses=responses("not_found"))
def list_tuning_jobs(
    session: JobsReadSession,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
) -> schemas.Page[schemas.TuningJob]:
    query = select(models.Job).where(models.Job.kind == JobKind.TUNE)
    if state is not None:
        query = query.where(models.Job.state == state)
    cursor = ids.parse(ids.JOB, after) if after else None
    rows, has_more = page(session, query, models.Job.id, cursor, limit)
    data = [schemas.TuningJob.of(row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{job_id}", summary="Show a tuning job", responses=responses("not_found"))
def get_tuning_job(job_id: str, session: JobsReadSession) -> schemas.TuningJob:
    return schemas.TuningJob.of(jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE))


@router.post(
    "/{job_id}/cancel",
    summary="Cancel a tuning job: at once while it waits, within seconds while it runs",
    responses=responses("not_found", "job_terminal"),
)
def cancel_tuning_job(job_id: str, session: JobsWriteSession) -> schemas.TuningJob:
    job = jobs.cancel(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    session.refresh(job)
    return schemas.TuningJob.of(job)


@router.get(
    "/{job_id}/events",
    summary="The events of a tuning job; as a live stream with `Accept: text/event-stream`",
    response_model=schemas.Page[schemas.JobEvent],
    responses={
        **responses("not_found"),
        200: {
            "description": "events in order; the stream ends with the job and resumes after Last-Event-ID",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
async def list_tuning_job_events(
    job_id: str,
    request: Request,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.JOBS_READ))],
    after: Annotated[int, Query(ge=0, lt=2**31, description="only events with a greater number")] = 0,
    limit: Limit = 100,
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None,
    accept: Annotated[str, Header()] = "",
) -> object:
    customer_id, job_uuid = customer_of(identity), ids.parse(ids.JOB, job_id)
    if "text/event-stream" in accept:
        await run_in_threadpool(_read_events, services, customer_id, job_uuid, 0, 1)  # 404 before the stream begins
        after = last_event_id if last_event_id is not None else after
        return EventSourceResponse(_stream(request, services, customer_id, job_uuid, after))
    events, _ = await run_in_threadpool(_read_events, services, customer_id, job_uuid, after, limit + 1)
    data, has_more = events[:limit], len(events) > limit
    return schemas.Page(data=data, has_more=has_more, next_cursor=str(data[-1].number) if has_more else None)


def _read_events(
    services: Services, customer_id: UUID, job_id: UUID, after: int, limit: int
) -> tuple[list[schemas.JobEvent], JobState]:
    with services.database.customer(customer_id) as session:
        # The state first: events of a state that is terminal now are all there when they are read.
        state = jobs.get(session, job_id, JobKind.TUNE).state
        return [schemas.JobEvent.of(event) for event in jobs.events_after(session, job_id, after, limit)], state


async def _stream(
    request: Request, services: Services, customer_id: UUID, job_id: UUID, after: int
) -> AsyncIterator[bytes]:
    quiet_seconds = 0.0
    pause_seconds = services.settings.events_poll_seconds
    while not await request.is_disconnected():
        events, state = await run_in_threadpool(_read_events, services, customer_id, job_id, after, EVENTS_PER_READ)
        for event in events:
            after = event.number
            yield format_sse_event(
                data_str=json.dumps(event.model_dump(mode="json")), event=event.type, id=str(event.number)
            )
        if events:
            quiet_seconds = 0.0
            continue
        if state.is_terminal:
            return
        await asyncio.sleep(pause_seconds)
        quiet_seconds += pause_seconds
        if quiet_seconds >= PING_SECONDS:
            quiet_seconds = 0.0
            yield b": ping\n\n"
