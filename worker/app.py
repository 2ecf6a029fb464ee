"""The Celery application of the workers: `celery -A worker.app worker -Q tune` (ingest, batch_predict), concurrency 1.

On SIGTERM Celery waits for the running task without limit; the flag below makes that task give its job back at once.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

from celery.signals import setup_logging, worker_shutting_down

from bpt_store import logs
from bpt_store.queue import celery_app
from bpt_store.settings import load_settings

app = celery_app(load_settings())
app.conf.imports = ("worker.tasks",)

# Made before Celery forks: the parent hears the signal, the child that runs the task looks at the flag.
stopping = multiprocessing.Event()


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    stopping.set()


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(load_settings().log_level)
