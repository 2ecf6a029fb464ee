"""Datasets: one streamed upload, then what became of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from obstore.exceptions import BaseError as ObjectStoreError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import schemas
from api.deps import (
    After,
    DatasetsReadSession,
    DatasetsWriteSession,
    Limit,
    Services,
    ServicesDep,
    customer_of,
    require,
)
from api.problems import Problem, responses
from bpt_store import datasets, ids, models
from bpt_store.customers import Identity, Scope
from bpt_store.models import JobKind
from bpt_store.paging import page

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

ZIP_TYPES = ("application/zip", "application/x-zip-compressed")
Result = TypeVar("Result")


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset: a zip of class folders, or of images without labels, as the raw body",
    responses=responses(
        "payload_too_large",
        "request_timeout",
        "unsupported_media_type",
        "checksum_mismatch",
        "upload_expired",
        "insufficient_storage",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def create_dataset(
    request: Request,
    response: Response,
    services: ServicesDep,
    identity: Annotated[Identity, Depends(require(Scope.DATASETS_WRITE))],
    name: Annotated[schemas.Name, Query(description="what you call it")],
    task: Annotated[
        Literal["single-label", "unlabelled"],
        Query(description="`unlabelled`: images in any folders, all in the split test, to predict and not to tune on"),
    ] = "single-label",
    content_type: Annotated[str, Header()] = "",
    content_length: Annotated[int | None, Header(ge=0)] = None,
    content_digest: Annotated[str | None, Header(description="sha-256=:<base64>:, checked if given")] = None,
) -> schemas.Dataset:
    if content_type.partition(";")[0].strip().lower() not in ZIP_TYPES:
        raise Problem("unsupported_media_type", f"send application/zip, not {content_type or 'nothing'}")
    limit_bytes = services.settings.upload_limit_bytes
    if content_length is not None and content_length > limit_bytes:
        raise Problem("payload_too_large", f"at most {limit_bytes} bytes; the request announces {content_length}")
    expected = _expected_digest(content_digest)
    customer_id = customer_of(identity)

    async def in_transaction(action: Callable[[Session], Result]) -> Result:
        return await run_in_threadpool(_transaction, services, customer_id, action)

    dataset = await in_transaction(lambda session: datasets.begin_upload(session, customer_id, name, {}, ".zip", task))
    assert dataset.source_key is not None
    body = _Body(request, limit_bytes, services.settings.upload_stall_seconds)
    try:
        await services.objects.put_stream(dataset.source_key, body.chunks())
        if expected is not None and expected != body.digest.digest():
            raise Problem("checksum_mismatch", "the bytes received do not have the digest of Content-Digest")
        await in_transaction(
            lambda session: datasets.finish_upload(
                session, dataset.id, sha256=body.digest.hexdigest(), size_bytes=body.size_bytes, payload={}
            )
        )
    except BaseException as error:
        # A client that went away cancels this task: what is to be forgotten is forgotten all the same.
        await asyncio.shield(in_transaction(lambda session: datasets.abandon_upload(session, dataset.id)))
        if isinstance(error, ObjectStoreError | OSError):
            raise Problem("insufficient_storage", f"the archive could not be stored: {error}") from error
        raise
    await run_in_threadpool(services.doorbell.ring, JobKind.INGEST)
    response.headers["Location"] = f"/v1/datasets/{ids.public(ids.DATASET, dataset.id)}"
    return await in_transaction(lambda session: schemas.Dataset.of(datasets.get(session, dataset.id)))


@router.get("", summary="List datasets", responses=responses("not_found"))
def list_datasets(
    session: DatasetsReadSession, limit: Limit = 20, after: After = None
) -> schemas.Page[schemas.Dataset]:
    cursor = ids.parse(ids.DATASET, after) if after else None
    rows, has_more = page(session, select(models.Dataset), models.Dataset.id, cursor, limit)
    data = [schemas.Dataset.of(row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{dataset_id}", summary="Show a dataset", responses=responses("not_found"))
def get_dataset(dataset_id: str, session: DatasetsReadSession) -> schemas.Dataset:
    return schemas.Dataset.of(datasets.get(session, ids.parse(ids.DATASET, dataset_id)))


@router.get(
    "/{dataset_id}/report",
    summary="What ingest found: counts, rejected entries with their codes, duplicates, warnings",
    responses=responses("not_found", "dataset_not_ready"),
)
def get_dataset_report(dataset_id: str, session: DatasetsReadSession) -> dict[str, Any]:
    dataset = datasets.get(session, ids.parse(ids.DATASET, dataset_id))
    if dataset.report is None:
        raise Problem("dataset_not_ready", f"the dataset is {dataset.state}; there is no report")
    return dataset.report


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a dataset with all its images",
    responses=responses("not_found", "dataset_in_use"),
)
def delete_dataset(dataset_id: str, session: DatasetsWriteSession) -> None:
    datasets.delete(session, ids.parse(ids.DATASET, dataset_id))


class _Body:
    """The request's body, hashed and measured while it is read."""

    def __init__(self, request: Request, limit_bytes: int, stall_seconds: float) -> None:
        self._request, self._limit_bytes, self._stall_seconds = request, limit_bytes, stall_seconds
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        stream = self._request.stream()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream), self._stall_seconds)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Problem("request_timeout", f"nothing came for {self._stall_seconds:g} seconds") from None
            self.size_bytes += len(chunk)
            if self.size_bytes > self._limit_bytes:
                raise Problem("payload_too_large", f"at most {self._limit_bytes} bytes")
            self.digest.update(chunk)
            if chunk:
                yield chunk


def _transaction(services: Services, customer_id: UUID, action: Callable[[Session], Result]) -> Result:
    with services.database.customer(customer_id) as session:
        return action(session)


def _expected_digest(header: str | None) -> bytes | None:
    """RFC 9530: `sha-256=:<base64>:`; other algorithms are not ours to judge."""
    for entry in (header or "").split(","):
        algorithm, _, value = entry.strip().partition("=")
        if algorithm.lower() == "sha-256":
            try:
                return base64.b64decode(value.strip(":"), validate=True)
            except binascii.Error:
                raise Problem("checksum_mismatch", "Content-Digest is not base64", param="content-digest") from None
    return None
