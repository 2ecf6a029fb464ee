"""Prompt sets, their versions, and the artifact of a version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import select

from api import schemas
from api.deps import After, Limit, PromptsReadSession
from api.problems import responses
from bpt_store import aliases, ids, models, prompt_sets
from bpt_store.errors import NotFound
from bpt_store.paging import page

router = APIRouter(prefix="/v1/prompt-sets", tags=["prompt-sets"])

VersionNumber = Annotated[int, Path(ge=1, lt=2**31)]


@router.get("", summary="List prompt sets", responses=responses("not_found"))
def list_prompt_sets(
    session: PromptsReadSession, limit: Limit = 20, after: After = None
) -> schemas.Page[schemas.PromptSet]:
    cursor = ids.parse(ids.PROMPT_SET, after) if after else None
    rows, has_more = page(session, select(models.PromptSet), models.PromptSet.id, cursor, limit)
    shown = [row.id for row in rows]
    newest, named = prompt_sets.newest_versions(session, shown), aliases.versions(session, shown)
    data = [schemas.PromptSet.of(row, newest.get(row.id), named.get(row.id, {})) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{name}", summary="Show a prompt set", responses=responses("not_found"))
def get_prompt_set(name: str, session: PromptsReadSession) -> schemas.PromptSet:
    row = prompt_sets.get(session, name)
    newest, named = prompt_sets.newest_versions(session, [row.id]), aliases.versions(session, [row.id])
    return schemas.PromptSet.of(row, newest.get(row.id), named.get(row.id, {}))


@router.get("/{name}/versions", summary="List the versions of a prompt set", responses=responses("not_found"))
def list_prompt_set_versions(
    name: str, session: PromptsReadSession, limit: Limit = 20, after: After = None
) -> schemas.Page[schemas.PromptSetVersion]:
    prompt_set = prompt_sets.get(session, name)
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 10):
        raise NotFound(f"there is no version {after!r}")
    query = select(models.PromptSetVersion).where(models.PromptSetVersion.prompt_set_id == prompt_set.id)
    rows, has_more = page(session, query, models.PromptSetVersion.version, int(after) if after else None, limit)
    data = [schemas.PromptSetVersion.of(name, row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=str(data[-1].version) if has_more else None)


@router.get("/{name}/versions/{version}", summary="Show a version", responses=responses("not_found"))
def get_prompt_set_version(name: str, version: VersionNumber, session: PromptsReadSession) -> schemas.PromptSetVersion:
    prompt_set, row = prompt_sets.resolve(session, f"{name}:{version}")
    return schemas.PromptSetVersion.of(prompt_set.name, row)


@router.get(
    "/{name}/versions/{version}/artifact",
    summary="Download the artifact of a version: one safetensors file",
    response_class=Response,
    responses={
        **responses("not_found", "artifact_integrity"),
        200: {
            "description": "the artifact; its sha256 is the ETag",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
def download_artifact(name: str, version: VersionNumber, session: PromptsReadSession) -> Response:
    _, row = prompt_sets.resolve(session, f"{name}:{version}")
    data = prompt_sets.artifact(session, row)
    return Response(
        data,
        media_type="application/octet-stream",
        headers={
            "ETag": f'"{row.artifact_sha256}"',
            "Content-Disposition": f'attachment; filename="{name}-{version}.safetensors"',
        },
    )
