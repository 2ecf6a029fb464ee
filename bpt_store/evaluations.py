"""How versions did on datasets: every batch prediction of a labelled dataset says so, and it is kept here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from bpt_store import batch_predictions
from bpt_store.models import Evaluation, Gate, Job, PromptSet, PromptSetVersion


def keep(session: Session, job: Job, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Part of the job's last transaction: {"birds:3": metrics}. A version that was deleted meanwhile has none."""
    for reference, used in zip(batch_predictions.references(job), job.payload["prompt_sets"], strict=True):
        found = metrics.get(reference)
        if found is None:
            continue
        version = (
            select(PromptSetVersion)
            .join(PromptSet, PromptSet.id == PromptSetVersion.prompt_set_id)
            .where(PromptSet.customer_id == job.customer_id, PromptSet.name == used["name"])
            .where(PromptSetVersion.version == used["version"])
            .where(PromptSetVersion.artifact_sha256 == used["artifact_sha256"])
        )
        # Locked, so that it is there when what refers to it is written.
        row = session.scalar(version.with_for_update(read=True, key_share=True, of=PromptSetVersion))
        if row is None:
            continue
        evaluated = {"prompt_set_id": row.prompt_set_id, "version": row.version}
        on = {"dataset_id": job.dataset_id, "dataset_version": job.dataset_version, "split": job.payload["split"]}
        session.add(Evaluation(customer_id=job.customer_id, **evaluated, **on, metrics=dict(found), job_id=job.id))
    session.flush()


def newest(session: Session, gate: Gate, version: int) -> Evaluation | None:
    """Of a version of the gate's prompt set, on the images of the gate."""
    query = select(Evaluation).where(
        Evaluation.prompt_set_id == gate.prompt_set_id,
        Evaluation.version == version,
        Evaluation.dataset_id == gate.dataset_id,
        Evaluation.dataset_version == gate.dataset_version,
        Evaluation.split.is_not_distinct_from(gate.split),
    )
    return session.scalar(query.order_by(Evaluation.id.desc()).limit(1))
