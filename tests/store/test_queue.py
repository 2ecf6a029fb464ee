"""The doorbell: rung on a real Redis, and cheap when there is none."""

from __future__ import annotations

import socket
import time

import redis

from bpt_store.models import JobKind
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Settings


def with_broker(settings: Settings, url: str) -> Settings:
    return Settings.model_validate({**settings.model_dump(), "redis_url": url})


def test_a_ring_is_one_message_in_the_queue_of_its_kind(settings: Settings) -> None:
    broker = redis.Redis.from_url(settings.redis_url.get_secret_value().replace("redis+socket:", "unix:"))
    broker.flushall()
    with celery_app(settings) as app:
        assert Doorbell(app).ring(JobKind.TUNE)
    assert (broker.llen("tune"), broker.llen("ingest"), broker.llen("batch_predict")) == (1, 0, 0)
    broker.close()


def test_a_broker_that_is_down_costs_no_time_and_no_exception(settings: Settings) -> None:
    started = time.monotonic()
    with celery_app(with_broker(settings, "redis+socket:///nowhere/at/all.sock")) as app:
        assert not Doorbell(app).ring(JobKind.TUNE)
    assert time.monotonic() - started < 5


def test_a_broker_that_hangs_is_given_up(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        with celery_app(with_broker(settings, f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")) as app:
            assert not Doorbell(app).ring(JobKind.TUNE)
        assert time.monotonic() - started < 10
