"""An alias that many move at once while others predict by it: nothing is lost, and no reply is of another time."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx

from benchmarks.prompt_sets import random_prompt_set
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from tests import archives
from tests.published import publish
from tests.service import Service

WRITERS, MOVES_EACH, READERS = 8, 125, 2


def test_a_thousand_moves_under_load_leave_a_gapless_history_that_every_reply_agrees_with(service: Service) -> None:
    customer = service.new_customer()
    backbone = load_backbone(DEFAULT_BACKBONE)
    name = publish(customer, *[random_prompt_set(backbone, depth=None, seed=seed) for seed in range(2 * WRITERS)])
    url = f"/v1/prompt-sets/{name}/aliases/production"
    image = {"data": base64.b64encode(archives.picture(0, 1)).decode()}
    ended = threading.Event()

    def move(writer: int) -> list[tuple[int, int]]:
        """Back and forth between two versions of its own -> (number of the move, version) as the replies say."""
        replies = []
        with customer.http() as http:
            for step in range(MOVES_EACH):
                reply = http.put(url, json={"version": 2 * writer + step % 2 + 1})
                assert reply.status_code == 200, reply.text
                replies.append((int(reply.headers["ETag"].strip('"')), reply.json()["version"]))
        return replies

    def predict(_: int) -> list[tuple[datetime, datetime, int]]:
        """-> when it was asked, when it was answered, by which version."""
        replies = []
        with customer.http() as http:
            while not ended.wait(0.1):
                before = datetime.now(UTC)
                reply = http.post("/v1/predictions", json={"images": [image], "prompt_sets": [f"{name}@production"]})
                assert reply.status_code == 200, reply.text
                replies.append((before, datetime.now(UTC), reply.json()["prompt_sets"][0]["version"]))
        return replies

    with customer.http() as http, ThreadPoolExecutor(WRITERS + READERS) as threads:
        assert http.put(url, json={"version": 2}).status_code == 200
        predicting = [threads.submit(predict, reader) for reader in range(READERS)]
        try:
            told = [each for made in threads.map(move, range(WRITERS)) for each in made]
        finally:
            ended.set()
        moves = history(http, url)

    assert [each["number"] for each in moves] == list(range(1, 2 + WRITERS * MOVES_EACH))
    assert [each["from_version"] for each in moves] == [None, *[each["to_version"] for each in moves[:-1]]]
    times = [datetime.fromisoformat(each["moved_at"]) for each in moves]
    assert times == sorted(times)
    assert sorted(told) == [(each["number"], each["to_version"]) for each in moves[1:]]
    replies = [reply for each in predicting for reply in each.result()]
    assert len(replies) > 20
    for before, after, version in replies:
        # A move counts from its commit on, which lies between its own time and that of the next one.
        unseen = [*times[2:], datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
        assert version in {
            each["to_version"]
            for each, begun, over in zip(moves, times, unseen, strict=True)
            if begun <= after and over >= before
        }


def history(http: httpx.Client, url: str) -> list[dict[str, Any]]:
    """All moves, oldest first."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = http.get(f"{url}/history", params={"limit": 100, **({"after": cursor} if cursor else {})}).json()
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found[::-1]
