"""Ingest jobs, the supervisor's side: fetch the uploaded archive before, store the packed shards after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bpt_store import datasets, jobs
from bpt_store.models import Job
from worker.context import Worker


class Ingest:
    child = "worker.packer"
    crash_code = "ingest_crashed"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        assert job.dataset_id is not None
        with worker.database.customer(job.customer_id) as session:
            dataset = datasets.get(session, job.dataset_id)
        assert dataset.source_key is not None
        archive = Path(dataset.source_key).name
        worker.objects.fetch(dataset.source_key, directory / archive, sha256=dataset.source_sha256)
        return {
            "archive": archive,
            "task": dataset.task,
            "bad_image_fraction": worker.settings.bad_image_fraction,
            "cpu_seconds": worker.settings.ingest_cpu_seconds,
            "memory_bytes": worker.settings.ingest_memory_bytes,
        }

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        """An ingest gives no checkpoints."""

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        assert job.dataset_id is not None
        datasets.get(session, job.dataset_id, lock=True).report = failure.get("report")

    def publish(self, worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        dataset_id = job.dataset_id
        assert dataset_id is not None
        # Shards of an attempt that died between storing and committing lie under another number.
        prefix = datasets.prefix(dataset_id)
        shards = [
            worker.objects.put_file(f"{prefix}{job.attempt}/{Path(name).name}", directory / name)
            for name in result["shards"]
        ]

        def finish(session: Session) -> None:
            # The fence first: a replaced attempt must not touch the dataset.
            jobs.succeed(session, jobs.fence_of(job), {"images": result["report"]["images"]})
            datasets.become_ready(
                session,
                dataset_id,
                task=result["task"],
                class_names=result["class_names"],
                shards=shards,
                report=result["report"],
            )
            for attempt in range(1, job.attempt):
                jobs.doom(session, job.customer_id, f"{prefix}{attempt}/")

        return finish
