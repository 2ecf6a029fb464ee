"""The versions of a dataset. Each is complete by itself; how one begins is in routes/uploads.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from api import job_events
from api.dataset_schemas import DatasetVersion
from api.deps import DatasetsReadSession, Limit, Services, customer_of, require
from api.problems import Problem, responses
from api.schemas import Page
from api.tuning_schemas import JobEvent
from api.turns import OneTurnRoute
from bpt_store import datasets, ids, jobs
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind

router = APIRouter(prefix="/v1/datasets/{dataset_id}/versions", tags=["datasets"], route_class=OneTurnRoute)


@router.get("", summary="List the versions of a dataset, newest first", responses=responses("not_found"))
def list_dataset_versions(
    dataset_id: str,
    session: DatasetsReadSession,
    limit: Limit = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**31, description="the `next_cursor` of the page before")] = None,
) -> Page[DatasetVersion]:
    dataset = datasets.get(session, ids.parse(ids.DATASET, dataset_id))
    rows = datasets.versions(session, dataset.id, before=after, limit=limit + 1)
    data = [DatasetVersion.of(row) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=data, has_more=has_more, next_cursor=str(data[-1].number) if has_more else None)


@router.get("/{number}", summary="Show a version of a dataset", responses=responses("not_found"))
def get_dataset_version(dataset_id: str, number: int, session: DatasetsReadSession) -> DatasetVersion:
    return DatasetVersion.of(datasets.version(session, ids.parse(ids.DATASET, dataset_id), _checked(number)))


@router.get(
    "/{number}/report",
    summary="What ingest found in a version, as for a dataset",
    responses=responses("not_found", "dataset_not_ready"),
)
def get_dataset_version_report(dataset_id: str, number: int, session: DatasetsReadSession) -> dict[str, Any]:
    version = datasets.version(session, ids.parse(ids.DATASET, dataset_id), _checked(number), whole=True)
    if version.report is None:
        raise Problem("dataset_not_ready", f"version {number} is {version.state}; there is no report")
    return version.report


@router.get(
    "/{number}/events",
    summary="How the ingest of a version goes on; as a live stream with `Accept: text/event-stream`",
    response_model=Page[JobEvent],
    responses=job_events.RESPONSES,
)
async def list_dataset_version_events(
    dataset_id: str,
    number: int,
    asked: job_events.AskedDep,
    identity: Annotated[Identity, Depends(require(Scope.DATASETS_READ))],
) -> object:
    job_id = await run_in_threadpool(_job_of, asked.services, identity, dataset_id, _checked(number))
    return await job_events.of_job(asked, identity, JobKind.INGEST, job_id)


def _job_of(services: Services, identity: Identity, dataset_id: str, number: int) -> str:
    with services.database.customer(customer_of(identity)) as session:
        job = jobs.of_version(session, ids.parse(ids.DATASET, dataset_id), number)
        return ids.public(ids.JOB, job.id)


def _checked(number: int) -> int:
    """What fits no column names no version."""
    return number if 0 < number < 2**31 else 0
