"""Jobs of a kind that runs the statements of its payload: a real supervisor with real processes, and nothing to train.

Statements find a `Child` called `child`, and `attempt`, whose number it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from bpt_store import jobs, resuming
from bpt_store.db import Database
from bpt_store.models import Job, JobKind, JobState
from bpt_store.settings import Settings
from worker.child import Child
from worker.context import Worker
from worker.supervisor import work

QUICK = {"lease_seconds": 3.0, "heartbeat_seconds": 0.2, "retry_backoff_seconds": 0.0, "stop_patience_seconds": 2.0}


class Labour:
    child = "tests.worker.labour"
    crash_code = "labour_crashed"
    stall_code = "labour_stalled"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        return {"do": job.payload["do"], "attempt": job.attempt}

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        resuming.keep_checkpoint(session, jobs.fence_of(job), {**stored, "epoch": data["epoch"]})

    def keep_attached(
        self, worker: Worker, session: Session, job: Job, content: bytes, facts: dict[str, Any], data: dict[str, Any]
    ) -> None: ...

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None: ...

    def publish(self, worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        return lambda session: (jobs.succeed(session, jobs.fence_of(job), result), None)[1]


def ask(database: Database, customer_id: UUID, do: str) -> UUID:
    """A job that does this."""
    with database.customer(customer_id) as session:
        payload = {"do": do}
        return jobs.create(
            session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload=payload
        ).id


def labour(settings: Settings, is_stopping: Callable[[], bool] = lambda: False, **given: Any) -> int:
    """Work until nothing waits -> how many attempts were begun."""
    worker = Worker.create(settings.model_copy(update={**QUICK, **given}), is_stopping)
    try:
        return work(worker, JobKind.TUNE, Labour())
    finally:
        for starter in worker.starters.values():
            starter.close()
        worker.database.close()


def job_of(database: Database, customer_id: UUID, job_id: UUID) -> Job:
    with database.customer(customer_id) as session:
        return jobs.get(session, job_id, JobKind.TUNE)


def reasons(database: Database, customer_id: UUID, job_id: UUID) -> list[str]:
    """Why it waited again, each time."""
    with database.customer(customer_id) as session:
        events = jobs.events_after(session, job_id, 0, 100)
    return [
        each.data["reason"] for each in events if each.data.get("state") == JobState.QUEUED and "reason" in each.data
    ]


def main() -> None:
    child = Child.begin()
    exec(child.job["do"], {"child": child, "attempt": child.job["attempt"]})
    child.done({})
