"""Tuning jobs, the supervisor's side: fetch shards and checkpoint before, publish the artifact after.

One that reproduces a version publishes nothing: its result is the difference.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bpt_core import catalog
from bpt_core.recipe import Recipe, parameter_count
from bpt_store import checkpoints, jobs, prompt_sets, resuming
from bpt_store.errors import Damaged, NotFound
from bpt_store.models import Job
from bpt_store.release import code_version
from worker import inputs
from worker.context import Worker
from worker.refused import Refused

logger = logging.getLogger(__name__)


class Tune:
    child = "worker.trainer"
    crash_code = "trainer_crashed"
    stall_code = "trainer_stalled"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        began, left = time.monotonic(), _seconds_left(job)
        return {
            **inputs.fetch_version(worker, job, directory),
            "checkpoints": _fetch_checkpoints(worker, job, directory),
            "start": _fetch_start(worker, job, directory),
            "reproduces": _fetch_reproduced(worker, job, directory),
            "backbone": job.payload["backbone"],
            "weights": inputs.local_weights(worker, job.payload["backbone"]),
            "recipe": job.payload["recipe"],
            "search": job.payload.get("search"),
            "device": worker.settings.device,
            "threads": worker.settings.threads,
            "seconds_left": left - (time.monotonic() - began) if left is not None else None,
            "compute": {
                "precision": worker.settings.trainer_precision,
                "compile": worker.settings.trainer_compile,
                "image_bytes": worker.settings.trainer_image_bytes,
                "token_bytes": worker.settings.trainer_kept_bytes,
            },
        }

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        resuming.keep_checkpoint(session, jobs.fence_of(job), {**stored, "epoch": data["epoch"]})

    def keep_attached(
        self, worker: Worker, session: Session, job: Job, content: bytes, facts: dict[str, Any], data: dict[str, Any]
    ) -> None:
        recipe = Recipe.from_dict(facts["recipe"])
        left = checkpoints.Left(
            epoch=data["epoch"],
            artifact=content,
            score=data["val_accuracy"],
            val=facts["val"],
            facts={
                **{name: facts[name] for name in ("backbone_fingerprint", "class_names", "recipe")},
                "parameters": parameter_count(recipe, catalog.find(job.payload["backbone"])),
                "code_version": code_version(),
            },
        )
        checkpoints.keep(session, jobs.fence_of(job), left, most=worker.settings.job_checkpoints)

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        """A tuning job has nothing beyond code and detail."""

    def publish(self, _worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        if result["report_failure"]:
            # The customer gets the prompt set all the same; the fault is ours, and nobody else is told of it.
            logger.error("the report is not as it should be", extra={"reason": result["report_failure"]})
        artifact = (directory / result["artifact"]).read_bytes()
        if "reproduces" in job.payload:
            return _telling(job, artifact, result)
        recipe = Recipe.from_dict(result["recipe"])  # what a search has found is settled in it
        publication = prompt_sets.Publication(
            artifact=artifact,
            backbone=job.payload["backbone"],
            backbone_fingerprint=result["backbone_fingerprint"],
            class_names=result["class_names"],
            recipe=result["recipe"],
            parameters=parameter_count(recipe, catalog.find(job.payload["backbone"])),
            metrics=result["metrics"],
            continued_from=job.payload.get("continue_from"),
            code_version=code_version(),
        )

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
                    "stopped_by": result["stopped_by"],
                },
            )

        return finish


def _telling(job: Job, artifact: bytes, result: dict[str, Any]) -> Callable[[Session], None]:
    """The end of a job that has learned a version once more."""
    was = job.payload["reproduces"]
    now = {
        "artifact_sha256": hashlib.sha256(artifact).hexdigest(),
        "code_version": code_version(),
        "metrics": result["metrics"],
    }
    then = {name: was[name] for name in now}

    def finish(session: Session) -> None:
        jobs.keep_report(session, jobs.fence_of(job), result["report"])
        told = {**result["reproduction"], "then": then, "now": now}
        jobs.succeed(session, jobs.fence_of(job), {"reproduction": told})

    return finish


def _seconds_left(job: Job) -> float | None:
    """Of the job's budget, as its attempt begins; None without one. Refused where there is nothing to show for it."""
    budget = job.payload.get("budget")
    if budget is None:
        return None
    left: float = 60 * budget["max_minutes"] - job.worked_seconds
    if left <= 0 and job.checkpoint is None:
        raise Refused(
            "budget_exhausted",
            f"{budget['max_minutes']:g} minutes were over before the first epoch was done; give a larger budget, "
            "or ask for less: fewer images, fewer trials, a smaller backbone",
        )
    return left


def _fetch_checkpoints(worker: Worker, job: Job, directory: Path) -> list[dict[str, Any]]:
    """What the job can go on from, now in `directory` -> [{"file", "epoch"}], the newest first.

    A checkpoint that is missing or damaged will be so at the next attempt, too: it is given up.
    """
    found = []
    for kept in resuming.resumable(job):
        name = f"resume-{kept['epoch']}"
        try:
            worker.objects.fetch(kept["key"], directory / name, sha256=kept["sha256"])
        except FileNotFoundError:
            _lose(worker, job, kept, "it is missing in object storage")
        except ValueError:
            _lose(worker, job, kept, "it is damaged: what is stored is not what was stored")
        else:
            found.append({"file": name, "epoch": kept["epoch"]})
    return found


def _lose(worker: Worker, job: Job, kept: dict[str, Any], reason: str) -> None:
    logger.error("a checkpoint is lost", extra={"key": kept["key"], "reason": reason})
    with worker.database.customer(job.customer_id) as session:
        resuming.lose_checkpoint(session, jobs.fence_of(job), kept["key"], reason)


def _fetch_start(worker: Worker, job: Job, directory: Path) -> str | None:
    """The version that tuning begins with, as it was when the job was created, now in `directory` -> its name."""
    wanted = job.payload.get("continue_from")
    if wanted is None:
        return None
    artifact = _fetch_artifact(worker, job, wanted, gone="continue_gone", role="with which tuning was to begin")
    (directory / "start.safetensors").write_bytes(artifact)
    return "start.safetensors"


def _fetch_reproduced(worker: Worker, job: Job, directory: Path) -> str | None:
    """The version that is to be learned once more, now in `directory` -> its name."""
    wanted = job.payload.get("reproduces")
    if wanted is None:
        return None
    artifact = _fetch_artifact(worker, job, wanted, gone="prompt_set_gone", role="which was to be learned again")
    (directory / "reproduces.safetensors").write_bytes(artifact)
    return "reproduces.safetensors"


def _fetch_artifact(worker: Worker, job: Job, wanted: dict[str, Any], *, gone: str, role: str) -> bytes:
    """Of a version as it was when the job was created. Refused, with the code `gone` where it is there no more."""
    reference = f"{wanted['prompt_set']}:{wanted['version']}"
    try:
        with worker.database.customer(job.customer_id) as session:
            _, version = prompt_sets.resolve(session, reference)
            artifact = prompt_sets.artifact(session, version)
    except NotFound:
        raise Refused(gone, f"{reference}, {role}, was deleted") from None
    except Damaged as error:
        raise Refused(error.code, f"{reference}, {role}: {error}") from error
    if version.artifact_sha256 != wanted["artifact_sha256"]:
        raise Refused(gone, f"{reference} is another version than the one {role}")
    return artifact
