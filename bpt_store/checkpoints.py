"""Checkpoints of a tuning job that can be published: the prompt set that each of its epochs left.

They live in the database, as artifacts do, and go with their job. A job keeps a limited number: always the best by
validation score and the newest; of the others the one goes whose neighbours are closest together, so that what stays is
spread evenly over the epochs. (What a job goes on from after a crash is something else: see resuming.keep_checkpoint.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store import ids, jobs, prompt_sets
from bpt_store.errors import Damaged, NotFound
from bpt_store.jobs import Fence
from bpt_store.models import Job, JobCheckpoint, PromptSet, PromptSetVersion
from bpt_store.prompt_sets import Publication


@dataclass(frozen=True)
class Left:
    """What an epoch left. `facts` are those of a Publication that are not here or in the job's payload:
    {"backbone_fingerprint", "class_names", "recipe", "parameters", "code_version"}.
    """

    epoch: int
    artifact: bytes
    score: float
    val: Mapping[str, Any]
    facts: Mapping[str, Any]


def keep(session: Session, fence: Fence, left: Left, *, most: int) -> None:
    """Keep what an epoch left, in the place of what an earlier attempt left of the same; at most so many (2 or more).

    LeaseLost if the attempt was replaced.
    """
    job = jobs.held(session, fence)
    values = {
        "attempt": fence.attempt,
        "artifact": left.artifact,
        "sha256": hashlib.sha256(left.artifact).hexdigest(),
        "bytes": len(left.artifact),
        "score": left.score,
        "val": dict(left.val),
        "facts": dict(left.facts),
        "created_at": func.now(),
    }
    session.execute(
        insert(JobCheckpoint)
        .values(customer_id=job.customer_id, job_id=job.id, epoch=left.epoch, **values)
        .on_conflict_do_update(index_elements=["job_id", "epoch"], set_=values)
    )
    mine = select(JobCheckpoint.epoch, JobCheckpoint.score).where(JobCheckpoint.job_id == job.id)
    scores = {row.epoch: row.score for row in session.execute(mine.order_by(JobCheckpoint.epoch))}
    if surplus := thinned(scores, left.epoch, most):
        session.execute(delete(JobCheckpoint).where(JobCheckpoint.job_id == job.id, JobCheckpoint.epoch.in_(surplus)))


def thinned(scores: Mapping[int, float], newest: int, most: int) -> Sequence[int]:
    """Epochs that are to go: {epoch: score} of all there are, in order -> those beyond `most`."""
    best = max(scores, key=lambda epoch: (scores[epoch], -epoch))
    left = sorted(scores)
    gone = []
    while len(left) > most:
        around = zip([0, *left], left, [*left[1:], left[-1]], strict=False)
        gaps = {epoch: after - before for before, epoch, after in around if epoch not in (best, newest)}
        gone.append(min(gaps, key=lambda epoch: (gaps[epoch], epoch)))
        left.remove(gone[-1])
    return gone


def get(session: Session, job_id: UUID, epoch: int) -> JobCheckpoint:
    checkpoint = session.get(JobCheckpoint, (job_id, epoch))
    if checkpoint is None:
        raise NotFound(f"{ids.public(ids.JOB, job_id)} has no checkpoint of epoch {epoch}")
    return checkpoint


def publish(session: Session, job: Job, epoch: int, name: str | None) -> tuple[PromptSet, PromptSetVersion, bool]:
    """Make a checkpoint a version of a prompt set, by default the job's own -> (prompt set, version, is it new?).

    The same artifact of the same epoch is a version only once in a prompt set. It was never tested, and nothing was
    fitted to it on the validation split: its metrics say so. NotFound, Damaged.
    """
    checkpoint = get(session, job.id, epoch)
    wanted = prompt_sets.get_or_create(session, job.customer_id, name or job.payload["prompt_set"])
    prompt_set = prompt_sets.lock(session, wanted.id)  # so that two at once publish once
    published = session.scalar(
        select(PromptSetVersion).where(
            PromptSetVersion.prompt_set_id == prompt_set.id,
            PromptSetVersion.job_id == job.id,
            PromptSetVersion.job_epoch == epoch,
            PromptSetVersion.artifact_sha256 == checkpoint.sha256,
        )
    )
    if published is not None:
        return prompt_set, published, False
    if hashlib.sha256(checkpoint.artifact).hexdigest() != checkpoint.sha256:
        raise Damaged(f"the checkpoint of epoch {epoch} is not what was kept: the stored bytes have another hash")
    publication = Publication(
        artifact=checkpoint.artifact,
        backbone=job.payload["backbone"],
        **checkpoint.facts,
        metrics={"best_epoch": epoch, "val": checkpoint.val, "test": None, "calibration": None},
        continued_from=job.payload.get("continue_from"),
    )
    version = prompt_sets.publish(
        session,
        prompt_set.id,
        publication,
        job_id=job.id,
        dataset_id=job.dataset_id,
        dataset_version=job.dataset_version,
        job_epoch=epoch,
    )
    return prompt_set, version, True
