"""Checkpoints in a worker's hands: what a lost one costs, and what each epoch leaves in the database."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_core import artifact
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset
from bpt_core.errors import ArtifactError
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_core.tuning import Tuned, tune
from bpt_store import checkpoints, jobs, prompt_sets, resuming
from bpt_store.db import Database
from bpt_store.models import Job, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Settings
from tests.core import conftest as core
from worker import trainer
from worker.child import Child
from worker.context import Worker
from worker.refused import Refused
from worker.tune import Tune, _fetch_checkpoints, _fetch_start

backbone, make_backbone, flowers = core.backbone, core.make_backbone, core.flowers

SHAPE = {"method": Method.BPT_BILINEAR, "prompts": 6, "rank": 4}
BASE: dict[str, Any] = {**SHAPE, "epochs": 3, "batch_size": 12, "warmup_epochs": 1}
RECIPE = Recipe(**BASE)


# --- in the trainer ---


@pytest.fixture
def told(tmp_path: Path) -> Iterator[tuple[Child, Callable[[], list[dict[str, Any]]]]]:
    """A child, and what it has told so far."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)

    def events() -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in os.read(read_end, 1 << 16).splitlines()]
        except BlockingIOError:
            return []

    yield Child({}, tmp_path, write_end), events
    os.close(read_end)
    os.close(write_end)


def checkpoints_of(run: Callable[..., Tuned]) -> list[bytes]:
    kept: list[bytes] = []
    run(on_epoch=lambda _, standing: kept.append(standing.checkpoint()))
    return kept


Told = tuple[Child, Callable[[], list[dict[str, Any]]]]


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "other recipe"])
def test_a_checkpoint_that_cannot_be_used_is_told_and_the_one_before_is_gone_on_from(
    backbone: Backbone, flowers: PackedDataset, tmp_path: Path, told: Told, damage: str
) -> None:
    child, events = told
    run = partial(tune, backbone, flowers, RECIPE)
    first, second, _ = checkpoints_of(run)
    spoilt = {
        "flipped": bytes([second[0] ^ 1]) + second[1:],
        "cut off": second[:-9],
        "empty": b"",
        "other recipe": checkpoints_of(partial(tune, backbone, flowers, Recipe(**{**BASE, "seed": 1})))[1],
    }
    for name, content in (("resume-2", spoilt[damage]), ("resume-1", first)):
        (tmp_path / name).write_bytes(content)
    files = [{"file": "resume-2", "epoch": 2}, {"file": "resume-1", "epoch": 1}]
    seen: list[int] = []
    tuned = trainer._resumed(child, partial(run, on_epoch=lambda report, _: seen.append(report.epoch)), files)
    assert seen == [2, 3]
    assert tuned.prompt_set.sha256 == run().prompt_set.sha256
    (event,) = events()
    code = "checkpoint_mismatch" if damage == "other recipe" else "checkpoint_corrupt"
    assert (event["event"], event["data"]["epoch"]) == ("checkpoint_lost", 2)
    assert event["data"]["reason"].startswith(code)


def test_with_none_that_can_be_used_a_run_begins_at_the_beginning(
    backbone: Backbone, flowers: PackedDataset, tmp_path: Path, told: Told
) -> None:
    child, events = told
    (tmp_path / "resume-2").write_bytes(b"garbage")
    seen: list[int] = []
    run = partial(tune, backbone, flowers, RECIPE, on_epoch=lambda report, _: seen.append(report.epoch))
    trainer._resumed(child, run, [{"file": "resume-2", "epoch": 2}])
    assert seen == [1, 2, 3]
    assert len(events()) == 1


def test_an_artifact_that_is_at_fault_otherwise_is_no_lost_checkpoint(tmp_path: Path, told: Told) -> None:
    child, events = told
    (tmp_path / "resume-2").write_bytes(b"")

    def run(**_: Any) -> Tuned:
        raise ArtifactError("of something else", code="artifact_schema")

    with pytest.raises(ArtifactError):
        trainer._resumed(child, run, [{"file": "resume-2", "epoch": 2}])
    assert events() == []


# --- in the supervisor ---


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    worker = Worker.create(settings.model_copy(update={"job_checkpoints": 2}))
    yield worker
    worker.database.close()


@pytest.fixture
def claim(database: Database, customer_id: UUID) -> Callable[..., Job]:
    def make(**payload: Any) -> Job:
        given = {"backbone": "vit_tiny_patch8_64.mae", "prompt_set": "birds", **payload}
        with database.customer(customer_id) as session:
            jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload=given)
        with database.system() as session:
            job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
        assert job is not None
        return job

    return make


@pytest.fixture
def stored(worker: Worker, database: Database, claim: Callable[..., Job], tmp_path: Path) -> Job:
    """A job with checkpoints of epochs 1 and 2."""
    job = claim()
    for epoch in (1, 2):
        (tmp_path / "f").write_bytes(b"checkpoint %d" % epoch)
        kept = worker.objects.put_file(f"jobs/{job.id.hex}/1/checkpoint-{epoch}.safetensors", tmp_path / "f")
        with database.customer(job.customer_id) as session:
            Tune().keep(session, job, kept, {"epoch": epoch})
    with database.customer(job.customer_id) as session:
        return jobs.get(session, job.id, JobKind.TUNE)


