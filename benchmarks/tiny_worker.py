"""`celery --app benchmarks.tiny_worker`: the workers of the service, but for what trains."""

from __future__ import annotations

from worker.app import app
from worker.tune import Tune

__all__ = ["app"]

Tune.child = "benchmarks.tiny_trainer"
