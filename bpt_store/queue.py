"""The doorbell. A message says "there is work of this kind" and nothing more; the truth is in the jobs table.

It is acknowledged early and may be lost or doubled: the sweep rings again, and a second claim finds nothing.
"""

from __future__ import annotations

import logging

from celery import Celery
from kombu import Queue

from bpt_store.models import JobKind
from bpt_store.settings import Settings

logger = logging.getLogger(__name__)

# A broker that is down answers in 0.01 s, one that hangs in 1 s; the defaults would hang for 25 s and more.
_PUBLISH_RETRY = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def task_name(kind: JobKind) -> str:
    return f"bpt.{kind}"


def celery_app(settings: Settings) -> Celery:
    """The Celery application that API, workers and sweep share."""
    app = Celery("bpt", broker=settings.redis_url.get_secret_value())
    app.conf.update(
        broker_transport_options={"socket_connect_timeout": 0.5, "socket_timeout": 1},
        broker_connection_retry_on_startup=True,
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_queues=[Queue(kind.value) for kind in JobKind],
        task_routes={task_name(kind): {"queue": kind.value} for kind in JobKind},
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
    )
    return app


class Doorbell:
    """Rings for a kind of work, after the commit. A broker that is away costs a log line, never a job."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def ring(self, kind: JobKind) -> bool:
        """-> whether the broker took the message."""
        try:
            self._app.send_task(task_name(kind), retry=True, retry_policy=_PUBLISH_RETRY)
        except Exception as error:  # kombu and redis raise many kinds
            logger.warning("doorbell not rung", extra={"kind": str(kind), "reason": str(error)})
            return False
        return True
