"""How datasets and versions come to be: bytes in one request or in parts, a link, or changes to what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from api import schemas, upload_schemas
from api.bodies import validated
from api.dataset_schemas import Dataset, DatasetVersion
from api.deps import After, DatasetsReadSession, DatasetsWriteSession, Limit, ring_after_commit
from api.idempotency import OnceRoute
from api.problems import Problem, responses
from api.receiving import (
    ARCHIVE_TYPES,
    JSON,
    Announced,
    AnnouncedDep,
    Answer,
    Body,
    Receiver,
    ReceiverDep,
    sha256_of_json,
)
from api.schemas import Page, PlainText
from bpt_store import audit, datasets, ids, imports, models, uploads
from bpt_store.audit import Action, Fact
from bpt_store.models import JobKind
from bpt_store.paging import page
from bpt_store.quotas import Limits
from bpt_store.uploads import Intent, Made

router = APIRouter(prefix="/v1", tags=["datasets"], route_class=OnceRoute)

JSON_LIMIT_BYTES = 4 << 20

_BODY_CODES = ("payload_too_large", "request_timeout", "body_unreadable", "checksum_mismatch", "insufficient_storage")
_VERSION_CODES = ("not_found", "dataset_not_ready", "version_moved", "version_unfinished")


def _takes(model: type[schemas.Request]) -> dict[str, Any]:
    """The OpenAPI of a body that is an archive, or JSON."""
    archive = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = dict.fromkeys(sorted({*ARCHIVE_TYPES.values()}), archive)
    content[JSON] = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": content}}


BODY_SCHEMAS = (upload_schemas.DatasetImport, upload_schemas.VersionChange)


# --- in one request --------------------------------------------------------------------------------------------


@router.post(
    "/datasets",
    status_code=201,
    response_model=Dataset,
    summary="Make a dataset: of an archive or Parquet file as the raw body, or as JSON of what lies in object storage",
    responses=responses(
        *_BODY_CODES, "unsupported_media_type", "upload_expired", "quota_exceeded", "import_url_forbidden"
    ),
    openapi_extra=_takes(upload_schemas.DatasetImport),
)
async def create_dataset(
    request: Request,
    receiver: ReceiverDep,
    announced: AnnouncedDep,
    query: Annotated[upload_schemas.DatasetQuery, Query()],
) -> Response:
    if announced.media_type == JSON:
        if query.model_fields_set:
            raise Problem("invalid_request", "what is asked for as JSON stands in the body, not in the query")
        given, sha256 = await _json(request, receiver, announced)
        asked = validated(upload_schemas.DatasetImport, given)
        return await receiver.conclude(sha256, lambda session: _new_dataset(session, _import(session, receiver, asked)))
    media_type = announced.archive_type()
    if query.name is None:
        raise Problem("invalid_request", "name: what do you call it?", param="name")
    intent = Intent(name=query.name, options=query.options())
    return await _receive_whole(request, receiver, announced, intent, media_type, _new_dataset)


@router.post(
    "/datasets/{dataset_id}/versions",
    status_code=201,
    response_model=DatasetVersion,
    summary="Make the next version: add what an archive holds as the raw body, or as JSON relabel and remove items",
    responses=responses(*_BODY_CODES, *_VERSION_CODES, "unsupported_media_type", "upload_expired", "quota_exceeded"),
    openapi_extra=_takes(upload_schemas.VersionChange),
)
async def create_dataset_version(
    dataset_id: str,
    request: Request,
    receiver: ReceiverDep,
    announced: AnnouncedDep,
    base: Annotated[
        upload_schemas.VersionNumber | None, Query(description="with an archive: the version that is meant, else 409")
    ] = None,
) -> Response:
    identifier = ids.parse(ids.DATASET, dataset_id)
    if announced.media_type == JSON:
        if base is not None:
            raise Problem("invalid_request", "what is asked for as JSON stands in the body, not in the query")
        given, sha256 = await _json(request, receiver, announced)
        asked = validated(upload_schemas.VersionChange, given)
        return await receiver.conclude(
            sha256, lambda session: _new_version(session, _change(session, identifier, asked))
        )
    media_type = announced.archive_type()
    intent = Intent(dataset_id=identifier, base=base)
    return await _receive_whole(request, receiver, announced, intent, media_type, _new_version)


async def _json(request: Request, receiver: Receiver, announced: Announced) -> tuple[bytes, str]:
    """The body and its SHA-256, hexadecimal."""
    announced.refuse_over(JSON_LIMIT_BYTES)
    stall_seconds = receiver.services.settings.upload_stall_seconds
    body = Body(request, limit_bytes=JSON_LIMIT_BYTES, stall_seconds=stall_seconds)
    return await body.whole(), body.sha256


def _import(session: Session, receiver: Receiver, asked: upload_schemas.DatasetImport) -> Made:
    settings, customer_id = receiver.services.settings, receiver.customer_id
    url = imports.allowed(asked.url, settings.import_urls, ids.public(ids.CUSTOMER, customer_id))
    dataset, _ = datasets.create(
        session,
        customer_id,
        asked.name,
        asked.options(),
        {"url": url},
        asked.metadata,
        limits=Limits.of(settings),
    )
    return Made(dataset.id, 1)


def _change(session: Session, dataset_id: Any, asked: upload_schemas.VersionChange) -> Made:
    version, _ = datasets.add_version(session, dataset_id, changes=asked.changes(), base=asked.base)
    return Made(version.dataset_id, version.number)


async def _receive_whole(
    request: Request,
    receiver: Receiver,
    announced: Announced,
    intent: Intent,
    media_type: str,
    answer: Callable[[Session, Made], Answer],
) -> Response:
    """The body into object storage and a version of it, or nothing."""
    settings = receiver.services.settings
    limits = Limits.of(settings)
    announced.refuse_over(settings.upload_limit_bytes)
    expected = announced.sha256()
    upload = await receiver.transaction(
        lambda session: uploads.begin(
            session,
            receiver.customer_id,
            intent,
            media_type,
            limits=limits,
            seconds=settings.upload_expiry_seconds,
            size_bytes=announced.content_length or 0,
        )
    )
    room = announced.content_length or 0

    async def make_room(size_bytes: int) -> None:
        nonlocal room
        await receiver.allowance.cover(size_bytes)
        if size_bytes > room:
            # Of a length that was not announced; doubled, so that it is asked for seldom.
            room = min(2 * size_bytes, settings.upload_limit_bytes)
            await receiver.transaction(lambda session: uploads.set_aside(session, upload.id, room, limits))

    body = Body(
        request,
        limit_bytes=settings.upload_limit_bytes,
        stall_seconds=settings.upload_stall_seconds,
        expected=expected,
        on_growth=make_room,
    )
    key = uploads.new_key(upload.id, "whole")
    try:
        await receiver.allowance.cover(announced.content_length or 0)
        await receiver.store(key, body)
        part = uploads.Part(1, key, body.sha256, body.size_bytes)
        return await receiver.conclude(
            body.sha256, lambda session: answer(session, uploads.finish_whole(session, upload.id, part))
        )
    except BaseException:
        # A client that went away may cancel this task: what is to be forgotten is forgotten all the same.
        await asyncio.shield(
            receiver.transaction(lambda session: uploads.give_up_whole(session, receiver.customer_id, upload.id))
        )
        raise


# --- in parts --------------------------------------------------------------------------------------------------

PartNumber = Annotated[int, Path(ge=1, le=uploads.MOST_PARTS, description="1, 2, 3, ...; sent in any order")]


@router.post(
    "/uploads",
    status_code=201,
    response_model=upload_schemas.Upload,
    tags=["uploads"],
    summary="Begin an upload in parts, which can be gone on with after a break",
    responses=responses("payload_too_large", "quota_exceeded", "not_found", "dataset_not_ready", "version_moved"),
)
async def create_upload(body: upload_schemas.UploadCreate, request: Request, receiver: ReceiverDep) -> Response:
    settings = receiver.services.settings
    if (body.size_bytes or 0) > settings.upload_whole_limit_bytes:
        raise Problem("payload_too_large", f"at most {settings.upload_whole_limit_bytes} bytes", param="size_bytes")
    if (body.size_bytes or 0) > body.part_bytes * uploads.MOST_PARTS:
        raise Problem("invalid_request", f"so small parts would be more than {uploads.MOST_PARTS}", param="part_bytes")
    intent = body.intent()

    def begin(session: Session) -> Answer:
        upload = uploads.begin(
            session,
            receiver.customer_id,
            intent,
            ARCHIVE_TYPES[body.media_type],
            limits=Limits.of(settings),
            seconds=settings.upload_parts_expiry_seconds,
            size_bytes=body.size_bytes,
            part_bytes=body.part_bytes,
            fingerprint=body.fingerprint,
        )
        audit.record(session, Action.UPLOAD_CREATED, ids.public(ids.UPLOAD, upload.id))
        location = f"/v1/uploads/{ids.public(ids.UPLOAD, upload.id)}"
        return Answer(upload_schemas.Upload.of(upload, 0, []), location)

    return await receiver.conclude(await sha256_of_json(request), begin)


@router.get(
    "/uploads",
    tags=["uploads"],
    summary="List the uploads in parts that are not complete",
    responses=responses("not_found"),
)
def list_uploads(
    session: DatasetsReadSession,
    fingerprint: Annotated[PlainText | None, Query(max_length=200, description="those that were begun with it")] = None,
    limit: Limit = 20,
    after: After = None,
) -> Page[upload_schemas.Upload]:
    cursor = ids.parse(ids.UPLOAD, after) if after else None
    rows, has_more = page(session, uploads.open_in_parts(fingerprint), models.Upload.id, cursor, limit)
    received = uploads.received_bytes(session, [row.id for row in rows])
    data = [upload_schemas.Upload.of(row, received.get(row.id, 0), None) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get(
    "/uploads/{upload_id}",
    tags=["uploads"],
    summary="Show an upload in parts, and which of them have arrived",
    responses=responses("not_found"),
)
def get_upload(upload_id: str, session: DatasetsReadSession) -> upload_schemas.Upload:
    upload = uploads.get(session, ids.parse(ids.UPLOAD, upload_id))
    parts = uploads.parts_of(session, upload.id)
    return upload_schemas.Upload.of(upload, sum(part.bytes for part in parts), parts)


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    tags=["uploads"],
    summary="Send a part as the raw body; the same part again changes nothing, another one takes its place",
    responses=responses(*_BODY_CODES, "not_found", "upload_complete", "upload_expired", "quota_exceeded"),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_upload_part(
    upload_id: str, number: PartNumber, request: Request, receiver: ReceiverDep, announced: AnnouncedDep
) -> upload_schemas.UploadPart:
    identifier = ids.parse(ids.UPLOAD, upload_id)
    settings = receiver.services.settings
    limits, most = Limits.of(settings), settings.upload_whole_limit_bytes
    expected = announced.sha256()
    if expected is None:
        raise Problem("checksum_mismatch", "a part needs a Content-Digest with its sha-256", param="content-digest")
    sha256 = expected.hex()
    there, part_bytes = await receiver.transaction(
        lambda session: uploads.find_part(
            session, identifier, number, sha256, announced.content_length or 0, limits, most
        )
    )
    body = Body(
        request,
        limit_bytes=part_bytes,
        stall_seconds=settings.upload_stall_seconds,
        expected=expected,
        on_growth=None if there else receiver.allowance.cover,
    )
    if there is not None:
        await body.discard()
        return upload_schemas.UploadPart.of(there)
    await receiver.allowance.cover(announced.content_length or 0)
    key = uploads.new_key(identifier, f"{number}-{sha256}")
    try:
        await receiver.store(key, body)
        part = uploads.Part(number, key, sha256, body.size_bytes)
        seconds = settings.upload_parts_expiry_seconds
        kept = await receiver.transaction(
            lambda session: uploads.keep_part(session, identifier, part, limits, most=most, seconds=seconds)
        )
    except BaseException:
        await asyncio.shield(
            receiver.transaction(lambda session: uploads.give_up_part(session, receiver.customer_id, key))
        )
        raise
    return upload_schemas.UploadPart.of(kept)


@router.post(
    "/uploads/{upload_id}/complete",
    status_code=201,
    response_model=Dataset | DatasetVersion,
    tags=["uploads"],
    summary="All parts have arrived: make the dataset or version of them; again gives the same answer",
    responses={
        200: {"description": "it was complete already", "model": Dataset | DatasetVersion},
        **responses(*_VERSION_CODES, "upload_expired", "upload_incomplete", "payload_too_large"),
    },
)
async def complete_upload(
    upload_id: str,
    request: Request,
    receiver: ReceiverDep,
    body: upload_schemas.UploadComplete | None = None,
) -> Response:
    identifier = ids.parse(ids.UPLOAD, upload_id)
    seconds = receiver.services.settings.upload_parts_expiry_seconds
    sha256 = body.sha256 if body is not None else None

    def complete(session: Session) -> Answer:
        made, is_new = uploads.complete(session, identifier, sha256=sha256, seconds=seconds)
        if is_new:
            after: dict[str, Fact] = {"dataset": ids.public(ids.DATASET, made.dataset_id), "version": made.version}
            audit.record(session, Action.UPLOAD_COMPLETED, upload_id, after=after)
            ring_after_commit(session, JobKind.INGEST)
        return Answer(_what_became(session, identifier, made), status=201 if is_new else 200)

    return await receiver.conclude(await sha256_of_json(request), complete)


@router.delete(
    "/uploads/{upload_id}",
    status_code=204,
    tags=["uploads"],
    summary="Give up an upload that is not complete, with all that was sent",
    responses=responses("not_found", "upload_complete"),
)
def delete_upload(upload_id: str, session: DatasetsWriteSession) -> None:
    uploads.abandon(session, ids.parse(ids.UPLOAD, upload_id))
    audit.record(session, Action.UPLOAD_DELETED, upload_id)


# --- answers ---------------------------------------------------------------------------------------------------


def _new_dataset(session: Session, made: Made) -> Answer:
    audit.record(session, Action.DATASET_CREATED, ids.public(ids.DATASET, made.dataset_id))
    ring_after_commit(session, JobKind.INGEST)
    return Answer(_dataset(session, made), f"/v1/datasets/{ids.public(ids.DATASET, made.dataset_id)}")


def _new_version(session: Session, made: Made) -> Answer:
    dataset = ids.public(ids.DATASET, made.dataset_id)
    audit.record(session, Action.VERSION_CREATED, dataset, after={"version": made.version})
    ring_after_commit(session, JobKind.INGEST)
    location = f"/v1/datasets/{dataset}/versions/{made.version}"
    return Answer(_version(session, made), location)


def _dataset(session: Session, made: Made) -> Dataset:
    dataset = datasets.get(session, made.dataset_id)
    return Dataset.of(dataset, datasets.shown(session, [dataset])[dataset.id])


def _version(session: Session, made: Made) -> DatasetVersion:
    return DatasetVersion.of(datasets.version(session, made.dataset_id, made.version))


def _what_became(session: Session, upload_id: Any, made: Made) -> Dataset | DatasetVersion:
    is_new_dataset = Intent.of(uploads.get(session, upload_id)).dataset_id is None
    return _dataset(session, made) if is_new_dataset else _version(session, made)
