"""Batch predictions, the supervisor's side."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from bpt_store import batch_predictions, jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.models import DatasetVersion, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Settings
from worker.batch import BatchPredict
from worker.context import Worker
from worker.refused import Refused


def test_a_prompt_set_that_was_deleted_meanwhile_fails_the_job_for_good(
    settings: Settings, database: Database, customer_id: UUID, tmp_path: Path
) -> None:
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        publication = Publication(b"one", "vit", "fingerprint", ["a", "b"], {}, 1, {})
        prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)
        dataset = DatasetVersion(dataset_id=uuid4(), number=1)
        batch_predictions.create(
            session, customer_id, dataset, ["birds"], split=None, top_k=5, images=1, custom={}, unfinished_limit=9
        )
    with database.system() as session:
        job = jobs.claim(session, JobKind.BATCH_PREDICT, "a worker", 30.0)
    assert job is not None
    with database.customer(customer_id) as session:
        prompt_sets.delete(session, "birds")
    worker = Worker.create(settings)
    with pytest.raises(Refused, match="birds:1") as caught:
        BatchPredict().prepare(worker, job, tmp_path)
    worker.database.close()
    assert caught.value.code == "prompt_set_gone"
