"""A version learned once more, in a worker's hands: what is fetched, and that nothing is published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_core import artifact
from bpt_core.backbones import Backbone
from bpt_core.errors import ArtifactError
from bpt_store import jobs, prompt_sets
from bpt_store.db import Database
from bpt_store.models import Job, JobKind, JobState
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Settings
from tests.core import conftest as core
from tests.published import probe
from worker.context import Worker
from worker.refused import Refused
from worker.trainer import _check_weights
from worker.tune import Tune, _fetch_reproduced

backbone, make_backbone = core.backbone, core.make_backbone


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker.create(settings)
    yield worker
    worker.database.close()


@pytest.fixture
def job(database: Database, customer_id: UUID) -> Job:
    """It runs, and is to learn birds:1 once more."""
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds")
        made = Publication(b"one", "vit", "f", ["a", "b"], {}, 1, {"best_epoch": 1}, code_version="1.0")
        prompt_sets.publish(session, birds.id, made, job_id=uuid4(), dataset_id=None)
        then = {"artifact_sha256": artifact.sha256(b"one"), "code_version": "1.0", "metrics": {"best_epoch": 1}}
        payload = {"prompt_set": "birds", "reproduces": {"prompt_set": "birds", "version": 1, **then}}
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload=payload)
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
    assert job is not None
    return job


def test_the_version_is_fetched_as_it_was(worker: Worker, job: Job, tmp_path: Path) -> None:
    name = _fetch_reproduced(worker, job, tmp_path)
    assert name is not None
    assert (tmp_path / name).read_bytes() == b"one"


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("DELETE FROM prompt_set_versions", "prompt_set_gone"),
        ("UPDATE prompt_set_versions SET artifact = 'o', artifact_sha256 = encode(sha256('o'), 'hex')", None),
        ("UPDATE prompt_set_versions SET artifact = 'o'", "artifact_integrity"),
    ],
)
def test_a_version_that_is_gone_or_another_one_cannot_be_learned_again(
    worker: Worker, database: Database, job: Job, tmp_path: Path, statement: str, code: str | None
) -> None:
    with database.customer(job.customer_id) as session:
        session.execute(text(statement))
    with pytest.raises(Refused, match="which was to be learned again") as refused:
        _fetch_reproduced(worker, job, tmp_path)
    assert refused.value.code == (code or "prompt_set_gone")


def test_the_end_is_the_difference_and_no_version(worker: Worker, database: Database, job: Job, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"two")
    metrics = {"best_epoch": 2}
    result: dict[str, Any] = {"artifact": "a", "metrics": metrics, "report": {"hardest": []}, "report_failure": None}
    finish = Tune().publish(worker, job, tmp_path, {**result, "reproduction": {"verdict": "different"}})
    with database.customer(job.customer_id) as session:
        finish(session)
    with database.customer(job.customer_id) as session:
        done = jobs.get(session, job.id, JobKind.TUNE)
        birds = prompt_sets.get(session, "birds")
        assert (done.state, done.report, prompt_sets.versions(session, birds.id)) == (
            JobState.SUCCEEDED,
            {"hardest": []},
            [1],
        )
    assert done.result is not None
    found = done.result["reproduction"]
    assert (found["verdict"], found["then"]["metrics"], found["now"]["metrics"]) == (
        "different",
        {"best_epoch": 1},
        metrics,
    )
    assert (found["then"]["code_version"], found["now"]["artifact_sha256"]) == ("1.0", artifact.sha256(b"two"))


def test_other_weights_are_found_out_before_any_work(backbone: Backbone) -> None:
    _check_weights(probe(backbone_fingerprint=backbone.fingerprint), backbone)
    with pytest.raises(ArtifactError, match="other weights") as refused:
        _check_weights(probe(), backbone)
    assert refused.value.code == "not_reproducible"
