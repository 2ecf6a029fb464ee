"""What a tuning job may choose from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from api.catalog_schemas import Backbone, MethodInfo
from api.deps import ServicesDep, require
from api.problems import responses
from api.schemas import Page
from api.turns import OneTurnRoute
from bpt_core.catalog import CATALOG
from bpt_core.methods import STARTS, Depth, Method
from bpt_core.recipe import DEFAULTS
from bpt_store.customers import Identity, Scope

router = APIRouter(prefix="/v1", route_class=OneTurnRoute)
Caller = Annotated[Identity, Depends(require(Scope.JOBS_READ))]


@router.get("/backbones", tags=["catalog"], summary="List the frozen backbones", responses=responses())
def list_backbones(services: ServicesDep, _caller: Caller) -> Page[Backbone]:
    allowed = services.settings.allow_noncommercial
    data = [Backbone.of(spec, available=allowed or not spec.non_commercial) for spec in CATALOG.values()]
    return Page(data=data, has_more=False, next_cursor=None)


@router.get("/methods", tags=["catalog"], summary="List the tuning methods", responses=responses())
def list_methods(_caller: Caller) -> Page[MethodInfo]:
    data = [
        MethodInfo(
            type=method,
            depths=list(Depth) if method.has_prompts else [],
            starts=list(STARTS[method]),
            defaults=dict(DEFAULTS[method]),
        )
        for method in Method
    ]
    return Page(data=data, has_more=False, next_cursor=None)
