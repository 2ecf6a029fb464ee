"""Batch predictions, the supervisor's side: fetch shards, artifacts and finished parts before, store results after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bpt_store import batch_predictions, evaluations, jobs, resuming, usage
from bpt_store.errors import Damaged, NotFound
from bpt_store.models import Job
from worker import inputs
from worker.context import Worker
from worker.refused import Refused


class BatchPredict:
    child = "worker.predictor"
    crash_code = "predictor_crashed"
    stall_code = "predictor_stalled"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        try:
            with worker.database.customer(job.customer_id) as session:
                artifacts = batch_predictions.artifacts(session, job)
        except (NotFound, Damaged) as error:
            raise Refused("prompt_set_gone", f"a prompt set is not what it was: {error}") from error
        for index, data in enumerate(artifacts):
            (directory / f"prompt-set-{index}.safetensors").write_bytes(data)
        parts = resuming.parts(job)
        for index, part in enumerate(parts):
            worker.objects.fetch(part["key"], directory / f"earlier-{index}.parquet", sha256=part["sha256"])
        prompt_sets = job.payload["prompt_sets"]
        return {
            "shards": inputs.fetch_shards(worker, job, directory),
            "split": job.payload["split"],
            "top_k": job.payload["top_k"],
            "prompt_sets": {
                reference: f"prompt-set-{index}.safetensors"
                for index, reference in enumerate(batch_predictions.references(job))
            },
            "weights": {used["backbone"]: inputs.local_weights(worker, used["backbone"]) for used in prompt_sets},
            "parts": [f"earlier-{index}.parquet" for index in range(len(parts))],
            "done": parts[-1]["done"] if parts else 0,
            "part_images": worker.settings.batch_part_images,
            "device": worker.settings.device,
            "threads": worker.settings.threads,
        }

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        resuming.keep_part(session, jobs.fence_of(job), {**stored, "done": data["done"]})

    def keep_attached(
        self, worker: Worker, session: Session, job: Job, content: bytes, facts: dict[str, Any], data: dict[str, Any]
    ) -> None:
        """A batch prediction attaches nothing to its events."""

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        """A batch prediction has nothing beyond code and detail."""

    def publish(self, worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        # Results of an attempt that died between storing and committing lie under another number.
        prefix = jobs.results_prefix(job.id)
        files = {
            name: worker.objects.put_file(f"{prefix}{job.attempt}/{file}", directory / file)
            for name, file in result["files"].items()
        }

        def finish(session: Session) -> None:
            # The parts are given up with all that lies under the job's own prefix.
            facts = {name: result[name] for name in ("images", "rows", "errors", "metrics")}
            evaluations.keep(session, job, result["metrics"])
            jobs.succeed(session, jobs.fence_of(job), {**facts, "files": files})
            usage.add(session, job.customer_id, batch_images=result["rows"] - result["errors"])
            for attempt in range(1, job.attempt):
                jobs.doom(session, job.customer_id, f"{prefix}{attempt}/")

        return finish
