"""Around every request: an id, a log line, metrics, bounds on the body, and what browsers are told."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.metrics import RequestMetrics
from bpt_store import logs

logger = logging.getLogger(__name__)

# A body may take so long, and as long again as it would at this pace. Time in which nobody reads it is not counted.
GRACE_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 4096

DOCUMENTATION = ("/docs", "/docs/oauth2-redirect", "/redoc")
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
# Their scripts stand in them, and come from elsewhere.
_PAGES = "default-src 'self' https: data: blob: 'unsafe-inline'; frame-ancestors 'none'"

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Observe:
    """Gives each request an id (the caller's own, if it is sane), logs it and counts it."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        token = logs.request_id.set(request_id)
        started, status, replied = time.monotonic(), 500, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, replied
            if message["type"] == "http.response.start":
                status, replied = message["status"], True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            # Answered here and not by Starlette's outermost layer, where the request's id is gone already.
            if replied:
                raise
            reply = await problems.unexpected(Request(scope), error)
            await reply(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            # The route's pattern, not the path: ids would make a metric each.
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.saw(scope["method"], route, status, seconds)
            logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round(seconds * 1000, 1),
                },
            )
            logs.request_id.reset(token)


class LimitBody:
    """Refuses bodies over `limit_of(path)` bytes, and those that trickle; what is None there bounds itself."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int | None]) -> None:
        self._app, self._limit_of = app, limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limit_of(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        received, is_whole, waited = 0, False, 0.0

        async def receive_within_limit() -> Message:
            nonlocal received, is_whole, waited
            if is_whole:
                return await receive()  # whoever waits now waits for the caller to leave
            if announced.isdigit() and int(announced) > limit:
                raise HTTPException(413, f"at most {limit} bytes; the request announces {announced}")
            began = time.monotonic()
            try:
                async with asyncio.timeout(GRACE_SECONDS + received / SLOWEST_BYTES_PER_SECOND - waited):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body came too slowly: {received} bytes so far") from None
            waited += time.monotonic() - began
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, f"at most {limit} bytes")
            return message

        await self._app(scope, receive_within_limit, send)


class TellBrowsers:
    """What a browser must not do with a reply. What a route says itself of keeping it holds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Content-Security-Policy"] = _PAGES if scope["path"] in DOCUMENTATION else _NOTHING
                if "authorization" in Headers(scope=scope):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)
