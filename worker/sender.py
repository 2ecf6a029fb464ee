"""One HTTP request to a URL of a customer's choice: to a judged address, once, within a time, and no further."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore

from bpt_store import webhook_secrets
from bpt_store.addresses import Outside, Target
from bpt_store.webhook_deliveries import Sending

_READ_BYTES = 4 << 10  # of an answer; more than its status is of no interest, and nothing of it is kept
_LONGEST_ERROR = 300
_CONNECT_SECONDS = 3.0  # to an address that is not a host's only one


@dataclass(frozen=True)
class Outcome:
    """`error` is None for what was taken."""

    status: int | None
    error: str | None


class Sender:
    """Knows no proxy and no cookie, and follows no redirect. Each request looks its host up anew."""

    def __init__(self, outside: Outside, timeout_seconds: float, *, at_once: int) -> None:
        self._outside, self._timeout_seconds = outside, timeout_seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),  # the system's authorities, or those of SSL_CERT_FILE
            max_connections=at_once,
            max_keepalive_connections=0,
            network_backend=_Judging(outside, at_once),
        )

    async def send(self, sending: Sending) -> Outcome:
        """Whatever a URL of a customer's leads to, it is this attempt that failed: never raises."""
        try:
            target = Target.parse(sending.url)
            self._outside.check_scheme(target)
            async with asyncio.timeout(self._timeout_seconds):
                status = await self._post(target, _headers(sending), sending.body)
        except TimeoutError:
            return Outcome(None, f"no answer within {self._timeout_seconds:g} seconds")
        except Exception as error:
            told = str(error).strip() or f"the connection broke ({type(error).__name__})"
            return Outcome(None, told[:_LONGEST_ERROR])
        if 200 <= status < 300:
            return Outcome(status, None)
        redirected = ", and redirects are not followed" if 300 <= status < 400 else ""
        return Outcome(status, f"it answered {status}{redirected}")

    async def close(self) -> None:
        await self._pool.aclose()

    async def _post(self, target: Target, headers: dict[bytes | str, bytes | str], body: bytes) -> int:
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        async with self._pool.stream("POST", url, headers=headers, content=body) as response:
            size = 0
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > _READ_BYTES:
                    break
            return int(response.status)


class _Judging(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were judged. TLS and `Host` know only the name, as it should be."""

    def __init__(self, outside: Outside, at_once: int) -> None:
        self._outside = outside
        self._backend = httpcore.AnyIOBackend()
        # Of its own: names that are slow to look up hold up nothing but each other.
        self._lookups = ThreadPoolExecutor(at_once, "lookup")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await asyncio.get_running_loop().run_in_executor(self._lookups, self._outside.addresses, host)
        for address in addresses[:-1]:
            try:
                return await self._backend.connect_tcp(address, port, _CONNECT_SECONDS, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _headers(sending: Sending) -> dict[bytes | str, bytes | str]:
    timestamp = int(time.time())
    return {
        "content-type": "application/json",
        "user-agent": "bpt-service",
        "webhook-id": sending.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": webhook_secrets.signatures(sending.secrets, sending.message_id, timestamp, sending.body),
    }
