"""What several kinds of jobs are given: a version of a dataset, and weights of the operator's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bpt_core import catalog
from bpt_store import datasets
from bpt_store.models import DatasetVersion, Job
from worker.context import Worker


def fetch_shards(worker: Worker, job: Job, directory: Path) -> list[str]:
    """The shards of the job's dataset, now in `directory` -> their names, in order."""
    return _fetch_shards(worker, _version(worker, job), directory)


def fetch_version(worker: Worker, job: Job, directory: Path) -> dict[str, Any]:
    """The job's dataset with its index, now in `directory` -> {"shards": names, "items": name, "thumbnails": name};
    what is None was not kept when the version was made.
    """
    return fetch_files(worker, _version(worker, job), directory)


def fetch_files(worker: Worker, version: DatasetVersion, directory: Path) -> dict[str, Any]:
    """As fetch_version, for a version at hand."""
    files: dict[str, Any] = {"shards": _fetch_shards(worker, version, directory)}
    assert version.objects is not None
    for name in ("items", "thumbnails"):
        stored = version.objects.get(name)
        files[name] = name if stored else None
        if stored:
            worker.objects.fetch(stored["key"], directory / name, sha256=stored["sha256"])
    return files


def local_weights(worker: Worker, backbone: str) -> str | None:
    """A weights file the operator put beside the service, if there is one for this backbone."""
    path = catalog.local_weights(worker.settings.weights_directory, backbone)
    return str(path) if path is not None else None


def _version(worker: Worker, job: Job) -> DatasetVersion:
    assert job.dataset_id is not None
    assert job.dataset_version is not None
    with worker.database.customer(job.customer_id) as session:
        return datasets.version(session, job.dataset_id, job.dataset_version)


def _fetch_shards(worker: Worker, version: DatasetVersion, directory: Path) -> list[str]:
    assert version.objects is not None
    names = []
    for number, shard in enumerate(version.objects["shards"]):
        names.append(f"shard-{number:05d}.parquet")
        worker.objects.fetch(shard["key"], directory / names[-1], sha256=shard["sha256"])
    return names
