"""What a customer may ask for in a time: taken here, told in the headers of every reply, refused with 429.

They are those of draft-ietf-httpapi-ratelimit-headers: of each limit that the request was held against, `r` is
what is left, and `t` the seconds until all of it is there again.
"""

from __future__ import annotations

import math
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bpt_store.customers import Identity
from bpt_store.errors import RateLimited
from bpt_store.rate_limits import Limit, Policy, RateLimiter, Standing
from bpt_store.settings import Settings

_STATE = "rate_limits"
# Where nothing is said it is requests.
_UNITS = {Limit.REQUESTS: "", Limit.IMAGES: ';qu="images"', Limit.UPLOAD_BYTES: ';qu="content-bytes"'}
_NOUNS = {Limit.REQUESTS: "requests", Limit.IMAGES: "images", Limit.UPLOAD_BYTES: "bytes of uploads"}
_PERIODS = {60: "minute", 86400: "day"}

HEADERS = {
    "RateLimit-Policy": "the limits that the request was held against: `q` in each `w` seconds",
    "RateLimit": "what is left of them: `r` now, and in `t` seconds all of it",
}


class RateLimits:
    """One per process. Administrators have none."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._limiter = RateLimiter(settings.redis_url.get_secret_value(), settings.rate_limit_patience_seconds)
        self._refused = Counter("bpt_rate_limited", "requests over a limit", ("limit",), registry=registry)
        self._unchecked = Counter(
            "bpt_rate_limit_unchecked", "what passed because Redis did not answer", ("limit",), registry=registry
        )

    def take(self, request: Request, identity: Identity, limit: Limit, amount: int) -> None:
        """Waits for Redis, though not for long. RateLimited."""
        policy = self._policy(identity, limit)
        if policy is None:
            return
        assert identity.customer_id is not None
        standing = self._limiter.take(identity.customer_id, policy, amount)
        if standing is None:
            self._unchecked.labels(limit).inc()
            return
        told: dict[Limit, Standing] = request.scope.setdefault("state", {}).setdefault(_STATE, {})
        told[limit] = standing
        if standing.wait_seconds:
            self._refused.labels(limit).inc()
            raise RateLimited(_refusal(standing), standing.wait_seconds)

    def give_back(self, request: Request, identity: Identity, limit: Limit, amount: int) -> None:
        self.take(request, identity, limit, -amount)

    def close(self) -> None:
        self._limiter.close()

    def _policy(self, identity: Identity, limit: Limit) -> Policy | None:
        return None if identity.customer_id is None else Policy.of(limit, identity.rates, self._settings)


class TellRateLimits:
    """The headers, also where a request comes to a bad end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            told: dict[Limit, Standing] = scope.get("state", {}).get(_STATE, {})
            if message["type"] == "http.response.start" and told:
                headers = MutableHeaders(scope=message)
                headers["RateLimit-Policy"] = ", ".join(_policy_item(each.policy) for each in told.values())
                headers["RateLimit"] = ", ".join(_limit_item(each) for each in told.values())
            await send(message)

        await self._app(scope, receive, send_with_headers)


def declare(document: dict[str, Any]) -> None:
    """The headers in the OpenAPI: of every reply of an operation that asks for a key."""
    described = document["components"].setdefault("headers", {})
    for name, description in HEADERS.items():
        described[name] = {"description": description, "schema": {"type": "string"}}
    for item in document["paths"].values():
        for operation in item.values():
            for response in operation["responses"].values() if "security" in operation else ():
                references = {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS}
                response["headers"] = {**response.get("headers", {}), **references}


def _refusal(standing: Standing) -> str:
    policy = standing.policy
    most = f"at most {policy.quota:,} {_NOUNS[policy.limit]} per {_PERIODS[policy.window_seconds]}"
    return f"{most}, {standing.remaining:,} are left; try again in {math.ceil(standing.wait_seconds)} seconds"


def _policy_item(policy: Policy) -> str:
    return f'"{policy.limit}";q={policy.quota}{_UNITS[policy.limit]};w={policy.window_seconds}'


def _limit_item(standing: Standing) -> str:
    return f'"{standing.policy.limit}";r={standing.remaining};t={math.ceil(standing.reset_seconds)}'
