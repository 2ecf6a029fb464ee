"""A version learned once more from its lineage, to see whether the same comes out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api import plans
from api.deps import JobsWriteSession, ServicesDep, customer_of, require, ring_after_commit
from api.idempotency import OnceRoute
from api.problems import responses
from api.routes.prompt_set_versions import VersionNumber
from api.tuning_schemas import TuningJob
from bpt_store import audit, ids, jobs, lineage, models, prompt_sets, scheduling
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind

router = APIRouter(prefix="/v1/prompt-sets/{name}/versions/{version}", tags=["prompt-sets"], route_class=OnceRoute)


@router.post(
    "/reproduce",
    status_code=201,
    summary="Learn a version once more from its lineage: a tuning job that publishes nothing and tells the difference",
    responses=responses(
        *("not_found", "not_reproducible", "dataset_not_ready", "dataset_unlabelled", "backbone_noncommercial"),
        *("queue_limit", "artifact_integrity"),
    ),
)
def reproduce_prompt_set_version(
    name: str,
    version: VersionNumber,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.JOBS_WRITE))],
    session: JobsWriteSession,
) -> TuningJob:
    prompt_set, row = prompt_sets.resolve(session, f"{name}:{version}")
    prompt_sets.artifact(session, row)  # what is damaged is nothing to compare with
    learned_from = lineage.of(session, row)
    plan = plans.again(row, learned_from, session, services.settings)
    job = jobs.create(
        session,
        customer_of(identity),
        JobKind.TUNE,
        dataset_id=learned_from.dataset.dataset_id,
        dataset_version=learned_from.dataset.number,
        prompt_set_id=prompt_set.id,
        payload={
            **plan.payload(name),
            "reproduces": _reproduced(name, row),
            "format": scheduling.REPRODUCING_FORMAT,
        },
        unfinished_limit=services.settings.queued_jobs_limit,
    )
    after: dict[str, audit.Fact] = {"reproduces": ids.public(ids.PROMPT_SET, prompt_set.id), "version": version}
    audit.record(session, Action.JOB_CREATED, ids.public(ids.JOB, job.id), after=after)
    ring_after_commit(session, JobKind.TUNE)
    response.headers["Location"] = f"/v1/tuning-jobs/{ids.public(ids.JOB, job.id)}"
    session.refresh(job)
    return TuningJob.of(job)


def _reproduced(name: str, row: models.PromptSetVersion) -> dict[str, object]:
    """With what is told of the version at the end, when it may be deleted."""
    return {
        "prompt_set": name,
        "version": row.version,
        "artifact_sha256": row.artifact_sha256,
        "code_version": row.code_version,
        "metrics": row.metrics,
    }
