"""Whether the process lives, whether it can work, and what it has seen."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from api.deps import ServicesDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="The process lives")
async def get_health() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="The process can work: the database answers",
    responses={503: {"description": "the database does not answer"}},
)
def get_readiness(services: ServicesDep) -> Health:
    with services.database.system() as session:
        session.execute(text("SELECT 1"))
    return Health()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def get_metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
