"""Whether the process lives, whether it can work, and what it has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from api.deps import ServicesDep
from api.problems import Problem

if TYPE_CHECKING:
    from api.engine import Serving

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="The process lives")
async def get_health() -> Health:
    return Health()


@router.get(
    "/readyz",
    summary="The process can work: the database answers, backbones are loaded",
    responses={503: {"description": "the database does not answer, or the backbones are not loaded yet"}},
)
def get_readiness(request: Request, services: ServicesDep) -> Health:
    with services.database.system() as session:
        session.execute(text("SELECT 1"))
    serving: Serving | None = request.app.state.serving
    if serving is not None and not serving.is_ready:
        raise Problem("not_ready", "the backbones are not loaded yet")
    return Health()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def get_metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
