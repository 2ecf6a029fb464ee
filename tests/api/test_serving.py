"""Serving: an answer that takes too long is given up, and so is one for a caller who has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from uuid import uuid4

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.types import Message

from api.engine import Serving
from api.problems import Problem
from api.rate_limits import RateLimits
from benchmarks.prompt_sets import random_prompt_set
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.engine import Wanted
from bpt_store.customers import Identity
from bpt_store.db import Database
from bpt_store.rate_limits import Rates
from bpt_store.settings import Settings
from tests.service import eventually


@pytest.fixture
def serving(settings: Settings, database: Database) -> Iterator[Serving]:
    registry = CollectorRegistry()
    rate_limits = RateLimits(settings, registry)
    serving = Serving(settings.model_copy(update={"predict_seconds": 0.3}), database, rate_limits, registry)
    yield serving
    serving.close()
    rate_limits.close()


def predict(serving: Serving, receive: Callable[[], Awaitable[Message]], fetch: Callable[[], PromptSet]) -> object:
    wanted = Wanted(uuid4().hex, DEFAULT_BACKBONE, fetch)
    request = Request({"type": "http"}, receive)
    identity = Identity(key_id=uuid4(), customer_id=uuid4(), scopes=frozenset(), rates=Rates())
    return asyncio.run(serving.predict(request, identity, [Image.new("RGB", (64, 64))], [[wanted]]))


async def stays() -> Message:
    await asyncio.sleep(3600)
    raise AssertionError


async def leaves() -> Message:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize(("receive", "code"), [(stays, "deadline_exceeded"), (leaves, "request_timeout")])
def test_what_nobody_can_wait_for_is_given_up(
    serving: Serving, receive: Callable[[], Awaitable[Message]], code: str
) -> None:
    fetched = threading.Event()

    def slow() -> PromptSet:
        fetched.wait(30)
        return random_prompt_set(load_backbone(DEFAULT_BACKBONE))

    with pytest.raises(Problem) as given_up:
        predict(serving, receive, slow)
    assert given_up.value.code == code
    fetched.set()


def test_it_is_ready_once_the_backbones_are_loaded(serving: Serving) -> None:
    assert not serving.is_ready
    serving.begin()
    eventually(lambda: serving.is_ready, what="loading the backbones")
