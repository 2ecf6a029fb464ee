"""An artifact as a request's body: read whole and looked at before a transaction begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.deps import ServicesDep, require
from api.idempotency import OnceDep
from api.plans import offered
from api.problems import Problem
from api.receiving import Allowance, AnnouncedDep, Body
from bpt_core import catalog, inspection
from bpt_core.catalog import BackboneSpec
from bpt_core.inspection import Contents
from bpt_store.customers import Identity, Scope
from bpt_store.prompt_sets import Publication

SAFETENSORS, OCTETS = "application/vnd.safetensors", "application/octet-stream"
CODES = (
    *("payload_too_large", "request_timeout", "body_unreadable", "checksum_mismatch", "unsupported_media_type"),
    *("artifact_format_unsupported", "artifact_corrupt", "artifact_schema", "artifact_non_finite"),
    *("backbone_unknown", "backbone_noncommercial"),
)
REQUEST_BODY = {
    "required": True,
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (SAFETENSORS, OCTETS)},
}


@dataclass(frozen=True)
class Artifact:
    """One that can be served here."""

    data: bytes
    contents: Contents
    spec: BackboneSpec

    def publication(self) -> Publication:
        """What it tells of how it was learned: neither hyperparameters nor seed nor metrics are in an artifact."""
        metadata, method = self.contents.metadata, self.contents.method
        known = {name: method[name] for name in ("depth", "prompts", "rank")}
        return Publication(
            artifact=self.data,
            backbone=self.spec.name,
            backbone_fingerprint=metadata["backbone_fingerprint"],
            class_names=metadata["class_names"],
            recipe={"method": method["type"], **known, "pooling": metadata["pooling"]},
            parameters=self.contents.parameters(self.spec),
            metrics={},
        )


async def _whole(
    request: Request,
    services: ServicesDep,
    announced: AnnouncedDep,
    identity: Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))],
    _: OnceDep,
) -> bytes:
    """Once it is known who asks. Where there is an Idempotency-Key, `once` has read the body before."""
    if announced.media_type not in (SAFETENSORS, OCTETS):
        detail = f"send {SAFETENSORS}, not {announced.media_type or 'nothing'}"
        raise Problem("unsupported_media_type", detail)
    settings = services.settings
    announced.refuse_over(settings.artifact_limit_bytes)
    allowance = Allowance(request, services, identity)
    await allowance.cover(announced.content_length or 0)
    body = Body(
        request,
        limit_bytes=settings.artifact_limit_bytes,
        stall_seconds=settings.upload_stall_seconds,
        expected=announced.sha256(),
        on_growth=allowance.cover,
    )
    return await body.whole()


def _artifact(services: ServicesDep, data: Annotated[bytes, Depends(_whole)]) -> Artifact:
    """ArtifactError, BackboneError, Problem `backbone_noncommercial`."""
    contents = inspection.inspect(data)
    spec = offered(contents.metadata["backbone"], services.settings)
    contents.check_fits(spec, catalog.known_fingerprint(services.settings.weights_directory, spec))
    return Artifact(data, contents, spec)


ArtifactDep = Annotated[Artifact, Depends(_artifact)]
