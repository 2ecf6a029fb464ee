"""Datasets: uploading -> validating -> ready | failed. A failed upload leaves nothing, a failed ingest a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bpt_store import ids, jobs
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import TERMINAL_STATES, Dataset, DatasetState, Job, JobKind

SINGLE_LABEL = "single-label"
UNLABELLED = "unlabelled"  # images to predict, without classes; all in the split test


def prefix(dataset_id: UUID) -> str:
    """All objects of a dataset lie under it."""
    return f"datasets/{dataset_id.hex}/"


def begin_upload(
    session: Session,
    customer_id: UUID,
    name: str,
    custom: Mapping[str, Any],
    source_suffix: str,
    task: str = SINGLE_LABEL,
) -> Dataset:
    """The row that owns an upload's object from before its first byte."""
    dataset = Dataset(customer_id=customer_id, name=name, state=DatasetState.UPLOADING, task=task, custom=dict(custom))
    session.add(dataset)
    session.flush()
    dataset.source_key = f"{prefix(dataset.id)}source{source_suffix}"
    session.flush()
    return dataset


def finish_upload(
    session: Session, dataset_id: UUID, *, sha256: str, size_bytes: int, payload: Mapping[str, Any]
) -> Job:
    """The bytes are stored: the dataset is `validating`, and its ingest job is queued in the same transaction."""
    dataset = get(session, dataset_id, lock=True)
    if dataset.state is not DatasetState.UPLOADING:
        raise Conflict("the upload has expired", code="upload_expired")
    dataset.state = DatasetState.VALIDATING
    dataset.source_sha256, dataset.source_bytes = sha256, size_bytes
    return jobs.create(session, dataset.customer_id, JobKind.INGEST, dataset_id=dataset.id, payload=payload)


def abandon_upload(session: Session, dataset_id: UUID) -> None:
    """Forget an upload that did not end well: no row stays, and what was stored is deleted."""
    dataset = session.scalar(select(Dataset).where(Dataset.id == dataset_id, Dataset.state == DatasetState.UPLOADING))
    if dataset is not None:
        jobs.doom(session, dataset.customer_id, prefix(dataset.id))
        session.delete(dataset)


def get(session: Session, dataset_id: UUID, *, lock: bool = False) -> Dataset:
    query = select(Dataset).where(Dataset.id == dataset_id)
    dataset = session.scalar(query.with_for_update() if lock else query)
    if dataset is None:
        raise NotFound(f"there is no {ids.public(ids.DATASET, dataset_id)!r}")
    return dataset


def get_ready(session: Session, dataset_id: UUID) -> Dataset:
    """Locked, so that it cannot be deleted before the job that is to use it is there. Conflict `dataset_not_ready`."""
    dataset = get(session, dataset_id, lock=True)
    if dataset.state is not DatasetState.READY:
        raise Conflict(f"the dataset is {dataset.state}, not ready", code="dataset_not_ready")
    return dataset


def get_labelled(session: Session, dataset_id: UUID) -> Dataset:
    """One that can be tuned on, locked like `get_ready`. Conflict `dataset_unlabelled`."""
    dataset = get_ready(session, dataset_id)
    if dataset.task == UNLABELLED:
        raise Conflict("the dataset has no labels to learn from", code="dataset_unlabelled")
    return dataset


def images(dataset: Dataset, split: str | None = None) -> int:
    """How many images a ready dataset has, in one split or in all; each is of one class, or of none."""
    assert dataset.report is not None
    whole: int = dataset.report["images"]["packed"]
    if split is None:
        return whole
    if dataset.task == UNLABELLED:
        return whole if split == "test" else 0
    return sum(counts[split] for counts in dataset.report["counts"].values())


def become_ready(
    session: Session,
    dataset_id: UUID,
    *,
    task: str,
    class_names: Sequence[str],
    shards: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
) -> None:
    """Part of the ingest job's last transaction. The original archive is given up."""
    dataset = get(session, dataset_id, lock=True)
    dataset.state = DatasetState.READY
    dataset.task = task
    dataset.class_names, dataset.shards, dataset.report = list(class_names), list(shards), dict(report)
    if dataset.source_key is not None:
        jobs.doom(session, dataset.customer_id, dataset.source_key)
        dataset.source_key = None


def delete(session: Session, dataset_id: UUID) -> None:
    """Row and objects. Conflict `dataset_in_use` while an unfinished job needs it."""
    dataset = get(session, dataset_id, lock=True)
    unfinished = select(Job.id).where(Job.dataset_id == dataset_id, Job.state.not_in(TERMINAL_STATES)).limit(1)
    if dataset.state is DatasetState.UPLOADING or session.scalar(unfinished) is not None:
        raise Conflict("an unfinished job uses the dataset", code="dataset_in_use")
    jobs.doom(session, dataset.customer_id, prefix(dataset.id))
    session.execute(sql_delete(Dataset).where(Dataset.id == dataset_id))


def abandon_expired_uploads(session: Session, older_than_seconds: float) -> int:
    """Uploads whose process died (system session) -> how many were swept."""
    expired = session.scalars(
        select(Dataset.id).where(
            Dataset.state == DatasetState.UPLOADING,
            Dataset.created_at < func.now() - timedelta(seconds=older_than_seconds),
        )
    ).all()
    for dataset_id in expired:
        abandon_upload(session, dataset_id)
    return len(expired)
