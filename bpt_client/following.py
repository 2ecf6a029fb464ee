"""What jobs of every kind have in common: following their events, waiting for their end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from bpt_client import sse
from bpt_client.errors import ConnectionFailed, ServerError, TooManyRequests, UnexpectedAnswer, WaitedTooLong
from bpt_client.models import JobEvent, parse
from bpt_client.transport import Transport, deadline

_POLL_SECONDS = 0.5
_SILENCE_SECONDS = 60.0  # a stream without a byte for so long is opened anew: the other end may be gone
_RECONNECT_SECONDS = (0.2, 5.0)  # the first pause, the longest


class Job(Protocol):
    @property
    def state(self) -> str: ...

    @property
    def is_terminal(self) -> bool: ...


AnyJob = TypeVar("AnyJob", bound=Job)


def follow(transport: Transport, path: str, after: int, patience_seconds: float) -> Iterator[JobEvent]:
    """Events as they happen, those of the past first, each exactly once; ends with the job.

    A connection that breaks, also by a restart of the service, is made again and goes on behind the last
    event seen. ConnectionFailed or the service's own ServerError only when no connection could be had for
    `patience_seconds`.
    """
    lost_at: float | None = None
    has_ended = False
    pause, longest = _RECONNECT_SECONDS
    while True:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Last-Event-ID": str(after)}
        try:
            with transport.stream(path, headers, _SILENCE_SECONDS) as chunks:
                lost_at = None
                for message in sse.messages(chunks):
                    event = _event(message)
                    if event is None or event.number <= after:
                        continue
                    after, pause = event.number, _RECONNECT_SECONDS[0]
                    yield event
                    has_ended = event.is_last
        except (ConnectionFailed, ServerError, TooManyRequests) as error:
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if now - lost_at >= patience_seconds:
                raise
            wished = 0.0 if isinstance(error, ConnectionFailed) else error.retry_after_seconds or 0.0
            time.sleep(min(max(pause, wished), patience_seconds))
        else:
            # The service closes the stream behind the end; of a job that was tried again there is more behind it.
            if has_ended:
                return
            # A stream may end early without an error, say when the service is restarted in order.
            time.sleep(pause)
        pause = min(2 * pause, longest)


def ended(get: Callable[[str], AnyJob], job_id: str, timeout: float | None) -> AnyJob:
    """The job once it has ended, however it did. WaitedTooLong after `timeout` seconds."""
    end = deadline(timeout)
    while not (job := get(job_id)).is_terminal:
        if time.monotonic() >= end:
            raise WaitedTooLong(f"job {job_id} is still {job.state} after {timeout} s")
        time.sleep(_POLL_SECONDS)
    return job


def _event(message: sse.Message) -> JobEvent | None:
    """None for a message that is no event of a job, which a newer service might send."""
    try:
        body = json.loads(message.data)
    except ValueError as error:
        raise UnexpectedAnswer(f"an event that is not JSON: {message.data:.100}") from error
    if not isinstance(body, dict) or "number" not in body:
        return None
    return parse(JobEvent, body)
