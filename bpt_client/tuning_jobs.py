"""Tuning jobs: ask for one, follow it epoch by epoch, wait for its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bpt_client.errors import TuningFailed
from bpt_client.following import ended, follow
from bpt_client.models import Checkpoint, JobEvent, PromptSetVersion, TuningJob, TuningPlan
from bpt_client.report_models import TuningReport
from bpt_client.transport import Transport, segment


class TuningJobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        dataset_id: str,
        prompt_set: str,
        *,
        backbone: str | None = None,
        method: str | None = None,
        depth: str | None = None,
        prompts: int | None = None,
        rank: int | str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        trials: int | None = None,
        seed: int | None = None,
        continue_from: str | None = None,
        max_minutes: float | None = None,
        priority: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> TuningJob:
        """Ask for a new version of `prompt_set`, which is made if absent. What is None is the service's default.

        `method` is one of those that `GET /v1/methods` lists, "bpt-bilinear" by default; `depth` is "shallow",
        "deep" or "deep-top4". These two, `rank`, and the hyperparameters learning_rate, weight_decay and
        head_weight_decay may be "auto": the service finds them by so many `trials`.

        With `continue_from` ("birds:3", "birds@production", or "birds" for the newest) tuning begins with the prompts
        of that version, and with its head where the classes are the same; method and backbone are its own.

        After `max_minutes` of running (pauses and waiting do not count) training stops; the best so far is published.
        Among your own jobs that wait those of `priority` "high" come first, and "low" last.
        """
        body = _request(dataset_id, prompt_set, backbone, method, depth, prompts, rank, hyperparameters, trials, seed)
        body |= {"continue_from": continue_from, "budget": _budget(max_minutes), "priority": priority}
        body["metadata"] = dict(metadata) if metadata else None
        return self._transport.send(TuningJob, "/v1/tuning-jobs", body)

    def plan(
        self,
        dataset_id: str,
        prompt_set: str,
        *,
        backbone: str | None = None,
        method: str | None = None,
        depth: str | None = None,
        prompts: int | None = None,
        rank: int | str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        trials: int | None = None,
        seed: int | None = None,
        continue_from: str | None = None,
        max_minutes: float | None = None,
    ) -> TuningPlan:
        """What `create` with the same arguments would do: settings, parameters, estimated time. Nothing is done."""
        body = _request(dataset_id, prompt_set, backbone, method, depth, prompts, rank, hyperparameters, trials, seed)
        body |= {"continue_from": continue_from, "budget": _budget(max_minutes)}
        return self._transport.send(TuningPlan, "/v1/tuning-jobs", {**body, "dry_run": True})

    def list(self, *, state: str | None = None) -> Iterator[TuningJob]:
        """Newest first; with `state` only the jobs in it."""
        return self._transport.pages(TuningJob, "/v1/tuning-jobs", {"state": state})

    def get(self, job_id: str) -> TuningJob:
        return self._transport.fetch(TuningJob, f"/v1/tuning-jobs/{segment(job_id)}")

    def cancel(self, job_id: str) -> TuningJob:
        """A running job winds down first: it is `cancelling`, then `cancelled`."""
        return self._transport.send(TuningJob, f"/v1/tuning-jobs/{segment(job_id)}/cancel")

    def pause(self, job_id: str) -> TuningJob:
        """A running job winds down first: it is `pausing`, then `paused`, and keeps its last checkpoint."""
        return self._transport.send(TuningJob, f"/v1/tuning-jobs/{segment(job_id)}/pause")

    def resume(self, job_id: str) -> TuningJob:
        """A paused job waits again. Conflict `job_pausing` while it is not paused yet."""
        return self._transport.send(TuningJob, f"/v1/tuning-jobs/{segment(job_id)}/resume")

    def retry(self, job_id: str) -> TuningJob:
        """A job that failed or was cancelled waits again, and goes on from its last checkpoint if it is still there."""
        return self._transport.send(TuningJob, f"/v1/tuning-jobs/{segment(job_id)}/retry")

    def delete(self, job_id: str) -> None:
        """A job that has ended, with its events and checkpoints; versions that it published stay.

        Conflict `job_unfinished` before its end.
        """
        self._transport.once("DELETE", f"/v1/tuning-jobs/{segment(job_id)}")

    def checkpoints(self, job_id: str) -> Iterator[Checkpoint]:
        """What its epochs left and is still kept, the newest first; also while the job runs."""
        return self._transport.pages(Checkpoint, f"/v1/tuning-jobs/{segment(job_id)}/checkpoints")

    def publish(self, job_id: str, epoch: int, *, prompt_set: str | None = None) -> PromptSetVersion:
        """Make a checkpoint a version of `prompt_set`, by default the job's own; one that is there already is given.

        It has no test figures and is not calibrated. NotFound where the epoch left none that is still kept.
        """
        path = f"/v1/tuning-jobs/{segment(job_id)}/checkpoints/{epoch}/publish"
        return self._transport.send(PromptSetVersion, path, {"prompt_set": prompt_set})

    def report(self, job_id: str) -> TuningReport:
        """Probable label errors, the hardest images and the most confused classes.

        Conflict `job_unfinished` before the job has ended; NotFound where it has no report: it did not succeed, or is
        older than reports are.
        """
        return self._transport.fetch(TuningReport, f"/v1/tuning-jobs/{segment(job_id)}/report")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Events there are so far, with a number above `after`."""
        return self._transport.pages(JobEvent, f"/v1/tuning-jobs/{segment(job_id)}/events", {"after": after})

    def follow(self, job_id: str, *, after: int = 0, patience_seconds: float = 120.0) -> Iterator[JobEvent]:
        """Events as they happen, those of the past first, each exactly once; ends with the job.

        A connection that breaks, also by a restart of the service, is made again and goes on behind the last
        event seen. ConnectionFailed or the service's own ServerError only when no connection could be had for
        `patience_seconds`.
        """
        return follow(self._transport, f"/v1/tuning-jobs/{segment(job_id)}/events", after, patience_seconds)

    def wait(self, job_id: str, *, timeout: float | None = None) -> TuningJob:
        """The job once it succeeded. TuningFailed (also when cancelled); WaitedTooLong after `timeout` seconds."""
        job = ended(self.get, job_id, timeout)
        if job.state != "succeeded":
            raise TuningFailed(job)
        return job


def _budget(max_minutes: float | None) -> dict[str, Any] | None:
    return {"max_minutes": max_minutes} if max_minutes is not None else None


def _request(
    dataset_id: str,
    prompt_set: str,
    backbone: str | None,
    method: str | None,
    depth: str | None,
    prompts: int | None,
    rank: int | str | None,
    hyperparameters: Mapping[str, Any] | None,
    trials: int | None,
    seed: int | None,
) -> dict[str, Any]:
    given = {"type": method, "depth": depth, "prompts": prompts, "rank": rank}
    return {
        "dataset": dataset_id,
        "prompt_set": prompt_set,
        "backbone": backbone,
        "method": {field: value for field, value in given.items() if value is not None} or None,
        "hyperparameters": dict(hyperparameters) if hyperparameters else None,
        "trials": trials,
        "seed": seed,
    }
