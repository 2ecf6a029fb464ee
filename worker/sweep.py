"""`python -m worker.sweep`: the loop that mends what faults left. Any number may run, at any time."""

from __future__ import annotations

import logging
import signal
import threading
import time

from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError

from bpt_store import idempotency, jobs, logs, scheduling, uploads, usage, webhook_events
from bpt_store.backup_files import LOCK as BACKUP_LOCK
from bpt_store.models import DoomedObject, JobKind
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import load_settings
from worker.context import Worker
from worker.orphans import keep_deleting

logger = logging.getLogger(__name__)

DOOMED_PER_ROUND = 100
SAMPLED_PER_ROUND = 100
SAMPLING_SECONDS = 300.0  # between two looks for customers without today's sample: each reads all of them


def sweep_once(worker: Worker, doorbell: Doorbell) -> None:
    """Requeue what lost its lease, forget uploads nobody finishes, answers and webhook events of long ago and
    checkpoints of jobs nobody tries again, ring for what waits, delete doomed objects.
    """
    settings = worker.settings
    with worker.database.system() as session:
        if not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext("bpt sweep")))):
            return  # another one is at it
        requeued = jobs.requeue_expired(
            session,
            max_failures=settings.max_failures,
            backoff_seconds=settings.retry_backoff_seconds,
            lease_seconds=settings.lease_seconds,
        )
        forgotten = uploads.forget_expired(session)
        idempotency.forget_expired(session)
        webhook_events.forget_old(session, settings.webhook_days)
        given_up = jobs.give_up_checkpoints(session, settings.failed_checkpoint_hours)
        waiting = scheduling.kinds_waiting(session, settings.ring_after_seconds)
    if requeued or forgotten or given_up:
        facts = {"requeued": requeued, "uploads_forgotten": forgotten, "checkpoints_given_up": given_up}
        logger.info("swept", extra=facts)
    for kind in waiting:
        doorbell.ring(kind)
    _delete_doomed(worker)


def sample_usage(worker: Worker) -> bool:
    """Once a day for each customer, in a transaction for each -> whether some may be left."""
    with worker.database.system() as session:
        unsampled = usage.unsampled(session, SAMPLED_PER_ROUND)
    for customer_id in unsampled:
        with worker.database.customer(customer_id) as session:
            usage.sample(session, customer_id)
    return len(unsampled) == SAMPLED_PER_ROUND


def _delete_doomed(worker: Worker) -> None:
    with worker.database.system() as session:
        # A backup copies what the rows of its snapshot refer to, also what has been given up since; until it has
        # ended, doomed objects stay and their rows with them.
        if not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext(BACKUP_LOCK)))):
            return
        doomed = session.scalars(
            select(DoomedObject)
            .where(DoomedObject.not_before <= func.now())
            .order_by(DoomedObject.not_before, DoomedObject.id)
            .limit(DOOMED_PER_ROUND)
            .with_for_update(skip_locked=True)
        ).all()
        for one in doomed:
            worker.objects.delete(one.key)
        session.execute(delete(DoomedObject).where(DoomedObject.id.in_([one.id for one in doomed])))


def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    worker = Worker.create(settings)
    doorbell = Doorbell(celery_app(settings))
    # Whatever waited while nothing ran is rung for at once.
    for kind in JobKind:
        doorbell.ring(kind)
    threading.Thread(target=keep_deleting, args=(worker, ended), name="orphans", daemon=True).start()
    sampling_due = time.monotonic()
    while not ended.wait(settings.sweep_seconds):
        try:
            sweep_once(worker, doorbell)
            if time.monotonic() >= sampling_due and not sample_usage(worker):
                sampling_due = time.monotonic() + SAMPLING_SECONDS
        except (SQLAlchemyError, OSError) as error:
            logger.warning("sweep failed", extra={"reason": str(error)})


if __name__ == "__main__":
    main()
