"""Aliases of prompt sets: look, move, roll back, remove, and the history of it all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from sqlalchemy.orm import Session

from api.conditions import Conditions
from api.deps import After, Limit, PromptsReadSession, PromptsWriteSession, numbered, require
from api.idempotency import OnceRoute
from api.problems import responses
from api.prompt_set_schemas import Alias, AliasMove, AliasRollback, AliasTarget
from api.schemas import Moment, Page
from bpt_store import aliases, ids, logs, prompt_sets
from bpt_store.customers import Identity, Scope
from bpt_store.models import PromptSet

router = APIRouter(prefix="/v1/prompt-sets/{name}/aliases", tags=["prompt-sets"], route_class=OnceRoute)

AliasName = Annotated[str, Path(pattern=f"^{prompt_sets.NAME_PATTERN}$", examples=["production"])]
Mover = Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))]
ConditionsDep = Annotated[Conditions, Depends()]


@router.get("", summary="List the aliases of a prompt set, by name", responses=responses("not_found"))
def list_prompt_set_aliases(name: str, session: PromptsReadSession) -> Page[Alias]:
    # One page always holds them all: see aliases.MOST_ALIASES.
    rows = aliases.of_prompt_set(session, prompt_sets.get(session, name).id)
    return Page(data=[Alias.of(name, row) for row in rows], has_more=False, next_cursor=None)


@router.get("/{alias}", summary="Show where an alias points, or pointed at a time", responses=responses("not_found"))
def get_prompt_set_alias(
    name: str,
    alias: AliasName,
    session: PromptsReadSession,
    response: Response,
    as_of: Annotated[Moment | None, Query(description="RFC 3339; absent: now")] = None,
) -> Alias:
    prompt_set = prompt_sets.get(session, name)
    if as_of is None:
        return _shown(response, session, prompt_set, alias)
    version, since = aliases.as_of(session, prompt_set.id, alias, as_of)
    return Alias(prompt_set=name, alias=alias, version=version, moved_at=since)


@router.put(
    "/{alias}",
    summary="Point an alias at a version, from the very next prediction on; it is made if absent",
    responses=responses(
        *("not_found", "alias_moved", "alias_limit", "alias_reserved", "gate_not_passed", "precondition_failed"),
        "version_quarantined",
    ),
)
def move_prompt_set_alias(
    name: str,
    alias: AliasName,
    body: AliasTarget,
    session: PromptsWriteSession,
    mover: Mover,
    conditions: ConditionsDep,
    response: Response,
) -> Alias:
    prompt_set = prompt_sets.get(session, name)
    aliases.move(
        session,
        prompt_set.id,
        alias,
        body.version,
        actor=ids.public(ids.KEY, mover.key_id),
        expected_version=body.expected_version if "expected_version" in body.model_fields_set else aliases.ANY,
        condition=_condition(conditions),
        override_reason=body.override.reason if body.override else None,
        request_id=logs.request_id.get(),
    )
    return _shown(response, session, prompt_set, alias)


@router.post(
    "/{alias}/rollback",
    summary="Move an alias back to where it has been, without asking the gate: twice is where it began",
    responses=responses("not_found", "alias_moved", "alias_no_history", "precondition_failed", "version_quarantined"),
)
def rollback_prompt_set_alias(
    name: str,
    alias: AliasName,
    session: PromptsWriteSession,
    mover: Mover,
    conditions: ConditionsDep,
    response: Response,
    body: Annotated[AliasRollback | None, Body()] = None,
) -> Alias:
    prompt_set = prompt_sets.get(session, name)
    asked = body or AliasRollback()
    aliases.rollback(
        session,
        prompt_set.id,
        alias,
        actor=ids.public(ids.KEY, mover.key_id),
        to_version=asked.to_version,
        expected_version=aliases.ANY if asked.expected_version is None else asked.expected_version,
        condition=_condition(conditions),
        request_id=logs.request_id.get(),
    )
    return _shown(response, session, prompt_set, alias)


@router.delete(
    "/{alias}",
    status_code=204,
    summary="Remove an alias; its history stays",
    responses=responses("not_found", "precondition_failed"),
)
def remove_prompt_set_alias(
    name: str, alias: AliasName, session: PromptsWriteSession, mover: Mover, conditions: ConditionsDep
) -> None:
    aliases.remove(
        session,
        prompt_sets.get(session, name).id,
        alias,
        actor=ids.public(ids.KEY, mover.key_id),
        condition=_condition(conditions),
        request_id=logs.request_id.get(),
    )


@router.get(
    "/{alias}/history", summary="List the moves of an alias: who, when, from, to", responses=responses("not_found")
)
def list_prompt_set_alias_moves(
    name: str, alias: AliasName, session: PromptsReadSession, limit: Limit = 20, after: After = None
) -> Page[AliasMove]:
    prompt_set = prompt_sets.get(session, name)
    cursor = numbered(after, "move")
    rows, has_more = aliases.history(session, prompt_set.id, alias, after=cursor, limit=limit)
    data = [AliasMove.of(row) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=str(data[-1].number) if has_more else None)


def _condition(conditions: Conditions) -> Callable[[int | None], bool]:
    return lambda number: conditions.hold(None if number is None else str(number))


def _shown(response: Response, session: Session, prompt_set: PromptSet, alias: str) -> Alias:
    """With its ETag: the number of its last move."""
    row, number = aliases.state(session, prompt_set.id, alias)
    response.headers["ETag"] = f'"{number}"'
    return Alias.of(prompt_set.name, row)
