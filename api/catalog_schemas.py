"""Backbones and methods there are to choose from, over the wire."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field

from bpt_core.catalog import BackboneSpec
from bpt_core.methods import Depth, Method, Start


class Backbone(BaseModel):
    name: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    pooling: str
    licence: str
    non_commercial: bool
    available: bool = Field(description="false: its licence forbids commercial use and this service has not allowed it")

    @classmethod
    def of(cls, spec: BackboneSpec, *, available: bool) -> Self:
        return cls(
            name=spec.name,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            embed_dim=spec.embed_dim,
            depth=spec.depth,
            pooling=spec.pooling,
            licence=spec.licence,
            non_commercial=spec.non_commercial,
            available=available,
        )


class MethodInfo(BaseModel):
    type: Method
    depths: list[Depth]
    starts: list[Start] = Field(description="where trained numbers may start; the first is the default of shallow")
    defaults: dict[str, Any]
