"""The versions of a prompt set: import, look, label, archive, delete, and the artifact of each, put back if need be."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.artifact_body import CODES, REQUEST_BODY, ArtifactDep
from api.conditions import ASK_AGAIN, NOT_MODIFIED, IfNoneMatch, is_known, unless_known
from api.deps import After, Limit, PromptsReadSession, PromptsWriteSession, customer_of, numbered, require
from api.idempotency import OnceRoute
from api.problems import responses
from api.prompt_set_schemas import LabelChange, MetadataFilter, PromptSetVersion, wanted
from api.schemas import Page
from bpt_core import inspection
from bpt_store import audit, ids, models, prompt_sets
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.paging import page
from bpt_store.prompt_sets import NAME_PATTERN

router = APIRouter(prefix="/v1/prompt-sets/{name}/versions", tags=["prompt-sets"], route_class=OnceRoute)

VersionNumber = Annotated[int, Path(ge=1, lt=2**31)]


@router.post(
    "",
    status_code=201,
    summary="Import an artifact, as it was downloaded, as the next version; the prompt set is made if it is not there",
    responses=responses("not_found", *CODES),
    openapi_extra={"requestBody": REQUEST_BODY},
)
def import_prompt_set_version(
    name: Annotated[str, Path(pattern=f"^{NAME_PATTERN}$")],
    identity: Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))],
    artifact: ArtifactDep,
    session: PromptsWriteSession,
    response: Response,
) -> PromptSetVersion:
    prompt_set = prompt_sets.get_or_create(session, customer_of(identity), name)
    version = prompt_sets.publish(session, prompt_set.id, artifact.publication(), job_id=None, dataset_id=None)
    audit.record(
        session,
        Action.SET_VERSION_IMPORTED,
        ids.public(ids.PROMPT_SET, prompt_set.id),
        after={"version": version.version},
    )
    response.headers["Location"] = f"/v1/prompt-sets/{name}/versions/{version.version}"
    session.refresh(version)
    return PromptSetVersion.of(name, version)


@router.get("", summary="List the versions of a prompt set", responses=responses("not_found"))
def list_prompt_set_versions(
    name: str,
    session: PromptsReadSession,
    limit: Limit = 20,
    after: After = None,
    metadata: MetadataFilter = None,
    archived: Annotated[bool | None, Query(description="only archived ones, or only others; absent: all")] = None,
) -> Page[PromptSetVersion]:
    prompt_set = prompt_sets.get(session, name)
    cursor = numbered(after, "version")
    query = select(models.PromptSetVersion).where(
        models.PromptSetVersion.prompt_set_id == prompt_set.id,
        models.PromptSetVersion.custom.contains(wanted(metadata)),
    )
    if archived is not None:
        query = query.where(models.PromptSetVersion.archived_at.is_not(None) == archived)
    rows, has_more = page(session, query, models.PromptSetVersion.version, cursor, limit)
    data = [PromptSetVersion.of(name, row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=str(data[-1].version) if has_more else None)


@router.get(
    "/{version}",
    summary="Show a version",
    response_model=PromptSetVersion,
    responses={**responses("not_found"), **NOT_MODIFIED},
)
def get_prompt_set_version(
    name: str, version: VersionNumber, session: PromptsReadSession, if_none_match: IfNoneMatch = None
) -> Response:
    return unless_known(PromptSetVersion.of(name, _version(session, name, version)), if_none_match)


@router.patch("/{version}", summary="Change the description or the metadata", responses=responses("not_found"))
def change_prompt_set_version(
    name: str, version: VersionNumber, body: LabelChange, session: PromptsWriteSession
) -> PromptSetVersion:
    row = _version(session, name, version)
    body.label().put_on(row)
    _record(session, Action.SET_VERSION_CHANGED, row)
    return PromptSetVersion.of(name, row)


@router.post(
    "/{version}/archive",
    summary="Archive a version: no name means it and no alias moves to it; its number still does",
    responses=responses("not_found", "version_in_use"),
)
def archive_prompt_set_version(name: str, version: VersionNumber, session: PromptsWriteSession) -> PromptSetVersion:
    row = prompt_sets.archive(session, name, version)
    _record(session, Action.SET_VERSION_ARCHIVED, row)
    return PromptSetVersion.of(name, row)


@router.post("/{version}/unarchive", summary="Take a version out of the archive", responses=responses("not_found"))
def unarchive_prompt_set_version(name: str, version: VersionNumber, session: PromptsWriteSession) -> PromptSetVersion:
    row = prompt_sets.unarchive(session, name, version)
    _record(session, Action.SET_VERSION_UNARCHIVED, row)
    return PromptSetVersion.of(name, row)


@router.delete(
    "/{version}",
    status_code=204,
    summary="Delete an archived version; its number is never given again",
    responses=responses("not_found", "version_in_use", "version_not_archived"),
)
def delete_prompt_set_version(name: str, version: VersionNumber, session: PromptsWriteSession) -> None:
    _record(session, Action.SET_VERSION_DELETED, prompt_sets.delete_version(session, name, version))


@router.get(
    "/{version}/artifact",
    summary="Download the artifact of a version: one safetensors file",
    response_class=Response,
    responses={
        **responses("not_found", "artifact_integrity"),
        **NOT_MODIFIED,
        200: {
            "description": "the artifact; its sha256 is the ETag",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
def download_artifact(
    name: str, version: VersionNumber, session: PromptsReadSession, if_none_match: IfNoneMatch = None
) -> Response:
    row = _version(session, name, version)
    headers = {"ETag": f'"{row.artifact_sha256}"', "Cache-Control": ASK_AGAIN}
    if is_known(if_none_match, row.artifact_sha256):
        return Response(status_code=304, headers=headers)
    return Response(
        prompt_sets.artifact(session, row),
        media_type="application/octet-stream",
        headers={**headers, "Content-Disposition": f'attachment; filename="{name}-{version}.safetensors"'},
    )


@router.put(
    "/{version}/artifact",
    summary="Put the artifact of a version back, as it was published: the same bytes; it leaves quarantine",
    responses=responses("not_found", "artifact_mismatch", *CODES),
    openapi_extra={"requestBody": REQUEST_BODY},
)
def restore_artifact(
    name: str, version: VersionNumber, artifact: ArtifactDep, session: PromptsWriteSession
) -> PromptSetVersion:
    row, changed = prompt_sets.release(session, name, version, artifact.data)
    if changed:
        _record(session, Action.SET_VERSION_RELEASED, row)
    return PromptSetVersion.of(name, row)


@router.post(
    "/{version}/release",
    summary="Let a version out of quarantine whose artifact has been repaired: the stored bytes are looked at again",
    responses=responses("not_found", "artifact_integrity", "artifact_corrupt", "artifact_non_finite"),
)
def release_prompt_set_version(name: str, version: VersionNumber, session: PromptsWriteSession) -> PromptSetVersion:
    row, changed = prompt_sets.release(session, name, version)
    inspection.inspect(row.artifact)
    if changed:
        _record(session, Action.SET_VERSION_RELEASED, row)
    return PromptSetVersion.of(name, row)


def _record(session: Session, action: Action, row: models.PromptSetVersion) -> None:
    audit.record(session, action, ids.public(ids.PROMPT_SET, row.prompt_set_id), after={"version": row.version})


def _version(session: PromptsReadSession, name: str, number: int) -> models.PromptSetVersion:
    _, row = prompt_sets.resolve(session, f"{name}:{number}")
    return row
