"""What endpoints are told of: in the transaction in which it happens, once, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from bpt_store import aliases, customers, datasets, ids, jobs, prompt_sets, webhook_events, webhooks
from bpt_store.db import Database
from bpt_store.errors import Damaged, LimitReached
from bpt_store.models import JobKind, WebhookEndpoint
from bpt_store.prompt_sets import Publication
from bpt_store.quotas import Limits
from bpt_store.webhook_events import EventType

PLENTY = Limits(datasets=9, images=9, stored_bytes=9)
MADE = datasets.Contents(
    "single-label",
    ["a"],
    {"shards": []},
    {"images": {"packed": 5}, "splits": {"train": 5}, "counts": {}, "verdict": "good to tune"},
)


@pytest.fixture
def endpoint(database: Database, customer_id: UUID) -> WebhookEndpoint:
    with database.customer(customer_id) as session:
        return webhooks.create(session, customer_id, "https://example.com/hook")


@pytest.fixture
def told(database: Database) -> Callable[[], list[tuple[str, dict[str, Any]]]]:
    """Every event, as often as it is to be delivered."""

    def look() -> list[tuple[str, dict[str, Any]]]:
        query = "SELECT type, data FROM webhook_events JOIN webhook_deliveries d ON d.event_id = webhook_events.id"
        with database.system() as session:
            return [(row.type, row.data) for row in session.execute(text(f"{query} ORDER BY d.id"))]

    return look


def queued(database: Database, customer_id: UUID, kind: JobKind) -> UUID:
    with database.customer(customer_id) as session:
        return jobs.create(session, customer_id, kind, dataset_id=uuid4(), dataset_version=1, payload={}).id


def claimed(database: Database, kind: JobKind) -> jobs.Fence:
    with database.system() as session:
        job = jobs.claim(session, kind, "w", 30)
        assert job is not None
        return jobs.fence_of(job)


@pytest.mark.parametrize(
    ("kind", "resource"), [(JobKind.TUNE, "tuning_job"), (JobKind.BATCH_PREDICT, "batch_prediction")]
)
@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_each_end_of_a_job_is_told_once(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any, kind: JobKind, resource: str, end: str
) -> None:
    job_id = queued(database, customer_id, kind)
    fence = claimed(database, kind)
    with database.customer(customer_id) as session:
        if end == "succeeded":
            jobs.succeed(session, fence, {})
        elif end == "failed":
            jobs.fail(session, fence, "code", "detail")
        else:
            jobs.cancel(session, job_id, kind)
    if end == "cancelled":
        assert told() == [], "it is still being wound down"
        with database.customer(customer_id) as session:
            jobs.give_back(session, fence, "stopping")
    assert told() == [(f"{resource}.{end}", {"id": ids.public(ids.JOB, job_id), "state": end})]


def test_a_pause_is_told_whether_the_job_waited_or_ran(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    job_id = queued(database, customer_id, JobKind.TUNE)
    paused = ("tuning_job.paused", {"id": ids.public(ids.JOB, job_id), "state": "paused"})
    with database.customer(customer_id) as session:
        jobs.pause(session, job_id)
        jobs.pause(session, job_id)
    assert told() == [paused]
    with database.customer(customer_id) as session:
        jobs.resume(session, job_id)
    fence = claimed(database, JobKind.TUNE)
    with database.customer(customer_id) as session:
        jobs.pause(session, job_id)
    assert told() == [paused]
    with database.customer(customer_id) as session:
        jobs.give_back(session, fence, "stopping")
    assert told() == [paused] * 2


def test_a_job_that_the_sweep_gives_up_is_told_of(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    job_id = queued(database, customer_id, JobKind.TUNE)
    claimed(database, JobKind.TUNE)
    with database.system() as session:
        session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 second'"))
        jobs.requeue_expired(session, max_failures=1, backoff_seconds=0)
    assert told() == [("tuning_job.failed", {"id": ids.public(ids.JOB, job_id), "state": "failed"})]


def test_a_version_of_a_dataset_is_told_of_when_it_is_ready_and_when_it_failed(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    with database.customer(customer_id) as session:
        dataset, _ = datasets.create(session, customer_id, "d", {}, {"parts": []})
    fence = claimed(database, JobKind.INGEST)
    with database.customer(customer_id) as session:
        jobs.succeed(session, fence, {})
        datasets.become_ready(session, dataset.id, 1, MADE, PLENTY)
        datasets.add_version(session, dataset.id, changes={"remove": []})
    fence = claimed(database, JobKind.INGEST)
    with database.customer(customer_id) as session:
        jobs.fail(session, fence, "image_corrupt", "no")
    name = ids.public(ids.DATASET, dataset.id)
    assert told() == [
        ("dataset.ready", {"id": name, "version": 1, "state": "ready"}),
        ("dataset.failed", {"id": name, "version": 2, "state": "failed"}),
    ]


def test_versions_and_moves_of_aliases_are_told_of(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    publication = Publication(b"artifact", "backbone", "fingerprint", ["a", "b"], {}, 1, {})
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        for _ in range(2):
            prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)
        for version in (1, 2, 2):
            aliases.move(session, prompt_set.id, "production", version, actor="key")
        aliases.rollback(session, prompt_set.id, "production", actor="key")
        aliases.remove(session, prompt_set.id, "production", actor="key")
    named = {"id": ids.public(ids.PROMPT_SET, prompt_set.id), "name": "birds"}
    moves = [(None, 1), (1, 2), (2, 1), (1, None)]
    assert told() == [
        *(("prompt_set.version_published", {**named, "version": version}) for version in (1, 2)),
        *(("prompt_set.alias_moved", {**named, "alias": "production", "from": a, "to": b}) for a, b in moves),
    ]


def test_a_damaged_version_is_told_of_once(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    publication = Publication(b"artifact", "backbone", "fingerprint", ["a", "b"], {}, 1, {})
    with database.customer(customer_id) as session:
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        prompt_sets.publish(session, prompt_set.id, publication, job_id=uuid4(), dataset_id=None)
        session.execute(text("UPDATE prompt_set_versions SET artifact = 'damaged'"))
    for _ in range(2):
        with pytest.raises(Damaged), database.customer(customer_id) as session:
            prompt_sets.artifact(session, prompt_sets.resolve(session, "birds")[1])
    named = {"id": ids.public(ids.PROMPT_SET, prompt_set.id), "name": "birds", "version": 1}
    assert told() == [(f"prompt_set.version_{what}", named) for what in ("published", "quarantined")]


def test_what_is_rolled_back_was_never_told(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    job_id = queued(database, customer_id, JobKind.TUNE)
    with database.customer(customer_id) as session:
        jobs.cancel(session, job_id, JobKind.TUNE)
        session.rollback()
    assert told() == []


def test_a_quota_that_is_reached_is_told_once_a_day_for_each_kind_although_the_request_is_refused(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    for limits in (Limits(0, 9, 9), Limits(0, 9, 9)):
        with pytest.raises(LimitReached), database.customer(customer_id) as session:
            datasets.create(session, customer_id, "d", {}, {"parts": []}, limits=limits)
    assert told() == [("quota.reached", {"quota": "datasets"})]
    with database.system() as session:
        session.execute(text("UPDATE webhook_events SET once = once || ' long ago'"))
    with pytest.raises(LimitReached), database.customer(customer_id) as session:
        datasets.create(session, customer_id, "d", {}, {"parts": []}, limits=Limits(0, 9, 9))
    assert len(told()) == 2


def test_an_endpoint_is_told_of_the_events_it_wishes_to_know_of(database: Database, customer_id: UUID) -> None:
    with database.customer(customer_id) as session:
        url = "https://example.com"
        all_of_them = webhooks.create(session, customer_id, url).id
        these = [EventType.DATASET_FAILED, EventType.TUNING_JOB_FAILED]
        some = webhooks.create(session, customer_id, url, these).id
        webhooks.create(session, customer_id, url, [EventType.DATASET_READY])
        webhook_events.emit(session, customer_id, EventType.DATASET_FAILED, {})
        rows = session.execute(text("SELECT endpoint_id, event_id FROM webhook_deliveries")).all()
    assert {row.endpoint_id for row in rows} == {all_of_them, some}
    assert len({row.event_id for row in rows}) == 1


def test_who_has_no_endpoint_leaves_no_event_and_is_told_of_nobody_elses(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    with database.system() as session:
        other = customers.create(session, "other").id
        webhook_events.emit(session, other, EventType.DATASET_READY, {"id": "ds_1"})
        assert session.scalar(text("SELECT count(*) FROM webhook_events")) == 0
        webhook_events.emit(session, customer_id, EventType.DATASET_READY, {"id": "ds_2"})
    assert told() == [("dataset.ready", {"id": "ds_2"})]


def test_a_disabled_endpoint_is_told_of_nothing(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    with database.customer(customer_id) as session:
        session.execute(text("UPDATE webhook_endpoints SET disabled_at = now()"))
        webhook_events.emit(session, customer_id, EventType.DATASET_READY, {})
    assert told() == []


def test_an_endpoint_that_is_being_deleted_does_not_take_the_change_along(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    import threading

    job_id = queued(database, customer_id, JobKind.TUNE)

    def cancel() -> None:
        with database.customer(customer_id) as session:
            jobs.cancel(session, job_id, JobKind.TUNE)

    cancelling = threading.Thread(target=cancel)
    with database.customer(customer_id) as session:
        webhooks.delete(session, endpoint.id)
        cancelling.start()
        cancelling.join(0.3)
        assert cancelling.is_alive(), "it waits for what becomes of the endpoint"
    cancelling.join()
    with database.customer(customer_id) as session:
        assert jobs.get(session, job_id, JobKind.TUNE).state == "cancelled"
    assert told() == []


def test_old_events_are_forgotten_with_their_deliveries(
    database: Database, customer_id: UUID, endpoint: WebhookEndpoint, told: Any
) -> None:
    with database.customer(customer_id) as session:
        for number in (1, 2):
            webhook_events.emit(session, customer_id, EventType.DATASET_READY, {"id": number})
        session.execute(
            text("UPDATE webhook_events SET created_at = now() - interval '8 days' WHERE data @> '{\"id\": 1}'")
        )
    with database.system() as session:
        assert webhook_events.forget_old(session, 7) == 1
        assert webhook_events.forget_old(session, 7) == 0
    assert told() == [("dataset.ready", {"id": 2})]
