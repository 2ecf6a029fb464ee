"""Aliases of prompt sets: look, move, roll back, remove, and the history of it all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import AwareDatetime

from api import schemas
from api.deps import After, Limit, PromptsReadSession, PromptsWriteSession, require
from api.idempotency import OnceRoute
from api.problems import responses
from bpt_store import aliases, ids, logs, prompt_sets
from bpt_store.customers import Identity, Scope
from bpt_store.errors import NotFound

router = APIRouter(prefix="/v1/prompt-sets/{name}/aliases", tags=["prompt-sets"], route_class=OnceRoute)

AliasName = Annotated[str, Path(pattern=f"^{prompt_sets.NAME_PATTERN}$", examples=["production"])]
Mover = Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))]


@router.get("", summary="List the aliases of a prompt set, by name", responses=responses("not_found"))
def list_prompt_set_aliases(name: str, session: PromptsReadSession) -> schemas.Page[schemas.Alias]:
    # One page always holds them all: see aliases.MOST_ALIASES.
    rows = aliases.of_prompt_set(session, prompt_sets.get(session, name).id)
    return schemas.Page(data=[schemas.Alias.of(name, row) for row in rows], has_more=False, next_cursor=None)


@router.get("/{alias}", summary="Show where an alias points, or pointed at a time", responses=responses("not_found"))
def get_prompt_set_alias(
    name: str,
    alias: AliasName,
    session: PromptsReadSession,
    as_of: Annotated[AwareDatetime | None, Query(description="RFC 3339; absent: now")] = None,
) -> schemas.Alias:
    prompt_set = prompt_sets.get(session, name)
    if as_of is None:
        return schemas.Alias.of(name, aliases.get(session, prompt_set.id, alias))
    version, since = aliases.as_of(session, prompt_set.id, alias, as_of)
    return schemas.Alias(prompt_set=name, alias=alias, version=version, moved_at=since)


@router.put(
    "/{alias}",
    summary="Point an alias at a version, from the very next prediction on; it is made if absent",
    responses=responses("not_found", "alias_moved", "alias_limit", "alias_reserved"),
)
def move_prompt_set_alias(
    name: str, alias: AliasName, body: schemas.AliasTarget, session: PromptsWriteSession, mover: Mover
) -> schemas.Alias:
    checked = "expected_version" in body.model_fields_set
    row = aliases.move(
        session,
        prompt_sets.get(session, name).id,
        alias,
        body.version,
        actor=ids.public(ids.KEY, mover.key_id),
        expected_version=body.expected_version if checked else aliases.ANY,
        request_id=logs.request_id.get(),
    )
    return schemas.Alias.of(name, row)


@router.post(
    "/{alias}/rollback",
    summary="Move an alias back to the version before its last move; twice is where it began",
    responses=responses("not_found", "alias_no_history"),
)
def rollback_prompt_set_alias(name: str, alias: AliasName, session: PromptsWriteSession, mover: Mover) -> schemas.Alias:
    actor = ids.public(ids.KEY, mover.key_id)
    prompt_set = prompt_sets.get(session, name)
    row = aliases.rollback(session, prompt_set.id, alias, actor=actor, request_id=logs.request_id.get())
    return schemas.Alias.of(name, row)


@router.delete(
    "/{alias}", status_code=204, summary="Remove an alias; its history stays", responses=responses("not_found")
)
def remove_prompt_set_alias(name: str, alias: AliasName, session: PromptsWriteSession, mover: Mover) -> None:
    actor = ids.public(ids.KEY, mover.key_id)
    prompt_set = prompt_sets.get(session, name)
    aliases.remove(session, prompt_set.id, alias, actor=actor, request_id=logs.request_id.get())


@router.get(
    "/{alias}/history", summary="List the moves of an alias: who, when, from, to", responses=responses("not_found")
)
def list_prompt_set_alias_moves(
    name: str, alias: AliasName, session: PromptsReadSession, limit: Limit = 20, after: After = None
) -> schemas.Page[schemas.AliasMove]:
    prompt_set = prompt_sets.get(session, name)
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 10):
        raise NotFound(f"there is no move {after!r}")
    number = int(after) if after else None
    rows, has_more = aliases.history(session, prompt_set.id, alias, after=number, limit=limit)
    data = [schemas.AliasMove.of(row) for row in rows]
    return schemas.Page(data=data, has_more=has_more, next_cursor=str(data[-1].number) if has_more else None)
