"""What a version was learned from, as far as it is still there: enough to learn it once more, or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from bpt_store import datasets, prompt_sets
from bpt_store.errors import Conflict, NotFound
from bpt_store.models import DatasetVersion, Job, PromptSetVersion

INCOMPLETE = "not_reproducible"


@dataclass(frozen=True)
class Lineage:
    """`recipe` and `search` are those of the job, or the settled recipe alone where the job was deleted."""

    dataset: DatasetVersion
    recipe: Mapping[str, Any]
    search: Mapping[str, Any] | None


def of(session: Session, version: PromptSetVersion) -> Lineage:
    """Conflict `not_reproducible` says what there is no more, or never was."""
    if version.job_id is None:
        raise _incomplete("the artifact was imported: how it was learned is not known")
    if version.job_epoch is not None:
        raise _incomplete(f"it is what epoch {version.job_epoch} left, and not the end of a job")
    job = session.scalar(select(Job).where(Job.id == version.job_id))
    if job is not None and (job.result or {}).get("stopped_by") is not None:
        raise _incomplete("a budget ended its training: how far it came is a matter of the machine's speed")
    _check_begun(session, version.continued_from)
    recipe = job.payload["recipe"] if job is not None else version.recipe
    return Lineage(_dataset(session, version), recipe, job.payload.get("search") if job is not None else None)


def _dataset(session: Session, version: PromptSetVersion) -> DatasetVersion:
    if version.dataset_id is None or version.dataset_version is None:
        raise _incomplete("which version of a dataset it was learned from was not noted")
    try:
        return datasets.get_labelled(session, datasets.Reference(version.dataset_id, version.dataset_version))
    except NotFound as error:
        raise _incomplete(f"the dataset that it was learned from was deleted: {error}") from error


def _check_begun(session: Session, begun: Mapping[str, Any] | None) -> None:
    if begun is None:
        return
    reference = f"{begun['prompt_set']}:{begun['version']}"
    try:
        _, found = prompt_sets.resolve(session, reference)
    except NotFound:
        raise _incomplete(f"{reference}, with which its tuning began, was deleted") from None
    if found.artifact_sha256 != begun["artifact_sha256"]:
        raise _incomplete(f"{reference} is another version by now than the one its tuning began with")


def _incomplete(reason: str) -> Conflict:
    return Conflict(f"the version cannot be learned again: {reason}", code=INCOMPLETE)
