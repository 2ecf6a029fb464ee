"""Who asks: the API key of a request, looked up once, and before a body is read."""

# No postponed annotations here: FastAPI must see those of methods, too.

from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

from fastapi import Depends, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.problems import Problem
from api.rate_limits import RateLimits
from api.turns import OneTurnRoute
from bpt_store import customers
from bpt_store.customers import Identity, Scope
from bpt_store.db import Database
from bpt_store.errors import Unauthenticated
from bpt_store.rate_limits import Limit

_bearer = HTTPBearer(auto_error=False, description="an API key: bpt_<id>_<secret>")

CredentialsDep = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


async def _identity(request: Request, credentials: CredentialsDep) -> Identity:
    """Looked up once for a request."""
    if credentials is None:
        raise Unauthenticated("an API key is needed: Authorization: Bearer bpt_...")
    found: Identity | None = getattr(request.state, "identity", None)
    if found is None:
        found = request.state.identity = await run_in_threadpool(_authenticate, request, credentials.credentials)
    return found


def _authenticate(request: Request, token: str) -> Identity:
    """Whoever asks has made a request, whether it is refused or not. RateLimited."""
    database: Database = request.app.state.services.database
    rate_limits: RateLimits = request.app.state.services.rate_limits
    with database.lookup() as session:
        identity = customers.authenticate(session, token)
    rate_limits.take(request, identity, Limit.REQUESTS, 1)
    return identity


IdentityDep = Annotated[Identity, Depends(_identity)]


class Required:
    """A dependency that gives the caller's identity if its key has `scope`."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request, credentials: CredentialsDep) -> Identity:
        identity = await _identity(request, credentials)
        if self._scope not in identity.scopes:
            raise Problem("insufficient_scope", f"the API key lacks the scope {self._scope}")
        return identity

    async def check(self, request: Request) -> None:
        """What FastAPI would do with it, before it does."""
        await self(request, await _bearer(request))


async def token_of(request: Request) -> str:
    """Of a request that has been found to carry one."""
    credentials = await _bearer(request)
    assert credentials is not None
    return credentials.credentials


class KeyFirstRoute(OneTurnRoute):
    """FastAPI reads a body first and looks at dependencies then; here nobody without a key has his body looked at."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        required = [call for call in _calls(self.dependant) if isinstance(call, Required)]

        async def handle_after_key(request: Request) -> Response:
            for each in required:
                await each.check(request)
            return await handle(request)

        return handle_after_key


def _calls(dependant: Dependant) -> Iterator[object]:
    """All that a route depends on, directly or not."""
    for each in dependant.dependencies:
        yield each.call
        yield from _calls(each)
