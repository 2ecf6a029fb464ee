"""Idempotency-Key: a POST that carries one is done once, and answered the same each time it is sent again.

A router whose routes are `OnceRoute`s takes the header on each POST. Who asks, and in which transaction, is known to
the dependencies that open sessions: api/deps.py for one transaction, api/receiving.py where a body takes several.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.keys import KeyFirstRoute
from api.problems import also
from bpt_store import idempotency
from bpt_store.db import LongLocks
from bpt_store.idempotency import Reply, Sender
from bpt_store.models import IdempotencyRecord

HEADER = "Idempotency-Key"
LONGEST_KEY = 255
CODES = ("idempotency_in_progress", "idempotency_key_reused")
_JSON = "application/json"


class Replay(Exception):
    """The request was answered before; ends it wherever that is found out."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("answered before")
        self.reply = reply


@dataclass
class Once:
    """One request with its key. `target` is its path and query; `session` is the transaction left open for the answer
    to be kept in."""

    key: str
    target: bytes
    hours: float
    sender: Sender | None = None
    session: Session | None = None
    body_sha256: bytes = b""

    @classmethod
    def of(cls, request: Request) -> Once | None:
        """None without a key, and on routes that take none."""
        found: Once | None = getattr(request.state, "once", None)
        return found

    def begin(self, session: Session, sender: Sender) -> None:
        """In the transaction that does what is asked, before it does: Replay where it was done.

        Conflict `idempotency_in_progress`, Invalid `idempotency_key_reused`.
        """
        self.sender, self.session = sender, session
        record = idempotency.begin(session, sender, self.key)
        if record is not None:
            raise Replay(self.reply_of(record, self.body_sha256))

    @asynccontextmanager
    async def held(self, locks: LongLocks, sender: Sender) -> AsyncIterator[None]:
        """For requests of several transactions. Conflict `idempotency_in_progress`."""
        self.sender = sender
        number = idempotency.lock_number(sender, self.key)
        if not await run_in_threadpool(locks.take, number):
            raise idempotency.in_progress()
        try:
            yield
        finally:
            await asyncio.shield(run_in_threadpool(locks.release, number))

    def find(self, session: Session) -> IdempotencyRecord | None:
        assert self.sender is not None
        return idempotency.find(session, self.sender, self.key)

    def reply_of(self, record: IdempotencyRecord, body_sha256: bytes) -> Reply:
        """Invalid `idempotency_key_reused`."""
        assert self.sender is not None
        return idempotency.reply_of(record, self.sender, self.key, self._request_sha256(body_sha256))

    def keep(self, session: Session, body_sha256: bytes, reply: Reply) -> None:
        assert self.sender is not None
        request_sha256 = self._request_sha256(body_sha256)
        idempotency.keep(session, self.sender, self.key, request_sha256, reply, self.hours)

    def _request_sha256(self, body_sha256: bytes) -> bytes:
        return hashlib.sha256(self.target + b"\n" + body_sha256).digest()


async def _once(request: Request) -> Once | None:
    """For routes with one transaction, whose bodies are small: the body is there before the transaction begins."""
    once = Once.of(request)
    if once is not None:
        once.body_sha256 = hashlib.sha256(await request.body()).digest()
    return once


OnceDep = Annotated[Once | None, Depends(_once)]


def response_of(reply: Reply) -> Response:
    headers = {} if reply.location is None else {"Location": reply.location}
    return Response(reply.body, reply.status, headers, _JSON)


async def _key(
    idempotency_key: Annotated[
        str | None,
        Header(
            alias=HEADER,
            min_length=1,
            max_length=LONGEST_KEY,
            description="the same key with the same request is done once, and answered the same again",
        ),
    ] = None,
) -> None:
    """Checks the header, and shows it in the OpenAPI."""


class OnceRoute(KeyFirstRoute):
    """Of a POST: takes the header, gives an answer again, and keeps it in the open transaction."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        if "POST" in (more.get("methods") or ()):
            more["dependencies"] = [Depends(_key), *(more.get("dependencies") or ())]
            more["responses"] = also(more.get("responses") or {}, *CODES)
        super().__init__(path, endpoint, **more)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        return _handle_once(handle) if "POST" in (self.methods or ()) else handle


def _handle_once(
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def handle_once(request: Request) -> Response:
        key = request.headers.get(HEADER)
        if key is None:
            return await handle(request)
        target = request.url.path.encode() + b"?" + request.scope["query_string"]
        once = Once(key, target, request.app.state.services.settings.idempotency_hours)
        request.state.once = once
        try:
            response = await handle(request)
        except Replay as replay:
            return response_of(replay.reply)
        if once.session is not None and response.status_code < 300:
            # The transaction is still open: it commits when the dependencies end, before the reply leaves.
            reply = Reply(response.status_code, bytes(response.body), response.headers.get("Location"))
            await run_in_threadpool(once.keep, once.session, once.body_sha256, reply)
        return response

    return handle_once
