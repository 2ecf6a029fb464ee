"""When a tuning job will be done, as far as one can tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bpt_store.models import Job, JobState
from bpt_store.scheduling import Waiting


def finish_at(job: Job, waiting: Waiting | None = None) -> datetime | None:
    """From the epochs measured so far, before them from the plan; None where nothing is to be said."""
    left = _seconds_left(job, waiting)
    return None if left is None else datetime.now(UTC) + timedelta(seconds=left)


def _seconds_left(job: Job, waiting: Waiting | None) -> float | None:
    progress, planned = job.progress, job.payload.get("estimated_seconds")
    if progress is not None and progress["type"] == "epoch":
        work: float | None = (progress["epochs"] - progress["epoch"]) * progress["seconds"]
    else:
        work = planned
    if work is None:
        return None
    if job.state is JobState.RUNNING:
        return float(work)
    if job.state is JobState.QUEUED and waiting is not None and waiting.start_in_seconds is not None:
        return waiting.start_in_seconds + work
    return None
