"""Ingest jobs, the supervisor's side: fetch what was sent before, store the packed version after."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from bpt_store import datasets, jobs
from bpt_store.models import DatasetVersion, Job
from bpt_store.quotas import Limits
from worker import imports, inputs
from worker.context import Worker
from worker.refused import Refused

MOST_DECODERS = 8


class Ingest:
    child = "worker.packer"
    crash_code = "ingest_crashed"
    stall_code = "ingest_stalled"

    def prepare(self, worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
        assert job.dataset_id is not None
        assert job.dataset_version is not None
        with worker.database.customer(job.customer_id) as session:
            options = datasets.get(session, job.dataset_id).options
            version = datasets.version(session, job.dataset_id, job.dataset_version, whole=True)
            base = None
            if version.base is not None:
                base = datasets.version(session, job.dataset_id, version.base)
        settings = worker.settings
        return {
            "source": _fetch_source(worker, version.source, directory) if version.source is not None else None,
            "base": _fetch_base(worker, base, directory / "base") if base is not None else None,
            "changes": version.changes,
            "options": {"bad_images": settings.bad_image_fraction, **options},
            "decoders": settings.ingest_decoders or min(MOST_DECODERS, len(os.sched_getaffinity(0))),
            "decode_cpu_seconds": settings.decode_cpu_seconds,
            "decode_memory_bytes": settings.decode_memory_bytes,
            "cpu_seconds": settings.ingest_cpu_seconds,
            "memory_bytes": settings.ingest_memory_bytes,
        }

    def keep(self, session: Session, job: Job, stored: dict[str, Any], data: dict[str, Any]) -> None:
        """An ingest gives no checkpoints."""

    def keep_attached(
        self, worker: Worker, session: Session, job: Job, content: bytes, facts: dict[str, Any], data: dict[str, Any]
    ) -> None:
        """An ingest attaches nothing to its events."""

    def note_failure(self, session: Session, job: Job, failure: dict[str, Any]) -> None:
        assert job.dataset_id is not None
        assert job.dataset_version is not None
        datasets.version(session, job.dataset_id, job.dataset_version).report = failure.get("report")

    def publish(self, worker: Worker, job: Job, directory: Path, result: dict[str, Any]) -> Callable[[Session], None]:
        dataset_id, number = job.dataset_id, job.dataset_version
        assert dataset_id is not None
        assert number is not None
        # Named by their content: an attempt that died between storing and committing has stored the same.
        prefix = datasets.prefix(dataset_id)
        contents = datasets.Contents(
            task=result["task"],
            class_names=result["class_names"],
            objects={
                "shards": [worker.objects.put_content(prefix, directory / name) for name in result["shards"]],
                **{name: worker.objects.put_content(prefix, directory / result[name]) for name in _SINGLE},
            },
            report=result["report"],
        )

        def finish(session: Session) -> None:
            # The fence first: a replaced attempt must not touch the dataset.
            jobs.succeed(session, jobs.fence_of(job), {"images": result["report"]["images"]})
            datasets.become_ready(session, dataset_id, number, contents, Limits.of(worker.settings))

        return finish


_SINGLE = ("items", "thumbnails")


def _fetch_base(worker: Worker, base: DatasetVersion, directory: Path) -> dict[str, Any]:
    directory.mkdir()
    files = inputs.fetch_files(worker, base, directory)
    if None in files.values():
        detail = f"version {base.number} was made before items were kept; upload the dataset again"
        raise Refused("dataset_not_indexed", detail)
    return files


def _fetch_source(worker: Worker, source: Mapping[str, Any], directory: Path) -> str:
    """What was sent, as one file -> its name. Refused `checksum_mismatch`, or as imports.fetch says."""
    path = directory / "source"
    if "url" in source:
        imports.fetch(source["url"], path, worker.settings.upload_whole_limit_bytes)
        return path.name
    whole = hashlib.sha256()
    with path.open("wb") as file:
        for part in source["parts"]:
            worker.objects.copy_to(file, part["key"], sha256=part["sha256"], also=whole)
    expected = source.get("sha256")
    if expected is not None and expected != whole.hexdigest():
        raise Refused("checksum_mismatch", f"the parts together have the sha256 {whole.hexdigest()}, not {expected}")
    return path.name
