"""Tuning jobs, the supervisor's side: fetch shards and checkpoint before, publish the artifact after."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bpt_core import catalog
from bpt_core.recipe import Recipe, parameter_count
from bpt_store import jobs, prompt_sets
from bpt_store.models import Job
from worker import inputs
from worker.context import Worker

logger = logging.getLogger(__name__)


class Tune:
    child = "worker.trainer"
    crash_code = "trainer_crashed"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        if job.checkpoint is not None:
            worker.objects.fetch(job.checkpoint["key"], directory / "resume", sha256=job.checkpoint["sha256"])
        return {
            **inputs.fetch_version(worker, job, directory),
            "checkpoint": "resume" if job.checkpoint is not None else None,
            "backbone": job.payload["backbone"],
            "weights": inputs.local_weights(worker, job.payload["backbone"]),
            "recipe": job.payload["recipe"],
            "search": job.payload.get("search"),
            "device": worker.settings.device,
            "threads": worker.settings.threads,
            "compute": {
                "precision": worker.settings.trainer_precision,
                "compile": worker.settings.trainer_compile,
                "image_bytes": worker.settings.trainer_image_bytes,
                "token_bytes": worker.settings.trainer_kept_bytes,
            },
        }

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        jobs.keep_checkpoint(session, jobs.fence_of(job), {**stored, "epoch": data["epoch"]})

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        """A tuning job has nothing beyond code and detail."""

    def publish(self, _worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        artifact = (directory / result["artifact"]).read_bytes()
        recipe = Recipe.from_dict(result["recipe"])  # what a search has found is settled in it
        publication = prompt_sets.Publication(
            artifact=artifact,
            backbone=job.payload["backbone"],
            backbone_fingerprint=result["backbone_fingerprint"],
            class_names=result["class_names"],
            recipe=result["recipe"],
            parameters=parameter_count(recipe, catalog.find(job.payload["backbone"])),
            metrics=result["metrics"],
        )
        if result["report_failure"]:
            # The customer gets the prompt set all the same; the fault is ours, and nobody else is told of it.
            logger.error("the report is not as it should be", extra={"reason": result["report_failure"]})

        def finish(session: Session) -> None:
            assert job.prompt_set_id is not None
            version = prompt_sets.publish(
                session,
                job.prompt_set_id,
                publication,
                job_id=job.id,
                dataset_id=job.dataset_id,
                dataset_version=job.dataset_version,
            )
            jobs.keep_report(session, jobs.fence_of(job), result["report"])
            jobs.succeed(
                session,
                jobs.fence_of(job),
                {
                    "prompt_set": job.payload["prompt_set"],
                    "version": version.version,
                    "artifact_sha256": version.artifact_sha256,
                    "artifact_bytes": version.artifact_bytes,
                    **{name: result["metrics"][name] for name in ("best_epoch", "val", "test", "trials")},
                },
            )

        return finish
