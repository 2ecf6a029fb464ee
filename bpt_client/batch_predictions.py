"""Batch predictions: a dataset through some prompt sets, followed like a tuning job, with files as results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bpt_client.errors import BatchPredictionFailed, InputError, TransferCorrupt
from bpt_client.files import written_whole
from bpt_client.following import ended, follow
from bpt_client.models import BatchPrediction, Comparison, FlippedImage, JobEvent
from bpt_client.transport import Transport, segment

_PATH = "/v1/batch-predictions"
_MEDIA_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}


class BatchPredictions:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        dataset_id: str,
        prompt_sets: Sequence[str],
        *,
        split: str | None = None,
        top_k: int | None = None,
        priority: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> BatchPrediction:
        """Have a dataset predicted, or one split of it. `prompt_sets` are up to 16: "name", "name:3", "name@alias".

        Among your own batch predictions that wait those of `priority` "high" come first, and "low" last.
        """
        body = {
            "dataset": dataset_id,
            "prompt_sets": [*prompt_sets],
            "split": split,
            "top_k": top_k,
            "priority": priority,
            "metadata": dict(metadata) if metadata else None,
        }
        return self._transport.send(BatchPrediction, _PATH, body)

    def list(self, *, state: str | None = None) -> Iterator[BatchPrediction]:
        """Newest first; with `state` only the jobs in it."""
        return self._transport.pages(BatchPrediction, _PATH, {"state": state})

    def get(self, job_id: str) -> BatchPrediction:
        return self._transport.fetch(BatchPrediction, f"{_PATH}/{segment(job_id)}")

    def cancel(self, job_id: str) -> BatchPrediction:
        """A running job winds down first: it is `cancelling`, then `cancelled`."""
        return self._transport.send(BatchPrediction, f"{_PATH}/{segment(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        """A job that has ended, with its results."""
        self._transport.once("DELETE", f"{_PATH}/{segment(job_id)}")

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Events there are so far, with a number above `after`."""
        return self._transport.pages(JobEvent, f"{_PATH}/{segment(job_id)}/events", {"after": after})

    def follow(self, job_id: str, *, after: int = 0, patience_seconds: float = 120.0) -> Iterator[JobEvent]:
        """Events as they happen, as for tuning jobs: see `TuningJobs.follow`."""
        return follow(self._transport, f"{_PATH}/{segment(job_id)}/events", after, patience_seconds)

    def wait(self, job_id: str, *, timeout: float | None = None) -> BatchPrediction:
        """The job once it succeeded. BatchPredictionFailed (also when cancelled); WaitedTooLong after `timeout` s."""
        job = ended(self.get, job_id, timeout)
        if job.state != "succeeded":
            raise BatchPredictionFailed(job)
        return job

    def compare(self, job_id: str, a: str, b: str) -> Comparison:
        """Two of its prompt sets, as "birds:3", on labelled images. Conflict `comparison_mismatch` without labels."""
        return self._transport.fetch(Comparison, f"{_PATH}/{segment(job_id)}/comparison", {"a": a, "b": b})

    def flips(self, job_id: str, a: str, b: str, *, flip: str | None = None) -> Iterator[FlippedImage]:
        """The images that only one of both is right about: those that `b` has "lost", or "won", or both."""
        asked = {"a": a, "b": b, "flip": flip}
        return self._transport.pages(FlippedImage, f"{_PATH}/{segment(job_id)}/comparison/images", asked)

    def download(self, job_id: str, path: str | Path, format: str | None = None) -> None:  # noqa: A002  # as the service
        """Write the results to `path`, completely or not at all: jsonl, csv or parquet, by default as `path` ends.

        TransferCorrupt unless the SHA-256 is as announced; InputError for a path, or a format, that cannot be.
        """
        path = Path(path)
        wanted = results_format(path) if format is None else format
        if wanted not in _MEDIA_TYPES:
            raise InputError(f"results are to be had as {', '.join(_MEDIA_TYPES)}, not as {wanted!r}")
        job = self.get(job_id)
        url, headers = f"{_PATH}/{segment(job_id)}/results?format={wanted}", {"Accept": _MEDIA_TYPES[wanted]}
        with written_whole(path) as file:
            digest = hashlib.sha256()
            with self._transport.stream(url, headers, self._transport.timeout) as chunks:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            announced = job.result.files[wanted].sha256 if job.result is not None else ""
            if digest.hexdigest() != announced:
                raise TransferCorrupt(f"{path.name} should have SHA-256 {announced}, not {digest.hexdigest()}")


def results_format(path: Path) -> str:
    """By what the name ends in; InputError where that names none."""
    found = path.suffix.lower().removeprefix(".")
    if found not in _MEDIA_TYPES:
        raise InputError(f"{path.name} should end in {', '.join('.' + name for name in _MEDIA_TYPES)}")
    return found
