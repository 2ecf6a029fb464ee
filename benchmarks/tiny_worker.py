"""`celery --app benchmarks.tiny_worker`: the workers of the service, but for what trains, and for their clocks, which
are SKEW_SECONDS fast."""

from __future__ import annotations

import os
import time

SKEW_SECONDS = float(os.environ.get("SKEW_SECONDS", "0"))
_true_time = time.time
time.time = lambda: _true_time() + SKEW_SECONDS  # before anybody takes the function itself

from worker.app import app  # noqa: E402
from worker.tune import Tune  # noqa: E402

__all__ = ["app"]

Tune.child = "benchmarks.tiny_trainer"
