"""Bodies that are too large for memory: bounded, hashed and stored while they are read, in blocks."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Request, Response
from obstore.exceptions import BaseError as ObjectStoreError
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.deps import Services, ServicesDep, actor, customer_of, require, ring
from api.idempotency import Once, Replay, response_of
from api.problems import Problem
from bpt_store import audit
from bpt_store.audit import Actor
from bpt_store.customers import Identity, Scope
from bpt_store.idempotency import Reply, Sender
from bpt_store.rate_limits import Limit as RateLimit

BLOCK_BYTES = 1 << 20
JSON = "application/json"
# Besides its name, what each is called elsewhere. The worker looks at the bytes themselves.
ARCHIVE_TYPES = {
    "application/zip": "application/zip",
    "application/x-zip-compressed": "application/zip",
    "application/x-tar": "application/x-tar",
    "application/gzip": "application/gzip",
    "application/x-gzip": "application/gzip",
    "application/x-gtar": "application/gzip",
    "application/zstd": "application/zstd",
    "application/vnd.apache.parquet": "application/vnd.apache.parquet",
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class Announced:
    """What the headers say about a body; `media_type` is in lower case and without parameters."""

    media_type: str
    content_length: int | None
    content_digest: str | None

    def refuse_over(self, limit_bytes: int) -> None:
        """Problem `payload_too_large`, before anything is read."""
        if self.content_length is not None and self.content_length > limit_bytes:
            detail = f"at most {limit_bytes} bytes; the request announces {self.content_length}"
            raise Problem("payload_too_large", detail)

    def archive_type(self) -> str:
        """Problem `unsupported_media_type`."""
        if self.media_type not in ARCHIVE_TYPES:
            known = ", ".join(sorted({*ARCHIVE_TYPES.values()}))
            raise Problem("unsupported_media_type", f"send {known}, not {self.media_type or 'nothing'}")
        return ARCHIVE_TYPES[self.media_type]

    def sha256(self) -> bytes | None:
        """Of RFC 9530's `sha-256=:<base64>:`; other algorithms are not ours to judge. Problem `checksum_mismatch`."""
        for entry in (self.content_digest or "").split(","):
            algorithm, _, value = entry.strip().partition("=")
            if algorithm.lower() == "sha-256":
                try:
                    digest = base64.b64decode(value.strip(":"), validate=True)
                except binascii.Error:
                    digest = b""
                if len(digest) != hashlib.sha256().digest_size:
                    detail = "Content-Digest is not the base64 of a SHA-256"
                    raise Problem("checksum_mismatch", detail, param="content-digest")
                return digest
        return None


def _announced(
    content_type: Annotated[str, Header()] = "",
    content_length: Annotated[int | None, Header(ge=0)] = None,
    content_digest: Annotated[
        str | None, Header(description="RFC 9530: `sha-256=:<base64>:`; the bytes are held against it")
    ] = None,
) -> Announced:
    return Announced(content_type.partition(";")[0].strip().lower(), content_length, content_digest)


AnnouncedDep = Annotated[Announced, Depends(_announced)]


