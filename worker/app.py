"""The Celery application of the workers: `celery -A worker.app worker -Q tune` (ingest, batch_predict), concurrency 1.

On SIGTERM Celery waits for the running task without limit; the flag below makes that task give its job back at once.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import billiard.pool
from celery.signals import setup_logging, worker_ready, worker_shutting_down

from bpt_store import logs
from bpt_store.db import Database
from bpt_store.models import JobKind
from bpt_store.queue import celery_app
from bpt_store.settings import load_settings
from worker import watchdog

app = celery_app(load_settings())
app.conf.imports = ("worker.tasks",)

# A child that ends waits until its parent has read what it last said; a parent that ends at the same moment never does.
# Nobody here wants that result, and 30 s (the default, in steps of 0.1 s) is more than deployments grant for an end.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10

# Made before Celery forks: the parent hears the signal, the child that runs the task looks at the flag. Without a lock,
# which a child that is killed while it looks would keep for ever.
stopping = multiprocessing.RawValue("b", 0)
# And the other way round: the child hears doorbells, the parent looks whether it does.
ears = watchdog.Ears()


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    stopping.value = 1


@worker_ready.connect
def _watch(sender: Any, **_: Any) -> None:
    settings = load_settings()
    kinds = [JobKind(name) for name in sender.app.amqp.queues.consume_from]

    def end_when_deaf() -> None:
        if watchdog.wait_until_deaf(ears, Database(settings), kinds, settings.deaf_seconds, threading.Event()):
            os._exit(1)  # an orderly end would wait for the broker

    threading.Thread(target=end_when_deaf, name="watchdog", daemon=True).start()


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(load_settings().log_level)
