"""What an attempt leaves for the next one to go on from: checkpoints of a tuning job, parts of a batch prediction.

The objects lie in storage; here it is noted where, in the `checkpoint` of the job's row and under its fence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from bpt_store import jobs
from bpt_store.jobs import Fence
from bpt_store.models import Job

KEPT_CHECKPOINTS = 2


def keep_checkpoint(session: Session, fence: Fence, stored: Mapping[str, Any]) -> None:
    """Note where the newest checkpoint lies. The one before stays, should this one be lost; older ones are given up."""
    job = jobs.held(session, fence)
    # Noted twice it is there once: where a commit's answer was lost, it is written again.
    newest_first = [dict(stored), *(each for each in resumable(job) if each["key"] != stored["key"])]
    for old in newest_first[KEPT_CHECKPOINTS:]:
        jobs.doom(session, job.customer_id, old["key"])
    job.checkpoint = _chained(newest_first[:KEPT_CHECKPOINTS])


def lose_checkpoint(session: Session, fence: Fence, key: str, reason: str) -> None:
    """A checkpoint turned out to be missing or damaged: it is given up, and an event `checkpoint_lost` says why."""
    job = jobs.held(session, fence)
    kept = resumable(job)
    for lost in [each for each in kept if each["key"] == key]:
        kept.remove(lost)
        jobs.doom(session, job.customer_id, key)
        jobs.record(session, fence, "checkpoint_lost", {"epoch": lost["epoch"], "reason": reason})
    job.checkpoint = _chained(kept)


def resumable(job: Job) -> list[dict[str, Any]]:
    """The checkpoints that a tuning job can go on from, the newest first: what `keep_checkpoint` was given."""
    found, at = [], job.checkpoint
    while at is not None:
        found.append({name: value for name, value in at.items() if name != "before"})
        at = at.get("before")
    return found


def keep_part(session: Session, fence: Fence, stored: Mapping[str, Any]) -> None:
    """Note where a finished part of the work lies, behind the earlier ones; noted twice it is there once."""
    job = jobs.held(session, fence)
    earlier = [part for part in parts(job) if part["key"] != stored["key"]]
    job.checkpoint = {"parts": [*earlier, dict(stored)]}


def parts(job: Job) -> list[dict[str, Any]]:
    """What `keep_part` has noted so far, in all attempts, in order."""
    return list(job.checkpoint["parts"]) if job.checkpoint is not None else []


def _chained(newest_first: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The inverse of `resumable`: each holds the one before it."""
    chain: dict[str, Any] | None = None
    for each in reversed(newest_first):
        chain = {**each, **({"before": chain} if chain is not None else {})}
    return chain