class Body:
    """The request's body, hashed and measured while it is read.

    `on_growth` is told what it comes to before a block is passed on, and may raise.
    """

    def __init__(
        self,
        request: Request,
        *,
        limit_bytes: int,
        stall_seconds: float,
        expected: bytes | None = None,
        on_growth: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._request, self._limit_bytes, self._stall_seconds = request, limit_bytes, stall_seconds
        self._expected, self._on_growth = expected, on_growth
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Some BLOCK_BYTES each. Problem `payload_too_large`, `request_timeout`, `body_unreadable`, and at the end
        `checksum_mismatch`."""
        loop = asyncio.get_running_loop()
        stream = self._request.stream()
        hashing: asyncio.Future[None] | None = None
        while block := await self._block(stream):
            if self._on_growth is not None:
                await self._on_growth(self.size_bytes)
            if hashing is not None:
                await hashing
            # In another thread, while the next block comes.
            hashing = loop.run_in_executor(None, self._digest.update, block)
            yield block
        if hashing is not None:
            await hashing
        if self._expected is not None and self._expected != self._digest.digest():
            detail = "the bytes received do not have the digest of Content-Digest"
            raise Problem("checksum_mismatch", detail, param="content-digest")

    async def whole(self) -> bytes:
        return b"".join([block async for block in self.blocks()])

    async def discard(self) -> None:
        """Read to the end all the same, so that the connection can go on to the next request."""
        async for _ in self.blocks():
            pass

    async def _block(self, stream: AsyncIterator[bytes]) -> bytes:
        """The next one; empty at the end."""
        loop = asyncio.get_running_loop()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._stall_seconds) as patience:
                while size < BLOCK_BYTES:
                    chunk = await anext(stream, None)
                    if chunk is None:
                        break
                    if chunk:
                        patience.reschedule(loop.time() + self._stall_seconds)
                        chunks.append(chunk)
                        size += len(chunk)
                        self._grow(len(chunk))
        except TimeoutError:
            raise Problem("request_timeout", f"nothing came for {self._stall_seconds:g} seconds") from None
        except ClientDisconnect:
            raise Problem("body_unreadable", "the connection ended before the body did") from None
        return b"".join(chunks)

    def _grow(self, count: int) -> None:
        self.size_bytes += count
        if self.size_bytes > self._limit_bytes:
            raise Problem("payload_too_large", f"at most {self._limit_bytes} bytes")


@dataclass
class Allowance:
    """Of the bytes that a customer may send in a time: what a body announces is taken of it before it is read, and what
    nobody announced as it comes.
    """

    request: Request
    services: Services
    identity: Identity
    taken: int = 0

    async def cover(self, size_bytes: int) -> None:
        """RateLimited."""
        more = size_bytes - self.taken
        if more > 0:
            take = self.services.rate_limits.take
            await run_in_threadpool(take, self.request, self.identity, RateLimit.UPLOAD_BYTES, more)
            self.taken = size_bytes


@dataclass(frozen=True)
class Answer:
    content: BaseModel
    location: str | None = None
    status: int = 201


@dataclass(frozen=True)
class Receiver:
    """One customer's side of the service, for routes that are busy with a body between their transactions."""

    services: Services
    customer_id: UUID
    actor: Actor
    allowance: Allowance
    once: Once | None = None

    async def transaction(self, action: Callable[[Session], Result]) -> Result:
        def run() -> Result:
            with self.services.database.customer(self.customer_id) as session:
                audit.act_as(session, self.actor)
                result = action(session)
            ring(self.services, session)
            return result

        return await run_in_threadpool(run)

    async def conclude(self, body_sha256: str, action: Callable[[Session], Answer]) -> Response:
        """The last transaction of a POST: what it answers is made in it, and kept in it under the request's key."""

        def run(session: Session) -> Reply:
            answer = action(session)
            reply = Reply(answer.status, answer.content.model_dump_json(by_alias=True).encode(), answer.location)
            if self.once is not None:
                self.once.keep(session, bytes.fromhex(body_sha256), reply)
            return reply

        return response_of(await self.transaction(run))

    async def store(self, key: str, body: Body) -> None:
        """Problem `insufficient_storage`, and those of the body; then no object is there."""
        try:
            await self.services.objects.put_stream(key, body.blocks())
        except (ObjectStoreError, OSError) as error:
            raise Problem("insufficient_storage", f"the bytes could not be stored: {error}") from error


async def _receiver(
    request: Request, services: ServicesDep, identity: Annotated[Identity, Depends(require(Scope.DATASETS_WRITE))]
) -> AsyncIterator[Receiver]:
    """Raises Replay for what was answered before. Conflict `idempotency_in_progress` before a body is read."""
    once, customer_id = Once.of(request), customer_of(identity)
    receiver = Receiver(services, customer_id, actor(identity), Allowance(request, services, identity), once)
    if once is None:
        yield receiver
        return
    async with once.held(services.database.long_locks, Sender.customer(customer_id)):
        record = await receiver.transaction(once.find)
        if record is not None:
            raise Replay(once.reply_of(record, await _sha256_of(request, services)))
        yield receiver


async def _sha256_of(request: Request, services: Services) -> bytes:
    """Of the body. What says itself which it is need not be sent again; anything else is read to its end."""
    headers = request.headers
    announced = _announced(headers.get("content-type", ""), None, headers.get("content-digest"))
    sha256 = announced.sha256() if announced.media_type != JSON else None
    if sha256 is not None:
        return sha256
    settings = services.settings
    body = Body(request, limit_bytes=settings.upload_limit_bytes, stall_seconds=settings.upload_stall_seconds)
    await body.discard()
    return bytes.fromhex(body.sha256)


async def sha256_of_json(request: Request) -> str:
    """Hexadecimal, of a body that FastAPI has read."""
    return hashlib.sha256(await request.body()).hexdigest()


ReceiverDep = Annotated[Receiver, Depends(_receiver, scope="function")]
