"""The sweep's rounds, one at a time."""

from __future__ import annotations

from uuid import UUID, uuid4

import redis
from sqlalchemy import text

from bpt_store import idempotency, jobs, webhook_events, webhooks
from bpt_store.db import Database
from bpt_store.idempotency import Reply, Sender
from bpt_store.models import JobKind
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings
from worker.context import Worker
from worker.sweep import sweep_once


def test_answers_are_forgotten_when_their_time_is_over(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    sender = Sender.customer(customer_id)
    with database.customer(customer_id) as session:
        for key in ("old", "young"):
            idempotency.keep(session, sender, key, b"request", Reply(201, b"{}"), 24)
        session.execute(
            text("UPDATE idempotency_records SET expires_at = now() WHERE key_sha256 = sha256(:key)"), {"key": b"old"}
        )
    worker = Worker.create(settings)
    with celery_app(settings) as app:
        sweep_once(worker, Doorbell(app))
    worker.database.close()
    with database.customer(customer_id) as session:
        assert idempotency.find(session, sender, "young") is not None
        assert session.scalar(text("SELECT count(*) FROM idempotency_records")) == 1


def test_a_job_whose_worker_fell_silent_waits_again_and_is_rung_for(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    with database.customer(customer_id) as session:
        jobs.create(session, customer_id, JobKind.TUNE, dataset_id=uuid4(), dataset_version=1, payload={})
    with database.system() as session:
        assert jobs.claim(session, JobKind.TUNE, "a worker", lease_seconds=0) is not None
    impatient = settings.model_copy(update={"ring_after_seconds": 1e-6, "retry_backoff_seconds": 0})
    worker = Worker.create(impatient)
    with celery_app(settings) as app, redis.Redis.from_url(as_redis(settings)) as broker:
        rung = broker.llen(JobKind.TUNE)
        sweep_once(worker, Doorbell(app))  # which takes it back
        sweep_once(worker, Doorbell(app))  # and finds that it waits
        assert broker.llen(JobKind.TUNE) > rung
    worker.database.close()
    with database.system() as session:
        again = jobs.claim(session, JobKind.TUNE, "another", lease_seconds=30)
    assert again is not None
    assert (again.attempt, again.failures) == (2, 1)


def as_redis(settings: Settings) -> str:
    return settings.redis_url.get_secret_value().replace("redis+socket", "unix")


def test_webhook_events_are_forgotten_when_their_time_is_over(
    settings: Settings, database: Database, customer_id: UUID
) -> None:
    with database.customer(customer_id) as session:
        webhooks.create(session, customer_id, "https://example.com")
        for _ in range(2):
            webhook_events.emit(session, customer_id, webhook_events.EventType.DATASET_READY, {})
        first = "SELECT id FROM webhook_events ORDER BY id LIMIT 1"
        old = f"UPDATE webhook_events SET created_at = now() - interval '8 days' WHERE id = ({first})"
        session.execute(text(old))
    worker = Worker.create(settings.model_copy(update={"webhook_days": 7}))
    with celery_app(settings) as app:
        sweep_once(worker, Doorbell(app))
    worker.database.close()
    with database.customer(customer_id) as session:
        assert session.scalar(text("SELECT count(*) FROM webhook_deliveries")) == 1
