"""Serving inside the API process: bpt_core's engine with this service's settings, prompt sets and metrics.

Only roles `predict` and `all` import this module; the role `api` stays free of torch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.deps import customer_of
from api.metering import Meter
from api.metrics import PredictionMetrics, ResidencyMetrics
from api.problems import Problem
from api.rate_limits import RateLimits
from bpt_core import artifact, catalog
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.compute import Precision, device_named
from bpt_core.engine import Answer, Engine, Input, Wanted
from bpt_core.errors import ArtifactError, BptError
from bpt_core.predict import Predictor
from bpt_store import prompt_sets, quarantine
from bpt_store.customers import Identity
from bpt_store.db import Database
from bpt_store.models import PromptSetVersion
from bpt_store.rate_limits import Limit
from bpt_store.settings import Settings

logger = logging.getLogger(__name__)

GPU_BATCH_ROWS = 64
CPU_BATCH_ROWS = 8  # larger ones leave the caches: ViT-S took 41 to 48 ms an image up to 16, and 63 ms at 64


class Serving:
    """Made once per process. `begin` loads what is to be ready before the first request."""

    def __init__(
        self, settings: Settings, database: Database, rate_limits: RateLimits, registry: CollectorRegistry
    ) -> None:
        self._settings, self._database, self._rate_limits = settings, database, rate_limits
        self.is_ready = False
        self.metrics = PredictionMetrics(registry)
        self._meter = Meter(database, settings.usage_write_seconds)
        self._device = device_named(settings.device)
        self._engine = Engine(
            self._make_predictor,
            batch_rows=settings.predict_batch_rows or (GPU_BATCH_ROWS if self._device != "cpu" else CPU_BATCH_ROWS),
            queue_rows=settings.predict_queue_rows,
            decode_threads=settings.predict_decode_threads,
            on_batch=self.metrics.saw_batch,
        )
        registry.register(ResidencyMetrics(self._engine))

    def begin(self) -> None:
        """In the background: /healthz answers at once, /readyz when it is done."""
        threading.Thread(target=self._warm, name="warm", daemon=True).start()
        self._meter.begin()

    def close(self) -> None:
        self._engine.close(self._settings.predict_seconds)
        self._meter.close()

    def wanted(self, customer_id: UUID, version: PromptSetVersion) -> Wanted:
        """A version to apply. Equal artifacts are equal content, so they share what is on the device."""
        return Wanted(version.artifact_sha256, version.backbone, partial(self._fetch, customer_id, version))

    async def predict(
        self, request: Request, identity: Identity, inputs: Sequence[Input], wanted: Sequence[Sequence[Wanted]]
    ) -> Answer:
        """Raises RateLimited, Problem `deadline_exceeded`, and what the engine does, which costs the caller nothing.

        One who leaves is not computed for.
        """
        rows = sum(len(each) for each in wanted)
        await run_in_threadpool(self._rate_limits.take, request, identity, Limit.IMAGES, rows)
        try:
            answer = await self._answer(request, customer_of(identity), inputs, wanted)
        except BptError:
            await run_in_threadpool(self._rate_limits.give_back, request, identity, Limit.IMAGES, rows)
            raise
        predicted = sum(len(found) for found in answer.images if isinstance(found, list))
        self._meter.count(customer_of(identity), predicted)
        return answer

    async def _answer(
        self, request: Request, customer_id: UUID, inputs: Sequence[Input], wanted: Sequence[Sequence[Wanted]]
    ) -> Answer:
        answer = asyncio.wrap_future(self._engine.submit(customer_id, inputs, wanted))
        leaving = asyncio.ensure_future(_leave(request))
        try:
            seconds = self._settings.predict_seconds
            either: set[asyncio.Future[Any]] = {answer, leaving}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if leaving.done():
                raise Problem("request_timeout", "the caller left")
            raise Problem("deadline_exceeded", f"there was no answer within {seconds:g} seconds")
        finally:
            leaving.cancel()
            answer.cancel()

    def _warm(self) -> None:
        try:
            for backbone in self._settings.predict_backbones.split():
                self._engine.predictor(backbone).warm()
        except BptError as error:
            logger.error("a backbone could not be loaded", extra={"code": error.code, "reason": str(error)})
        else:
            self.is_ready = True

    def _make_predictor(self, backbone: str) -> Predictor:
        settings = self._settings
        weights = catalog.local_weights(settings.weights_directory, backbone)
        return Predictor(
            load_backbone(backbone, weights=weights, device=self._device),
            precision=Precision(settings.predict_precision),
            device_bytes=settings.predict_device_bytes,
            # Without a device of its own the host's memory is the device's.
            host_bytes=0 if self._device == "cpu" else settings.predict_host_bytes,
        )

    def _fetch(self, customer_id: UUID, version: PromptSetVersion) -> PromptSet:
        with self._database.customer(customer_id) as session:
            data = prompt_sets.artifact(session, version)
            try:
                return artifact.from_bytes(data)
            except ArtifactError as error:
                if error.code == "artifact_schema":
                    raise  # another release may read it
                raise quarantine.unreadable(session, version, str(error)) from error


async def _leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
