"""Deletes objects that no row refers to: what was stored by somebody who died before he could commit.

Whoever stores an object writes its row right afterwards, so that an old object without a row will not get one any more.
But for those of a dataset, which are named by their content: a version that is being made may store the same one again
and then refer to it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from obstore.exceptions import BaseError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from bpt_store import datasets, references
from bpt_store.backup_files import LOCK as BACKUP_LOCK
from bpt_store.command import connect
from worker.context import Worker

logger = logging.getLogger(__name__)

ROUND_SECONDS = 3600.0
MOST_PER_ROUND, AT_A_TIME = 1_000, 100  # deleting holds up backups and new versions
_OURS = re.compile(r"(?:uploads|datasets|jobs|batch-predictions)/[0-9a-f]{32}/.")
_OF_A_DATASET = re.compile(r"datasets/([0-9a-f]{32})/")


def delete_orphans(worker: Worker) -> int:
    """One round -> how many were deleted; none while another one is at it or a backup copies."""
    with connect(worker.settings.system_database_url) as connection:
        (taken,) = _one(connection, "SELECT pg_try_advisory_lock(hashtext('bpt orphans'))")
        if not taken:
            return 0
        settings = worker.settings
        seconds = max(settings.orphan_hours * 3600, settings.upload_expiry_seconds)
        # By the database's clock: a machine of which the clock is days ahead would take everything for old.
        (moment,) = _one(connection, "SELECT clock_timestamp() - make_interval(secs => %s)", seconds)
        orphans = references.unreferred(connection, _old(worker, moment), MOST_PER_ROUND)
        parts = (orphans[at : at + AT_A_TIME] for at in range(0, len(orphans), AT_A_TIME))
        return sum(_delete(worker, connection, part) for part in parts)


def keep_deleting(worker: Worker, ended: threading.Event) -> None:
    """A round now, and then one every hour. Beside the sweep, which must not wait until all objects are listed."""
    while True:
        try:
            if deleted := delete_orphans(worker):
                logger.info("orphans deleted", extra={"objects": deleted})
        except (BaseError, OSError, psycopg.Error, SQLAlchemyError) as error:
            logger.warning("orphans not swept", extra={"reason": str(error)})
        if ended.wait(ROUND_SECONDS):
            return


def _old(worker: Worker, moment: datetime) -> Iterator[str]:
    """Keys of the service, and of nobody else who may keep his objects in the same place."""
    for prefix in ("uploads/", "datasets/", "jobs/", "batch-predictions/"):
        yield from (key for key in worker.objects.keys_before(prefix, moment) if _OURS.match(key))


def _delete(worker: Worker, connection: psycopg.Connection[Any], orphans: Sequence[str]) -> int:
    with worker.database.system() as session:
        # As with doomed objects: until a backup has ended, what it may copy stays.
        if not session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext(BACKUP_LOCK)))):
            return 0
        owners = {key: UUID(found[1]) for key in orphans if (found := _OF_A_DATASET.match(key))}
        busy = datasets.in_the_making(session, set(owners.values()))
        idle = [key for key in orphans if owners.get(key) not in busy]
        # Once more: only now will no version be added to them.
        doomed = references.unreferred(connection, idle, len(idle))
        for key in doomed:
            worker.objects.delete(key)
        return len(doomed)


def _one(connection: psycopg.Connection[Any], query: str, *values: object) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    assert row is not None
    return row
