"""What routes are given: who asks, a transaction limited to that customer, and the parts of the service."""

# No postponed annotations here: FastAPI must see those of the inner functions, which name local variables.

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request
from sqlalchemy.orm import Session

from api import turns
from api.idempotency import Once, OnceDep
from api.indexes import Indexes
from api.keys import Required, token_of
from api.rate_limits import RateLimits
from bpt_store import audit, logs
from bpt_store.audit import Actor
from bpt_store.customers import Identity, Scope
from bpt_store.db import Database
from bpt_store.errors import NotFound
from bpt_store.idempotency import Sender
from bpt_store.models import JobKind
from bpt_store.objects import Objects
from bpt_store.queue import Doorbell
from bpt_store.settings import Settings

_RING = "ring after commit"


@dataclass(frozen=True)
class Services:
    """Made once per process, in api/app.py."""

    settings: Settings
    database: Database
    objects: Objects
    indexes: Indexes
    doorbell: Doorbell
    rate_limits: RateLimits


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def _services(request: Request) -> Services:
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]


def require(scope: Scope) -> Required:
    """A dependency that gives the caller's identity if its key has `scope`."""
    return Required(scope)


def customer_of(identity: Identity) -> UUID:
    """Keys with customers' scopes always belong to a customer."""
    assert identity.customer_id is not None
    return identity.customer_id


def actor(identity: Identity) -> Actor:
    """As whom the audit log knows this request."""
    return Actor(identity.key_id, logs.request_id.get())


def customer_session(scope: Scope, *, shows_secret: bool = False) -> Callable[..., AsyncIterator[Session]]:
    """A dependency: one transaction for the caller's customer, committed before the reply leaves.

    A reply that `shows_secret` is given again to the same API key only.
    """

    async def open_session(
        request: Request, identity: Annotated[Identity, Depends(require(scope))], once: OnceDep
    ) -> AsyncIterator[Session]:
        customer_id = customer_of(identity)
        sender = None
        if once is not None:
            sender = Sender.customer(customer_id)
            if shows_secret:
                sender = Sender.customer_for_a_secret(customer_id, identity.key_id, await token_of(request))
        services = services_of(request)
        opened = _opened(services, services.database.customer(customer_id), identity, once, sender)
        async with turns.transaction(opened, asks=once is not None) as session:
            yield session

    return open_session


async def admin_session(
    request: Request, identity: Annotated[Identity, Depends(require(Scope.ADMIN))], once: OnceDep
) -> AsyncIterator[Session]:
    """One transaction that sees all customers."""
    sender = None if once is None else Sender.administrator(identity.key_id, await token_of(request))
    services = services_of(request)
    opened = _opened(services, services.database.system(), identity, once, sender)
    async with turns.transaction(opened, asks=once is not None) as session:
        yield session


@contextmanager
def _opened(
    services: Services,
    begun: AbstractContextManager[Session],
    identity: Identity,
    once: Once | None,
    sender: Sender | None,
) -> Iterator[Session]:
    with begun as session:
        audit.act_as(session, actor(identity))
        if once is not None and sender is not None:
            once.begin(session, sender)
        yield session
    ring(services, session)


def ring_after_commit(session: Session, kind: JobKind) -> None:
    session.info.setdefault(_RING, set()).add(kind)


def ring(services: Services, session: Session) -> None:
    """After the commit, for what was asked for in it."""
    for kind in session.info.get(_RING, ()):
        services.doorbell.ring(kind)


AdminSession = Annotated[Session, Depends(admin_session, scope="function")]
DatasetsReadSession = Annotated[Session, Depends(customer_session(Scope.DATASETS_READ), scope="function")]
DatasetsWriteSession = Annotated[Session, Depends(customer_session(Scope.DATASETS_WRITE), scope="function")]
JobsReadSession = Annotated[Session, Depends(customer_session(Scope.JOBS_READ), scope="function")]
JobsWriteSession = Annotated[Session, Depends(customer_session(Scope.JOBS_WRITE), scope="function")]
AuditReadSession = Annotated[Session, Depends(customer_session(Scope.AUDIT_READ), scope="function")]
PredictSession = Annotated[Session, Depends(customer_session(Scope.PREDICT), scope="function")]
PromptsReadSession = Annotated[Session, Depends(customer_session(Scope.PROMPTS_READ), scope="function")]
PromptsWriteSession = Annotated[Session, Depends(customer_session(Scope.PROMPTS_WRITE), scope="function")]
WebhooksReadSession = Annotated[Session, Depends(customer_session(Scope.WEBHOOKS_READ), scope="function")]
WebhooksWriteSession = Annotated[Session, Depends(customer_session(Scope.WEBHOOKS_WRITE), scope="function")]
WebhookSecretSession = Annotated[
    Session, Depends(customer_session(Scope.WEBHOOKS_WRITE, shows_secret=True), scope="function")
]

Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
After = Annotated[str | None, Query(max_length=100, description="the `next_cursor` of the page before")]


def numbered(after: str | None, noun: str, *, most_digits: int = 9) -> int | None:
    """A cursor that is the number of a `noun`. NotFound."""
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= most_digits):
        raise NotFound(f"there is no {noun} {after!r}")
    return int(after) if after else None
