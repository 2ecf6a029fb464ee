"""The application: `uvicorn --factory api.app:create_app`. Its role comes from the settings."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry

from api import problems
from api.by_resource import ByResource
from api.deps import Services
from api.indexes import Indexes
from api.inference_schemas import InferRequest
from api.metrics import QuarantineMetrics, QueueMetrics, RequestMetrics
from api.middleware import LimitBody, Observe, TellBrowsers
from api.prediction_schemas import PredictionCreate
from api.rate_limits import RateLimits, TellRateLimits
from api.routes import (
    administrators,
    aliases,
    audit_log,
    batch_predictions,
    catalog,
    checkpoints,
    comparisons,
    customers,
    dataset_items,
    dataset_versions,
    datasets,
    gates,
    health,
    inference_protocol,
    predictions,
    prompt_set_versions,
    prompt_sets,
    reproductions,
    tuning_jobs,
    uploads,
    usage,
    webhook_deliveries,
    webhook_endpoints,
)
from bpt_store import logs
from bpt_store.db import Database
from bpt_store.objects import Objects
from bpt_store.queue import Doorbell, celery_app
from bpt_store.settings import Role, Settings, load_settings

API_ROUTES = (
    *(administrators, customers, audit_log, usage, catalog, uploads, datasets, dataset_versions, dataset_items),
    *(tuning_jobs, checkpoints, prompt_sets, prompt_set_versions, reproductions, aliases, gates),
    *(batch_predictions, comparisons, webhook_endpoints, webhook_deliveries),
)
BODY_LIMIT_BYTES = 1 << 20
FORM_OVERHEAD_BYTES = 1 << 20
_IMPORTS_AN_ARTIFACT = re.compile(r"/v1/prompt-sets/[^/]+/versions(/[^/]+/artifact)?")
_BOUNDS_ITSELF = re.compile(r"/v1/(datasets|datasets/[^/]+/versions|uploads/[^/]+/parts/[^/]+)")

DESCRIPTION = """
One frozen Vision Transformer, a small prompt set per customer: upload a dataset, tune, predict.

Errors are RFC 9457 problem documents with a stable `code`. Every reply carries `X-Request-Id`.

A POST with an `Idempotency-Key` may be sent again after a connection broke: it is done once, and answered the same.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or load_settings()
    logs.configure(settings.log_level)
    app = FastAPI(
        title="bpt-service",
        version="1",
        description=DESCRIPTION,
        generate_unique_id_function=_operation_id,
        lifespan=_lifespan,
    )
    objects = Objects(settings.objects_url)
    registry = CollectorRegistry()
    services = Services(
        settings=settings,
        database=Database(settings),
        objects=objects,
        indexes=Indexes(objects),
        doorbell=Doorbell(celery_app(settings)),
        rate_limits=RateLimits(settings, registry),
    )
    for metrics in (QueueMetrics, QuarantineMetrics):
        registry.register(metrics(services.database))
    app.state.services, app.state.registry, app.state.serving = services, registry, None
    modules = [health, *(API_ROUTES if settings.role in (Role.API, Role.ALL) else ()), predictions, inference_protocol]
    for module in modules:
        app.include_router(module.router)
    app.router.routes.insert(0, ByResource(route for module in modules for route in module.router.routes))
    if settings.role in (Role.PREDICT, Role.ALL):
        # Only here, so that the role `api` never imports torch.
        from api.engine import Serving

        app.state.serving = Serving(settings, services.database, services.rate_limits, registry)
    problems.install(app, [PredictionCreate, InferRequest, *uploads.BODY_SCHEMAS])
    app.add_middleware(TellRateLimits)
    app.add_middleware(LimitBody, limit_of=partial(_body_limit, settings))
    app.add_middleware(Observe, metrics=RequestMetrics(registry))
    app.add_middleware(TellBrowsers)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.serving is not None:
        app.state.serving.begin()
    yield
    if app.state.serving is not None:
        app.state.serving.close()
    app.state.services.rate_limits.close()
    app.state.services.database.close()


def _body_limit(settings: Settings, path: str) -> int | None:
    if _BOUNDS_ITSELF.fullmatch(path):
        return None
    if path == "/v1/uploads":
        return uploads.JSON_LIMIT_BYTES
    if _IMPORTS_AN_ARTIFACT.fullmatch(path):
        return settings.artifact_limit_bytes
    if path == "/v1/predictions" or (path.startswith("/v2/") and path.endswith("/infer")):
        return settings.images_per_prediction * settings.image_limit_bytes + FORM_OVERHEAD_BYTES
    return BODY_LIMIT_BYTES


def _operation_id(route: APIRoute) -> str:
    """create_tuning_job -> createTuningJob: stable verbs, whatever the path."""
    return re.sub(r"_([a-z])", lambda match: match[1].upper(), route.name)
