"""How much a customer may ask for in a time: a bucket for each limit, kept in Redis and on Redis's clock.

What is taken goes into the bucket, and the bucket leaks, evenly, a quota in each window. What does not fit any more is
refused and costs nothing. (The generic cell rate algorithm, told from the bucket's side.) So a whole quota can be taken
at once, and from then on as much as has leaked: never more than a quota and what leaks meanwhile. What is larger than
the quota passes if the bucket is empty, and is paid back by the time that it takes to leak.

Buckets are no truth: an emptied Redis only forgives. Where it does not answer, everything passes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from uuid import UUID

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bpt_store.settings import Settings

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # after Redis did not answer: nobody waits for it meanwhile

_TAKE = """
local quota, window, amount, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local used = 0
local kept = redis.call('GET', KEYS[1])
if kept then
  local level, at = string.match(kept, '(%S+) (%S+)')
  used = math.max(0, level - math.max(0, now - at) * quota / window)
end
local over = math.min(used, used + amount - quota)
local wait = 0
if over > 0.000001 then
  wait = over * window / quota
elseif amount ~= 0 then
  used = math.max(0, used + amount)
  redis.call('SET', KEYS[1], string.format('%.17g %.17g', used, now), 'PX', math.ceil(used * window / quota / 1000) + 1)
end
return {math.ceil(wait), math.floor(math.max(0, quota - used) + 0.000001), math.ceil(used * window / quota)}
"""


class Limit(StrEnum):
    """What is limited, as replies name it."""

    REQUESTS = "requests"
    IMAGES = "images"
    UPLOAD_BYTES = "upload-bytes"


@dataclass(frozen=True)
class Rates:
    """A customer's own. None: the service's; 0: no limit."""

    requests_per_minute: int | None = None
    images_per_minute: int | None = None
    upload_bytes_per_day: int | None = None


@dataclass(frozen=True)
class Policy:
    """So many units in each window."""

    limit: Limit
    quota: int
    window_seconds: int

    @classmethod
    def of(cls, limit: Limit, own: Rates, settings: Settings) -> Policy | None:
        """None where there is no limit."""
        name, window_seconds = _RATES[limit]
        mine = getattr(own, name)
        quota = getattr(settings, name) if mine is None else mine
        return cls(limit, quota, window_seconds) if quota else None


_RATES = {
    Limit.REQUESTS: ("requests_per_minute", 60),
    Limit.IMAGES: ("images_per_minute", 60),
    Limit.UPLOAD_BYTES: ("upload_bytes_per_day", 86400),
}


@dataclass(frozen=True)
class Standing:
    """Where a customer stands: what is left, and in how long all of it is there again. Refused: the wait until what was
    asked for would be there; 0 where it was taken.
    """

    policy: Policy
    remaining: int
    reset_seconds: float
    wait_seconds: float


class RateLimiter:
    """Threads may share it. It connects when it is first needed, and waits for Redis `patience_seconds` at most."""

    def __init__(self, redis_url: str, patience_seconds: float, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._redis = redis.Redis.from_url(
            redis_url.replace("redis+socket://", "unix://", 1),
            socket_timeout=patience_seconds,
            socket_connect_timeout=patience_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._script = self._redis.register_script(_TAKE)
        self._pause_seconds = pause_seconds
        self._guard = Lock()
        self._is_away = False
        self._next_try = 0.0

    def take(
        self, customer_id: UUID, policy: Policy, amount: int, *, at_seconds: float | None = None
    ) -> Standing | None:
        """Of what the customer may ask for; a negative amount is given back. None where Redis does not answer, which is
        waited for once and then not for a while. `at_seconds` stands for Redis's clock.
        """
        if not self._may_ask():
            return None
        key = f"bpt:rate:{policy.limit}:{customer_id.hex}"
        now = "" if at_seconds is None else round(at_seconds * 1_000_000)
        try:
            wait, remaining, reset = self._script(
                keys=[key], args=[policy.quota, policy.window_seconds * 1_000_000, amount, now]
            )
        except (redis.RedisError, OSError) as error:
            self._went_away(error)
            return None
        self._is_away = False
        return Standing(policy, remaining, reset / 1_000_000, wait / 1_000_000)

    def close(self) -> None:
        self._redis.close()

    def _may_ask(self) -> bool:
        """While Redis is away one asks now and then, and the others do not wait."""
        if not self._is_away:
            return True
        with self._guard:
            if time.monotonic() < self._next_try:
                return False
            self._next_try = time.monotonic() + self._pause_seconds
            return True

    def _went_away(self, error: Exception) -> None:
        with self._guard:
            self._next_try = time.monotonic() + self._pause_seconds
            if not self._is_away:
                logger.warning("rate limits are not held: Redis does not answer", extra={"reason": str(error)})
            self._is_away = True
