"""What the epochs of a tuning job leave: kept under the fence, thinned, published once, gone with the job."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import checkpoints, customers, jobs, prompt_sets, resuming
from bpt_store.checkpoints import Left, thinned
from bpt_store.db import Database
from bpt_store.errors import Damaged, LeaseLost, NotFound
from bpt_store.models import Job, JobKind
from tests.service import eventually

FACTS: Mapping[str, Any] = {
    "backbone_fingerprint": "fingerprint",
    "class_names": ["a", "b"],
    "recipe": {"method": "vpt", "seed": 0},
    "parameters": 7,
}
BEGUN = {"prompt_set": "older", "version": 3, "artifact_sha256": "x", "head": "new"}


def left(epoch: int, score: float = 0.5, content: bytes | None = None) -> Left:
    return Left(epoch, content or b"artifact %d" % epoch, score, {"images": 9, "loss": 1.5, "top1": score}, FACTS)


def claimed(database: Database, customer_id: UUID) -> Job:
    with database.customer(customer_id) as session:
        jobs.create(
            session,
            customer_id,
            JobKind.TUNE,
            dataset_id=uuid4(),
            dataset_version=4,
            payload={"backbone": "vit", "prompt_set": "birds", "continue_from": BEGUN},
        )
    with database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 30.0)
    assert job is not None
    return job


@pytest.fixture
def job(database: Database, customer_id: UUID) -> Job:
    return claimed(database, customer_id)


def keep(database: Database, job: Job, *given: Left, most: int = 20) -> None:
    for each in given:
        with database.customer(job.customer_id) as session:
            checkpoints.keep(session, jobs.fence_of(job), each, most=most)


def kept(database: Database, job: Job) -> list[tuple[int, int, bytes]]:
    with database.customer(job.customer_id) as session:
        query = text("SELECT epoch, attempt, artifact FROM job_checkpoints WHERE job_id = :id ORDER BY epoch")
        return [(row.epoch, row.attempt, bytes(row.artifact)) for row in session.execute(query, {"id": job.id})]


def next_attempt(database: Database, job: Job) -> Job:
    with database.customer(job.customer_id) as session:
        jobs.give_back(session, jobs.fence_of(job), "stopped")
    with database.system() as session:
        again = jobs.claim(session, JobKind.TUNE, "another worker", 30.0)
    assert again is not None
    return again


# --- keeping ---


def test_an_attempt_that_repeats_an_epoch_replaces_what_it_left(database: Database, job: Job) -> None:
    keep(database, job, left(1), left(2, content=b"first"))
    again = next_attempt(database, job)
    keep(database, again, left(2, content=b"second"))
    assert kept(database, job) == [(1, 1, b"artifact 1"), (2, 2, b"second")]
    with database.customer(job.customer_id) as session:
        assert checkpoints.get(session, job.id, 2).sha256 == hashlib.sha256(b"second").hexdigest()


def test_a_replaced_attempt_leaves_nothing_more(database: Database, job: Job) -> None:
    again = next_attempt(database, job)
    with pytest.raises(LeaseLost):
        keep(database, job, left(1))
    assert kept(database, again) == []


def test_a_job_keeps_the_best_the_newest_and_others_between(database: Database, job: Job) -> None:
    keep(database, job, *(left(epoch, 0.9 if epoch == 2 else 0.1) for epoch in range(1, 31)), most=5)
    epochs = [epoch for epoch, _, _ in kept(database, job)]
    assert len(epochs) == 5
    assert {2, 30} <= {*epochs}
    gaps = [after - before for before, after in itertools.pairwise(epochs)]
    assert max(gaps) <= 2 * 30 / 4


@pytest.mark.parametrize("most", [2, 3, 7, 20])
def test_thinning_keeps_the_spread_within_a_factor(most: int) -> None:
    scores: dict[int, float] = {}
    for epoch in range(1, 101):
        scores[epoch] = 1 - abs(epoch - 40) / 100  # the best is the newest at first, and then the 40th
        for gone in thinned(scores, epoch, most):
            del scores[gone]
        assert len(scores) <= most
        assert {epoch, min(epoch, 40)} <= {*scores}
    edges = [0, *sorted(scores)]
    assert max(after - before for before, after in itertools.pairwise(edges)) <= max(60, 3 * 100 / most)


def test_the_earlier_of_two_equally_good_ones_is_the_best() -> None:
    assert thinned({1: 0.1, 2: 0.5, 3: 0.5, 4: 0.1}, newest=4, most=2) == [1, 3]


def test_checkpoints_go_with_their_job(database: Database, job: Job) -> None:
    keep(database, job, left(1))
    with database.customer(job.customer_id) as session:
        jobs.fail(session, jobs.fence_of(job), "c", "d")
    assert len(kept(database, job)) == 1
    with database.customer(job.customer_id) as session:
        jobs.delete(session, job.id, JobKind.TUNE)
    assert kept(database, job) == []


# --- publishing ---


def publish(database: Database, job: Job, epoch: int, name: str | None = None) -> tuple[str, int, bool]:
    with database.customer(job.customer_id) as session:
        prompt_set, version, is_new = checkpoints.publish(session, job, epoch, name)
        return prompt_set.name, version.version, is_new


def test_a_checkpoint_becomes_a_version_that_names_job_and_epoch(database: Database, job: Job) -> None:
    keep(database, job, left(1), left(2, 0.75))
    assert publish(database, job, 2) == ("birds", 1, True)
    with database.customer(job.customer_id) as session:
        _, version = prompt_sets.resolve(session, "birds")
        assert prompt_sets.artifact(session, version) == b"artifact 2"
        assert (version.job_id, version.job_epoch) == (job.id, 2)
        assert (version.dataset_id, version.dataset_version) == (job.dataset_id, 4)
        assert (version.backbone, version.backbone_fingerprint, version.parameters) == ("vit", "fingerprint", 7)
        assert (version.class_names, version.recipe) == (["a", "b"], FACTS["recipe"])
        assert version.metrics["val"]["top1"] == 0.75
        assert (version.metrics["test"], version.metrics["calibration"]) == (None, None)
        assert version.continued_from == BEGUN


def test_published_twice_it_is_one_version_in_each_prompt_set(database: Database, job: Job) -> None:
    keep(database, job, left(1), left(2))
    found = [publish(database, job, *given) for given in ((1,), (1,), (2,), (1, "cars"), (1, "cars"), (1,))]
    assert found == [
        *(("birds", 1, True), ("birds", 1, False), ("birds", 2, True)),
        *(("cars", 1, True), ("cars", 1, False), ("birds", 1, False)),
    ]


def test_published_by_two_at_once_it_is_one_version(database: Database, job: Job) -> None:
    keep(database, job, left(1), left(2))
    publish(database, job, 2)  # else making the prompt set would let them in one after the other
    found: list[tuple[str, int, bool]] = []
    other = threading.Thread(target=lambda: found.append(publish(database, job, 1)))
    with database.customer(job.customer_id) as session:
        assert checkpoints.publish(session, job, 1, None)[2]
        other.start()
        with database.system() as watching:
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            eventually(lambda: watching.scalar(waiting) or None, what="the other one waiting")
    other.join()
    assert found == [("birds", 2, False)]


def test_an_epoch_that_came_out_otherwise_is_another_version(database: Database, job: Job) -> None:
    keep(database, job, left(1, content=b"first"))
    publish(database, job, 1)
    keep(database, next_attempt(database, job), left(1, content=b"second"))
    assert publish(database, job, 1) == ("birds", 2, True)


def test_what_is_damaged_or_not_there_is_not_published(database: Database, job: Job) -> None:
    keep(database, job, left(1))
    with pytest.raises(NotFound, match="epoch 2"):
        publish(database, job, 2)
    with database.customer(job.customer_id) as session:
        session.execute(text("UPDATE job_checkpoints SET artifact = 'other'"))
    with pytest.raises(Damaged):
        publish(database, job, 1)
    with database.customer(job.customer_id) as session:
        assert session.scalar(text("SELECT count(*) FROM prompt_set_versions")) == 0


def test_another_customer_finds_no_checkpoint(database: Database, job: Job) -> None:
    keep(database, job, left(1))
    with database.system() as session:
        other = customers.create(session, "other").id
    with pytest.raises(NotFound), database.customer(other) as session:
        checkpoints.get(session, job.id, 1)


# --- what a job goes on from ---


def test_the_last_two_checkpoints_to_go_on_from_are_kept_and_a_lost_one_is_told(database: Database, job: Job) -> None:
    fence = jobs.fence_of(job)

    def resumable() -> list[str]:
        with database.customer(job.customer_id) as session:
            return [each["key"] for each in resuming.resumable(jobs.get(session, job.id, JobKind.TUNE))]

    def doomed() -> list[str]:
        with database.system() as session:
            return list(session.scalars(text("SELECT key FROM doomed_objects ORDER BY id")))

    assert resumable() == []
    for epoch in (1, 2, 2, 3, 3):  # one that is written again is there once
        with database.customer(job.customer_id) as session:
            resuming.keep_checkpoint(session, fence, {"key": f"key {epoch}", "sha256": "s", "bytes": 1, "epoch": epoch})
    assert (resumable(), doomed()) == (["key 3", "key 2"], ["key 1"])
    with database.customer(job.customer_id) as session:
        resuming.lose_checkpoint(session, fence, "key 3", "it is missing")
    assert (resumable(), doomed()) == (["key 2"], ["key 1", "key 3"])
    with database.customer(job.customer_id) as session:
        event = jobs.events_after(session, job.id, 0, 100)[-1]
        assert (event.type, event.data) == ("checkpoint_lost", {"epoch": 3, "reason": "it is missing"})
        resuming.lose_checkpoint(session, fence, "key 2", "it is missing")
    assert resumable() == []