def test_whole_checkpoints_are_fetched_newest_first(worker: Worker, stored: Job, tmp_path: Path) -> None:
    found = _fetch_checkpoints(worker, stored, tmp_path)
    assert [each["epoch"] for each in found] == [2, 1]
    assert [(tmp_path / each["file"]).read_bytes() for each in found] == [b"checkpoint 2", b"checkpoint 1"]


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_damaged_or_missing_checkpoint_is_told_once_and_the_one_before_is_fetched(
    worker: Worker, database: Database, settings: Settings, stored: Job, tmp_path: Path, damage: str
) -> None:
    assert stored.checkpoint is not None
    path = Path(settings.objects_url.removeprefix("file://")) / stored.checkpoint["key"]
    if damage == "flipped":
        path.write_bytes(b"Checkpoint 2")
    else:
        path.unlink()
    assert [each["epoch"] for each in _fetch_checkpoints(worker, stored, tmp_path)] == [1]
    with database.customer(stored.customer_id) as session:
        again = jobs.get(session, stored.id, JobKind.TUNE)
        lost = [event.data for event in jobs.events_after(session, stored.id, 0, 100) if event.type != "state"]
    why = "damaged" if damage == "flipped" else "missing"
    assert [(each["epoch"], why in each["reason"]) for each in lost] == [(2, True)]
    assert [each["epoch"] for each in resuming.resumable(again)] == [1]
    assert [each["epoch"] for each in _fetch_checkpoints(worker, again, tmp_path)] == [1]


def test_storage_that_is_away_loses_no_checkpoint(
    worker: Worker, database: Database, settings: Settings, stored: Job, tmp_path: Path
) -> None:
    assert stored.checkpoint is not None
    path = Path(settings.objects_url.removeprefix("file://")) / stored.checkpoint["key"]
    path.unlink()
    path.symlink_to(path)  # it can be neither read nor said to be missing
    with pytest.raises(Exception, match="symbolic links"):
        _fetch_checkpoints(worker, stored, tmp_path)
    with database.customer(stored.customer_id) as session:
        assert len(resuming.resumable(jobs.get(session, stored.id, JobKind.TUNE))) == 2


def test_what_an_epoch_leaves_is_kept_as_the_setting_says(
    worker: Worker, database: Database, claim: Callable[..., Job]
) -> None:
    job = claim()
    facts = {"file": "f", "backbone_fingerprint": "f", "class_names": ["a", "b"], "recipe": RECIPE.to_dict()}
    for epoch, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2)):
        with database.customer(job.customer_id) as session:
            data = {"epoch": epoch, "val_accuracy": accuracy}
            Tune().keep_attached(
                worker, session, job, b"artifact %d" % epoch, {**facts, "val": {"top1": accuracy}}, data
            )
    with database.customer(job.customer_id) as session:
        rows = session.execute(text("SELECT epoch, score FROM job_checkpoints ORDER BY epoch"))
        assert [tuple(row) for row in rows] == [(1, 0.9), (3, 0.2)]
        _, version, _ = checkpoints.publish(session, job, 1, None)
        assert version.parameters == (6 + 192) * 4
        assert (version.recipe, version.metrics["val"]) == (RECIPE.to_dict(), {"top1": 0.9})


# --- the version to begin with ---


def test_the_version_to_begin_with_must_be_the_one_of_the_creation(
    worker: Worker, database: Database, customer_id: UUID, claim: Callable[..., Job], tmp_path: Path
) -> None:
    with database.customer(customer_id) as session:
        birds = prompt_sets.get_or_create(session, customer_id, "birds")
        for data in (b"one", b"two"):
            publication = Publication(data, "vit", "f", ["a", "b"], {}, 1, {})
            prompt_sets.publish(session, birds.id, publication, job_id=uuid4(), dataset_id=None)

    def begun(number: int, data: bytes) -> dict[str, Any]:
        return {"prompt_set": "birds", "version": number, "artifact_sha256": artifact.sha256(data), "head": "new"}

    assert _fetch_start(worker, claim(), tmp_path) is None
    name = _fetch_start(worker, claim(continue_from=begun(1, b"one")), tmp_path)
    assert name is not None
    assert (tmp_path / name).read_bytes() == b"one"
    for number, data in ((3, b"three"), (1, b"as it was before it was deleted and made again")):
        with pytest.raises(Refused) as refused:
            _fetch_start(worker, claim(continue_from=begun(number, data)), tmp_path)
        assert refused.value.code == "continue_gone"
    with database.customer(customer_id) as session:
        session.execute(text("UPDATE prompt_set_versions SET artifact = 'other' WHERE version = 2"))
    with pytest.raises(Refused) as refused:
        _fetch_start(worker, claim(continue_from=begun(2, b"two")), tmp_path)
    assert refused.value.code == "artifact_integrity"
