"""Following a job over connections that do not hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bpt_client import errors
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("bpt_client.following._RECONNECT_SECONDS", (0.02, 0.1))
    with Client(server.url, "bpt_key", timeout=5) as client:
        yield client


def test_events_come_once_each_though_every_connection_breaks(server: Server, client: Client) -> None:
    one, two, three = (server.event(number, epoch=number, epochs=3) for number in (1, 2, 3))
    last = server.event(4, "state", attempt=2, state="succeeded")
    server.will(
        server.events(one, two, cut=True),  # breaks off
        server.raw(cut=True),  # the service is being restarted
        server.json({}, 503),
        server.events(),  # ends in order, without an end of the job
        server.events(two, three, last),  # tells one again
    )
    events = list(client.tuning_jobs.follow("job_1"))
    assert [each.number for each in events] == [1, 2, 3, 4]
    assert events[-1].is_last
    assert [each.headers["Last-Event-ID"] for each in server.received] == ["0", "2", "2", "2", "2"]
    assert {each.headers["Accept"] for each in server.received} == {"text/event-stream"}


def test_following_goes_on_behind_a_given_event(server: Server, client: Client) -> None:
    server.will(server.events(server.event(8, "state", state="cancelled")))
    assert [each.number for each in client.tuning_jobs.follow("job_1", after=7)] == [8]
    assert server.received[0].headers["Last-Event-ID"] == "7"


def test_a_job_that_was_tried_again_is_followed_past_its_old_end(server: Server, client: Client) -> None:
    states = ("running", "failed", "queued", "running", "paused", "queued", "running", "succeeded")
    server.will(server.events(*(server.event(number, "state", state=each) for number, each in enumerate(states, 1))))
    assert [each.state for each in client.tuning_jobs.follow("job_1")] == [*states]
    assert len(server.received) == 1


def test_messages_that_are_no_events_of_the_job_are_passed_over(server: Server, client: Client) -> None:
    stream = server.events(server.event(1, "state", state="failed"))
    assert stream.chunks is not None
    stream.chunks.insert(0, b': ping\n\ndata: {"news": 1}\n\n')
    server.will(stream)
    assert [each.state for each in client.tuning_jobs.follow("job_1")] == ["failed"]


def test_patience_with_a_service_that_is_away_has_an_end(server: Server, client: Client) -> None:
    server.will(server.events(server.event(1), cut=True), server.raw(cut=True))
    events = client.tuning_jobs.follow("job_1", patience_seconds=0.5)
    assert next(events).number == 1
    with pytest.raises(errors.ConnectionFailed):
        next(events)


@pytest.mark.parametrize(("status", "kind"), [(401, errors.Unauthenticated), (404, errors.NotFound)])
def test_a_refusal_is_not_tried_again(server: Server, client: Client, status: int, kind: type[errors.ApiError]) -> None:
    server.will(server.json({"code": "no", "detail": "no"}, status))
    with pytest.raises(kind):
        next(client.tuning_jobs.follow("job_1"))
    assert len(server.received) == 1


def test_an_answer_that_is_no_stream_is_unexpected(server: Server, client: Client) -> None:
    server.will(server.page())
    with pytest.raises(errors.UnexpectedAnswer, match="text/event-stream"):
        next(client.tuning_jobs.follow("job_1"))
