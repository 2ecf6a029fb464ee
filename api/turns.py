"""Turns of threads: a request takes as few as it can to ask the database, since each costs about as much as a query.

FastAPI itself takes one to enter a transaction, one for the handler, one to check what it returned, and one to commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool


class OneTurnRoute(APIRoute):
    """A GET takes one turn, with the end of its transaction in it: it changes nothing, and what it returns is complete.

    Where that fails to be what it has to be, nothing is to be rolled back.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        if set(more.get("methods") or ()) == {"GET"} and not iscoroutinefunction(endpoint):
            endpoint = _in_one_turn(endpoint)
        super().__init__(path, endpoint, **more)


def _in_one_turn(handle: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:

    def show(**values: Any) -> Any:
        shown = handle(**values)
        for value in values.values():
            if isinstance(value, Session):
                value.commit()
        return shown

    @wraps(handle)
    async def show_in_thread(**values: Any) -> Any:
        return await run_in_threadpool(show, **values)

    return show_in_thread


@asynccontextmanager
async def transaction(opened: AbstractContextManager[Session], *, asks: bool) -> AsyncIterator[Session]:
    """`opened`, in a thread where it waits for the database: at the beginning if it `asks` something there and then, at
    the end unless the session was committed before.
    """
    session = await run_in_threadpool(opened.__enter__) if asks else opened.__enter__()
    try:
        yield session
    except BaseException as error:
        if not await _leave(opened, error):
            raise
    else:
        if session.in_transaction():
            await _leave(opened, None)
        else:
            opened.__exit__(None, None, None)


async def _leave(opened: AbstractContextManager[Session], error: BaseException | None) -> bool | None:
    told = (None, None, None) if error is None else (type(error), error, error.__traceback__)
    # Not in the queue for a thread, whose threads may all wait for the connection that this one gives back.
    return await to_thread.run_sync(opened.__exit__, *told, limiter=CapacityLimiter(1))
