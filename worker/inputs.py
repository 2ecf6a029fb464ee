"""What several kinds of jobs are given: a dataset's shards, and weights of the operator's own."""

from __future__ import annotations

from pathlib import Path

from bpt_core import catalog
from bpt_store import datasets
from bpt_store.models import Job
from worker.context import Worker


def fetch_shards(worker: Worker, job: Job, directory: Path) -> list[str]:
    """The shards of the job's dataset, now in `directory` -> their names, in order."""
    assert job.dataset_id is not None
    with worker.database.customer(job.customer_id) as session:
        shards = datasets.get(session, job.dataset_id).shards
    names = []
    for shard in shards:
        names.append(Path(shard["key"]).name)
        worker.objects.fetch(shard["key"], directory / names[-1], sha256=shard["sha256"])
    return names


def local_weights(worker: Worker, backbone: str) -> str | None:
    """A weights file the operator put beside the service, if there is one for this backbone."""
    path = catalog.local_weights(worker.settings.weights_directory, backbone)
    return str(path) if path is not None else None
