"""Everything that goes wrong, as RFC 9457 problem documents. The one place where facts become HTTP.

A code is stable and machine-readable; `STATUS` gives its HTTP status and is what the OpenAPI and docs list, with what
api/meanings.py says about it.

Below /v2 an error looks as the Open Inference Protocol has it: `{"error": "..."}`, with 400 in place of 422.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from psycopg.errors import DiskFull, ForeignKeyViolation
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from api import rate_limits
from api.meanings import MEANINGS
from bpt_core.errors import BptError
from bpt_store import logs
from bpt_store.errors import RateLimited, StoreError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

STATUS: dict[str, int] = {
    "unauthenticated": 401,
    "customer_suspended": 403,
    "insufficient_scope": 403,
    "quota_exceeded": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "alias_limit": 409,
    "alias_moved": 409,
    "alias_no_history": 409,
    "artifact_mismatch": 409,
    "comparison_mismatch": 409,
    "conflict": 409,
    "dataset_in_use": 409,
    "dataset_not_indexed": 409,
    "dataset_not_ready": 409,
    "dataset_unlabelled": 409,
    "gate_mismatch": 409,
    "gate_not_passed": 409,
    "idempotency_in_progress": 409,
    "job_cancelling": 409,
    "job_pausing": 409,
    "job_succeeded": 409,
    "job_terminal": 409,
    "job_unfinished": 409,
    "key_ended": 409,
    "last_admin_key": 409,
    "name_taken": 409,
    "not_reproducible": 409,
    "prompt_set_in_use": 409,
    "upload_complete": 409,
    "upload_expired": 409,
    "version_in_use": 409,
    "version_moved": 409,
    "version_not_archived": 409,
    "version_quarantined": 409,
    "version_unfinished": 409,
    "webhook_disabled": 409,
    "webhook_limit": 409,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "artifact_format_unsupported": 415,
    "unsupported_media_type": 415,
    "misdirected_request": 421,
    "alias_reserved": 422,
    "artifact_corrupt": 422,
    "artifact_non_finite": 422,
    "artifact_schema": 422,
    "backbone_noncommercial": 422,
    "backbone_unknown": 422,
    "body_unreadable": 422,
    "checksum_mismatch": 422,
    "continue_mismatch": 422,
    "dataset_empty": 422,
    "idempotency_key_reused": 422,
    "image_animated": 422,
    "image_corrupt": 422,
    "image_decode_limit": 422,
    "image_not_finite": 422,
    "image_too_large": 422,
    "image_unsupported": 422,
    "import_url_forbidden": 422,
    "invalid_request": 422,
    "invalid_setting": 422,
    "name_mismatch": 422,
    "prompt_set_too_large": 422,
    "upload_incomplete": 422,
    "webhook_url_forbidden": 422,
    "queue_limit": 429,
    "rate_limited": 429,
    "internal_error": 500,
    "prediction_failed": 500,
    "artifact_integrity": 503,
    "database_unavailable": 503,
    "not_ready": 503,
    "overloaded": 503,
    "weights_unavailable": 503,
    "deadline_exceeded": 504,
    "insufficient_storage": 507,
}
# Any operation may meet these: a key that does not hold, too many requests, a database that is away or full, a bug.
_ANYWHERE = (
    *("unauthenticated", "customer_suspended", "insufficient_scope"),
    *("invalid_request", "rate_limited", "internal_error", "database_unavailable", "insufficient_storage"),
)
# And these any that may have a body, as every POST with an Idempotency-Key: too large, too slow, or not readable.
_WITH_A_BODY = ("payload_too_large", "request_timeout", "body_unreadable")
_OF_HTTP_STATUS = {
    400: "body_unreadable",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
}


class ProblemField(BaseModel):
    """One field of a request that is wrong."""

    param: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457, with a stable `code`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    param: str | None = None
    request_id: str | None = None
    errors: list[ProblemField] = []


class ProtocolError(BaseModel):
    """An error as the Open Inference Protocol has it."""

    error: str


class Problem(Exception):
    """Something wrong that the API itself finds out."""

    def __init__(self, code: str, detail: str, *, param: str | None = None) -> None:
        super().__init__(detail)
        self.code, self.param = code, param


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error part of an operation's OpenAPI, one entry per status, one example per code."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in (*codes, *_ANYWHERE):
        status = STATUS[code]
        entry = found.setdefault(
            status,
            {
                "description": HTTPStatus(status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}, "examples": {}}},
            },
        )
        example = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code}
        entry["content"][MEDIA_TYPE]["examples"][code] = {
            "summary": MEANINGS[code],
            "value": {**example, "detail": "what was wrong, in words", "instance": "/v1/..."},
        }
    return found


def also(known: Mapping[int | str, dict[str, Any]], *codes: str) -> dict[int | str, dict[str, Any]]:
    """What `responses` gave, or part of it, with more codes."""
    found = copy.deepcopy(dict(known))
    for status, entry in responses(*codes).items():
        if status in found:
            found[status]["content"][MEDIA_TYPE]["examples"] |= entry["content"][MEDIA_TYPE]["examples"]
        else:
            found[status] = entry
    return found


def protocol_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The error part of an operation's OpenAPI below /v2."""
    statuses = {_protocol_status(code) for code in (*codes, "internal_error", "misdirected_request")}
    return {status: {"model": ProtocolError, "description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def install(app: FastAPI, schemas: Sequence[type[BaseModel]] = ()) -> None:
    """Make every error of the application a problem document, in the replies and in the OpenAPI.

    `schemas` are what bodies refer to in the OpenAPI that FastAPI does not read itself.
    """
    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain_openapi()
        models: list[type[BaseModel]] = [ProblemDocument, *schemas]
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
        for path, item in document["paths"].items():
            for verb, operation in item.items():
                for parameter in operation.get("parameters", ()):
                    never_null(parameter["schema"])
                if _is_protocol(path):
                    operation["responses"].pop("422", None)  # FastAPI's own, wherever there are parameters
                elif verb == "post" or "requestBody" in operation:
                    known: dict[int | str, Any] = {int(key): each for key, each in operation["responses"].items()}
                    operation["responses"] = {str(key): each for key, each in also(known, *_WITH_A_BODY).items()}
        rate_limits.declare(document)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(StoreError, _problem)
    app.add_exception_handler(BptError, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(PoolTimeout, _database)
    app.add_exception_handler(IntegrityError, _integrity)


def never_null(schema: dict[str, Any]) -> None:
    """Parameters and fields of forms may be absent, but what is sent is text: None is no value that could be sent."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]


def document(request: Request, code: str, detail: str, **more: Any) -> ProblemDocument:
    status = STATUS[code]
    return ProblemDocument(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        request_id=logs.request_id.get(),
        **more,
    )


def _reply(
    request: Request, code: str, detail: str, *, retry_after_seconds: int = RETRY_AFTER_SECONDS, **more: Any
) -> JSONResponse:
    body = document(request, code, detail, **more)
    headers = {"Retry-After": str(retry_after_seconds)} if body.status in (429, 503) else {}
    if body.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if body.status == 408:
        headers["Connection"] = "close"  # what may still come belongs to no request
    if _is_protocol(request.url.path):
        return JSONResponse(ProtocolError(error=detail).model_dump(), _protocol_status(code), headers)
    return JSONResponse(body.model_dump(), body.status, headers, MEDIA_TYPE)


def _is_protocol(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _protocol_status(code: str) -> int:
    return 400 if STATUS[code] == 422 else STATUS[code]


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem | StoreError | BptError)
    if error.code not in STATUS:
        return await unexpected(request, error)
    more: dict[str, Any] = {"param": getattr(error, "param", None)}
    if isinstance(error, RateLimited):
        more["retry_after_seconds"] = math.ceil(error.retry_after_seconds)
    return _reply(request, error.code, str(error), **more)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [
        ProblemField(param=".".join(str(part) for part in item["loc"][1:]), detail=item["msg"])
        for item in error.errors()
    ]
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return _reply(request, "body_unreadable", "the body is not valid JSON", errors=fields)
    summary = "; ".join(f"{field.param}: {field.detail}" for field in fields[:3])
    return _reply(request, "invalid_request", summary, param=fields[0].param if fields else None, errors=fields)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _OF_HTTP_STATUS.get(error.status_code)
    if code is None:
        return await unexpected(request, error)
    reply = _reply(request, code, str(error.detail))
    if error.status_code == 405:
        reply.headers["Allow"] = ", ".join(_methods(request))
    return reply


def _methods(request: Request) -> list[str]:
    """All that the path has; Starlette itself names those of the first route that matches."""
    routes, methods = request.app.router.routes, ("DELETE", "GET", "PATCH", "POST", "PUT")
    scopes = {method: {**request.scope, "method": method} for method in methods}
    return [each for each in methods if any(route.matches(scopes[each])[0] is Match.FULL for route in routes)]


async def _database(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperationalError)
    if isinstance(error.orig, DiskFull):
        logger.error("database full", extra={"reason": str(error)})
        return _reply(request, "insufficient_storage", "the database has no room left")
    logger.error("database away", extra={"reason": str(error)})
    return _reply(request, "database_unavailable", "the database cannot be reached right now")


async def _integrity(request: Request, error: Exception) -> Response:
    """A customer may be deleted while a request of his is under way: its key does not hold any more."""
    assert isinstance(error, IntegrityError)
    broken = error.orig.diag.constraint_name if isinstance(error.orig, ForeignKeyViolation) else None
    if broken is None or not broken.endswith("_customer_id_fkey"):
        return await unexpected(request, error)
    return _reply(request, "unauthenticated", "the customer of this API key has been deleted")


async def unexpected(request: Request, error: Exception) -> Response:
    """The reply to a bug of ours: logged in full, told in one sentence."""
    logger.error("unexpected error", exc_info=error)
    return _reply(request, "internal_error", "something went wrong on our side; the request id finds it in the logs")
