"""Batch predictions: which versions of which prompt sets a job is to use, settled when it is created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from bpt_store import jobs, prompt_sets, quarantine
from bpt_store.errors import Conflict, Damaged
from bpt_store.models import DatasetVersion, Job, JobKind, JobState
from bpt_store.scheduling import Priority


def create(
    session: Session,
    customer_id: UUID,
    dataset: DatasetVersion,
    references: Sequence[str],
    *,
    split: str | None,
    top_k: int,
    images: int,
    custom: Mapping[str, Any],
    priority: Priority = Priority.NORMAL,
    unfinished_limit: int,
) -> Job:
    """A queued job; references to the same version count once. NotFound, Damaged for one in quarantine, LimitReached
    `queue_limit`.
    """
    return jobs.create(
        session,
        customer_id,
        JobKind.BATCH_PREDICT,
        dataset_id=dataset.dataset_id,
        dataset_version=dataset.number,
        payload={
            "prompt_sets": _resolved(session, references),
            "split": split,
            "top_k": top_k,
            "images": images,
        },
        custom=custom,
        priority=priority,
        unfinished_limit=unfinished_limit,
    )


def references(job: Job) -> list[str]:
    """The versions that the job predicts with, as `name:3`, in its order."""
    return [f"{used['name']}:{used['version']}" for used in job.payload["prompt_sets"]]


def result_of(job: Job) -> dict[str, Any]:
    """What came of it. Conflict `job_unfinished` where it has not succeeded."""
    if job.state is not JobState.SUCCEEDED or job.result is None:
        raise Conflict(f"the job is {job.state}; results are there once it has succeeded", code="job_unfinished")
    return job.result


def artifacts(session: Session, job: Job) -> list[bytes]:
    """Those the job was created with, in its order; Damaged where one is another by now."""
    found = []
    for reference, used in zip(references(job), job.payload["prompt_sets"], strict=True):
        _, version = prompt_sets.resolve(session, reference)
        if version.artifact_sha256 != used["artifact_sha256"]:
            raise Damaged(f"{reference} is not what it was when the job was created")
        found.append(prompt_sets.artifact(session, version))
    return found


def _resolved(session: Session, references: Sequence[str]) -> list[dict[str, Any]]:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for reference in references:
        prompt_set, version = prompt_sets.resolve(session, reference)
        quarantine.check(prompt_set.name, version)
        found[prompt_set.name, version.version] = {
            "name": prompt_set.name,
            "version": version.version,
            "artifact_sha256": version.artifact_sha256,
            "backbone": version.backbone,
            "backbone_fingerprint": version.backbone_fingerprint,
        }
    return list(found.values())
