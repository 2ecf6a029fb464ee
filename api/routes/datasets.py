"""Datasets: what there is, and what became of it. How they come to be: api/routes/uploads.py."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from api.dataset_schemas import Dataset, DatasetChange
from api.deps import After, DatasetsReadSession, DatasetsWriteSession, Limit
from api.keys import KeyFirstRoute
from api.problems import Problem, responses
from api.schemas import Page
from bpt_store import audit, datasets, ids, models
from bpt_store.audit import Action
from bpt_store.paging import page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=KeyFirstRoute)


@router.get("", summary="List datasets", responses=responses("not_found"))
def list_datasets(session: DatasetsReadSession, limit: Limit = 20, after: After = None) -> Page[Dataset]:
    cursor = ids.parse(ids.DATASET, after) if after else None
    rows, has_more = page(session, select(models.Dataset), models.Dataset.id, cursor, limit)
    shown = datasets.shown(session, rows)
    data = [Dataset.of(row, shown[row.id]) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{dataset_id}", summary="Show a dataset", responses=responses("not_found"))
def get_dataset(dataset_id: str, session: DatasetsReadSession) -> Dataset:
    dataset = datasets.get(session, ids.parse(ids.DATASET, dataset_id))
    return Dataset.of(dataset, datasets.shown(session, [dataset])[dataset.id])


@router.get(
    "/{dataset_id}/report",
    summary="What ingest found in the newest version: a verdict, counts, what was left out and why, findings",
    responses=responses("not_found", "dataset_not_ready"),
)
def get_dataset_report(dataset_id: str, session: DatasetsReadSession) -> dict[str, Any]:
    dataset = datasets.get(session, ids.parse(ids.DATASET, dataset_id))
    version = datasets.version(session, dataset.id, dataset.latest or 1, whole=True)
    if version.report is None:
        raise Problem("dataset_not_ready", f"the dataset is {dataset.state}; there is no report")
    return version.report


@router.patch("/{dataset_id}", summary="Change the name or the metadata", responses=responses("not_found"))
def change_dataset(dataset_id: str, body: DatasetChange, session: DatasetsWriteSession) -> Dataset:
    identifier = ids.parse(ids.DATASET, dataset_id)
    dataset = datasets.change(session, identifier, name=body.name, metadata=body.metadata)
    audit.record(session, Action.DATASET_CHANGED, dataset_id)
    return Dataset.of(dataset, datasets.shown(session, [dataset])[dataset.id])


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a dataset with all its images",
    responses=responses("not_found", "dataset_in_use"),
)
def delete_dataset(dataset_id: str, session: DatasetsWriteSession) -> None:
    datasets.delete(session, ids.parse(ids.DATASET, dataset_id))
    audit.record(session, Action.DATASET_DELETED, dataset_id)
