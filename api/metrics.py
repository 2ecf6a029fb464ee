"""What /metrics shows: requests as this process saw them, queues as the database has them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from bpt_store import jobs
from bpt_store.db import Database


class RequestMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.requests = Counter("bpt_http_requests_total", "HTTP requests", labels, registry=registry)
        self.seconds = Histogram("bpt_http_request_seconds", "time to the reply's end", labels[:2], registry=registry)

    def saw(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)


class QueueMetrics(Collector):
    """Read at every scrape, so that any API process shows the whole service."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        count = GaugeMetricFamily("bpt_jobs", "unfinished jobs", labels=["kind", "state"])
        wait = GaugeMetricFamily("bpt_oldest_wait_seconds", "age of the oldest queued job", labels=["kind"])
        try:
            with self._database.system() as session:
                depths = jobs.depths(session)
        except SQLAlchemyError:
            return  # a scrape must not fail because the database is away
        for depth in depths:
            count.add_metric([depth.kind, depth.state], depth.jobs)
            if depth.oldest_wait_seconds is not None:
                wait.add_metric([depth.kind], depth.oldest_wait_seconds)
        yield from (count, wait)
