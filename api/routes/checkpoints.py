"""Checkpoints of a tuning job: the prompt sets its epochs left, and publishing one of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from sqlalchemy import select

from api.deps import After, JobsReadSession, JobsWriteSession, Limit, numbered
from api.idempotency import OnceRoute
from api.problems import responses
from api.prompt_set_schemas import PromptSetVersion
from api.schemas import Page
from api.tuning_schemas import Checkpoint, CheckpointPublish
from bpt_store import audit, checkpoints, ids, jobs
from bpt_store.audit import Action, Fact
from bpt_store.models import JobCheckpoint, JobKind
from bpt_store.paging import page

router = APIRouter(prefix="/v1/tuning-jobs/{job_id}/checkpoints", tags=["tuning-jobs"], route_class=OnceRoute)

Epoch = Annotated[int, Path(ge=1, lt=2**31)]


@router.get("", summary="List the checkpoints of a tuning job that can be published", responses=responses("not_found"))
def list_tuning_job_checkpoints(
    job_id: str, session: JobsReadSession, limit: Limit = 20, after: After = None
) -> Page[Checkpoint]:
    job = jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    cursor = numbered(after, "epoch")
    query = select(JobCheckpoint).where(JobCheckpoint.job_id == job.id)
    rows, has_more = page(session, query, JobCheckpoint.epoch, cursor, limit)
    data = [Checkpoint.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=str(data[-1].epoch) if has_more else None)


@router.post(
    "/{epoch}/publish",
    status_code=201,
    summary="Make a checkpoint a new version of a prompt set, also while the job runs",
    response_model=PromptSetVersion,
    responses={
        200: {"model": PromptSetVersion, "description": "it is a version of that prompt set already: this one"},
        **responses("not_found", "artifact_integrity"),
    },
)
def publish_tuning_job_checkpoint(
    job_id: str,
    epoch: Epoch,
    response: Response,
    session: JobsWriteSession,
    body: Annotated[CheckpointPublish | None, Body()] = None,
) -> PromptSetVersion:
    job = jobs.get(session, ids.parse(ids.JOB, job_id), JobKind.TUNE)
    prompt_set, version, is_new = checkpoints.publish(session, job, epoch, body.prompt_set if body else None)
    if is_new:
        facts: dict[str, Fact] = {"version": version.version, "job": job_id, "epoch": epoch}
        audit.record(session, Action.CHECKPOINT_PUBLISHED, ids.public(ids.PROMPT_SET, prompt_set.id), after=facts)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/v1/prompt-sets/{prompt_set.name}/versions/{version.version}"
    session.refresh(version)
    return PromptSetVersion.of(prompt_set.name, version)
