"""The events of a job of any kind: a list, or a live stream that ends with the job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.deps import Limit, Services, ServicesDep, customer_of
from api.problems import responses
from api.schemas import Page
from api.tuning_schemas import JobEvent
from bpt_store import ids, jobs
from bpt_store.customers import Identity
from bpt_store.models import JobKind, JobState

EVENTS_PER_READ = 500
PING_SECONDS = 15

# Of every operation that replies with `of_job`, beside its response_model.
RESPONSES: dict[int | str, dict[str, Any]] = {
    **responses("not_found"),
    200: {
        "description": "events in order; the stream ends with the job and resumes after Last-Event-ID",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}


@dataclass(frozen=True)
class Asked:
    """What a request for events says; a dependency."""

    request: Request
    services: ServicesDep
    after: Annotated[int, Query(ge=0, lt=2**31, description="only events with a greater number")] = 0
    limit: Limit = 100
    last_event_id: Annotated[int | None, Header(ge=0, lt=2**31)] = None
    accept: Annotated[str, Header()] = ""


AskedDep = Annotated[Asked, Depends()]


async def of_job(asked: Asked, identity: Identity, kind: JobKind, job_id: str) -> object:
    """Events with a number above `after`; a stream for `Accept: text/event-stream`. NotFound."""
    read = _Reader(asked.services, customer_of(identity), ids.parse(ids.JOB, job_id), kind)
    after, limit = asked.after, asked.limit
    if "text/event-stream" in asked.accept:
        await run_in_threadpool(read, 0, 1)  # 404 before the stream begins
        after = asked.last_event_id if asked.last_event_id is not None else after
        return EventSourceResponse(_stream(asked.request, read, asked.services.settings.events_poll_seconds, after))
    events, _ = await run_in_threadpool(read, after, limit + 1)
    data, has_more = events[:limit], len(events) > limit
    return Page(data=data, has_more=has_more, next_cursor=str(data[-1].number) if has_more else None)


class _Reader:
    def __init__(self, services: Services, customer_id: UUID, job_id: UUID, kind: JobKind) -> None:
        self._services, self._customer_id, self._job_id, self._kind = services, customer_id, job_id, kind

    def __call__(self, after: int, limit: int) -> tuple[list[JobEvent], JobState]:
        with self._services.database.customer(self._customer_id) as session:
            # The state first: events of a state that is terminal now are all there when they are read.
            state = jobs.get(session, self._job_id, self._kind).state
            events = jobs.events_after(session, self._job_id, after, limit)
            return [JobEvent.of(event) for event in events], state


async def _stream(request: Request, read: _Reader, pause_seconds: float, after: int) -> AsyncIterator[bytes]:
    quiet_seconds = 0.0
    while not await request.is_disconnected():
        events, state = await run_in_threadpool(read, after, EVENTS_PER_READ)
        for event in events:
            after = event.number
            yield format_sse_event(
                data_str=json.dumps(event.model_dump(mode="json")), event=event.type, id=str(event.number)
            )
        if events:
            quiet_seconds = 0.0
            continue
        if state.is_terminal:
            return
        await asyncio.sleep(pause_seconds)
        quiet_seconds += pause_seconds
        if quiet_seconds >= PING_SECONDS:
            quiet_seconds = 0.0
            yield b": ping\n\n"
