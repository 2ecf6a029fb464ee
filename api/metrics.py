"""What /metrics shows: requests and predictions as this process saw them, queues as the database has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from bpt_store import quarantine, scheduling
from bpt_store.db import Database

if TYPE_CHECKING:
    # The role `api` shows no predictions and never loads torch.
    from bpt_core.engine import Answer, Engine

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


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
                depths = scheduling.depths(session)
        except SQLAlchemyError:
            return  # a scrape must not fail because the database is away
        for depth in depths:
            count.add_metric([depth.kind, depth.state], depth.jobs)
            if depth.oldest_wait_seconds is not None:
                wait.add_metric([depth.kind], depth.oldest_wait_seconds)
        yield from (count, wait)


class QuarantineMetrics(Collector):
    """As QueueMetrics."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with self._database.system() as session:
                count = quarantine.count(session)
        except SQLAlchemyError:
            return
        yield GaugeMetricFamily("bpt_quarantined_versions", "versions whose stored artifact is damaged", value=count)


class PredictionMetrics:
    """Predictions per prompt set and in sum. A row is an image under a prompt set, a batch what the device took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("customer", "prompt_set")
        self.requests = Counter(
            "bpt_predict_requests_total", "requests that a prompt set was applied in", labels, registry=registry
        )
        self.images = Counter("bpt_predict_images_total", "images by outcome", (*labels, "outcome"), registry=registry)
        self.stages = Histogram(
            "bpt_predict_seconds", "time of requests in a stage", ("stage",), registry=registry, buckets=_SECONDS
        )
        self.batch_rows = Histogram("bpt_predict_batch_rows", "rows in a batch", registry=registry, buckets=_ROWS)
        self.batch_seconds = Histogram(
            "bpt_predict_batch_seconds", "time of a batch on the device", registry=registry, buckets=_SECONDS
        )

    def saw_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def saw_answer(self, customer: str, prompt_sets: list[list[str]], answer: Answer) -> None:
        """`prompt_sets` are the names of those applied to each image."""
        for name in {name for names in prompt_sets for name in names}:
            self.requests.labels(customer, name).inc()
        for names, found in zip(prompt_sets, answer.images, strict=True):
            for name in names:
                self.images.labels(customer, name, "predicted" if isinstance(found, list) else found.code).inc()
        self.stages.labels("queue").observe(answer.queue_seconds)
        self.stages.labels("decode").observe(answer.decode_seconds)
        self.stages.labels("compute").observe(answer.compute_seconds)


class ResidencyMetrics(Collector):
    """What is on the device, read at every scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("bpt_predict_waiting_rows", "rows that wait or are computed")
        waiting.add_metric([], self._engine.waiting_rows)
        yield waiting
        resident = GaugeMetricFamily("bpt_resident_prompt_sets", "prompt sets on the device", labels=["backbone"])
        used = GaugeMetricFamily("bpt_resident_pages", "pages of the device's pool", labels=["backbone", "state"])
        lookups = CounterMetricFamily(
            "bpt_resident_lookups", "prompt sets found on the device (hit) or not (miss)", labels=["backbone", "found"]
        )
        moves = CounterMetricFamily(
            "bpt_resident_moves", "prompt sets that made room, or came back from the host", labels=["backbone", "move"]
        )
        for name, predictor in self._engine.predictors.items():
            found = predictor.residency.occupancy()
            resident.add_metric([name], found.resident)
            used.add_metric([name, "free"], found.pages_free)
            used.add_metric([name, "used"], found.pages - found.pages_free)
            lookups.add_metric([name, "hit"], found.hits)
            lookups.add_metric([name, "miss"], found.misses)
            moves.add_metric([name, "eviction"], found.evictions)
            moves.add_metric([name, "reload"], found.reloads)
        yield from (resident, used, lookups, moves)
