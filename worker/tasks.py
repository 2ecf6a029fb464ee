"""What a doorbell starts."""

from __future__ import annotations

from functools import cache

from bpt_store.models import JobKind
from bpt_store.queue import task_name
from bpt_store.settings import load_settings
from worker.app import app, ears, stopping
from worker.batch import BatchPredict
from worker.context import Worker
from worker.ingest import Ingest
from worker.supervisor import work
from worker.tune import Tune


@cache
def _worker() -> Worker:
    return Worker.create(load_settings(), lambda: bool(stopping.value))


@app.task(name=task_name(JobKind.INGEST))
def ingest() -> None:
    with ears.hearing():
        work(_worker(), JobKind.INGEST, Ingest())


@app.task(name=task_name(JobKind.TUNE))
def tune() -> None:
    with ears.hearing():
        work(_worker(), JobKind.TUNE, Tune())


@app.task(name=task_name(JobKind.BATCH_PREDICT))
def batch_predict() -> None:
    with ears.hearing():
        work(_worker(), JobKind.BATCH_PREDICT, BatchPredict())
