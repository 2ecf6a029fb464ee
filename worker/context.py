"""What every piece of a worker needs, made once per process (after Celery's fork, never before)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.settings import Settings
from worker.starter import Starter


@dataclass(frozen=True)
class Worker:
    """`is_stopping` tells whether this worker was asked to end: it gives its job back and claims no other."""

    settings: Settings
    database: Database
    objects: Objects
    is_stopping: Callable[[], bool]
    name: str
    starters: dict[str, Starter] = field(default_factory=dict)  # by the module that they start

    @classmethod
    def create(cls, settings: Settings, is_stopping: Callable[[], bool] = lambda: False) -> Worker:
        return cls(
            settings=settings,
            database=Database(settings),
            objects=Objects(settings.objects_url),
            is_stopping=is_stopping,
            name=f"{socket.gethostname()}:{os.getpid()}",
        )
