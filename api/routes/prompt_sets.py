"""Prompt sets: make, look, label, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import After, Limit, PromptsReadSession, PromptsWriteSession, customer_of, require
from api.idempotency import OnceRoute
from api.problems import responses
from api.prompt_set_schemas import LabelChange, MetadataFilter, PromptSet, PromptSetCreate, wanted
from api.schemas import Page
from bpt_store import aliases, audit, ids, models, prompt_sets
from bpt_store.audit import Action
from bpt_store.customers import Identity, Scope
from bpt_store.paging import page

router = APIRouter(prefix="/v1/prompt-sets", tags=["prompt-sets"], route_class=OnceRoute)


@router.post(
    "",
    status_code=201,
    summary="Make an empty prompt set; a tuning job makes the one it names by itself",
    responses=responses("name_taken"),
)
def create_prompt_set(
    body: PromptSetCreate,
    response: Response,
    identity: Annotated[Identity, Depends(require(Scope.PROMPTS_WRITE))],
    session: PromptsWriteSession,
) -> PromptSet:
    row = prompt_sets.create(session, customer_of(identity), body.name, body.label())
    audit.record(session, Action.SET_CREATED, ids.public(ids.PROMPT_SET, row.id))
    response.headers["Location"] = f"/v1/prompt-sets/{row.name}"
    return PromptSet.of(row, None, {})


@router.get("", summary="List prompt sets", responses=responses("not_found"))
def list_prompt_sets(
    session: PromptsReadSession, limit: Limit = 20, after: After = None, metadata: MetadataFilter = None
) -> Page[PromptSet]:
    cursor = ids.parse(ids.PROMPT_SET, after) if after else None
    query = select(models.PromptSet).where(models.PromptSet.custom.contains(wanted(metadata)))
    rows, has_more = page(session, query, models.PromptSet.id, cursor, limit)
    shown = [row.id for row in rows]
    newest, named = prompt_sets.newest_versions(session, shown), aliases.versions(session, shown)
    data = [PromptSet.of(row, newest.get(row.id), named.get(row.id, {})) for row in rows]
    return Page(data=data, has_more=has_more, next_cursor=data[-1].id if has_more else None)


@router.get("/{name}", summary="Show a prompt set", responses=responses("not_found"))
def get_prompt_set(name: str, session: PromptsReadSession) -> PromptSet:
    return _shown(session, prompt_sets.get(session, name))


@router.patch("/{name}", summary="Change the description or the metadata", responses=responses("not_found"))
def change_prompt_set(name: str, body: LabelChange, session: PromptsWriteSession) -> PromptSet:
    row = prompt_sets.get(session, name)
    body.label().put_on(row)
    audit.record(session, Action.SET_CHANGED, ids.public(ids.PROMPT_SET, row.id))
    return _shown(session, row)


@router.delete(
    "/{name}",
    status_code=204,
    summary="Delete a prompt set that has no alias, with all its versions",
    responses=responses("not_found", "prompt_set_in_use"),
)
def delete_prompt_set(name: str, session: PromptsWriteSession) -> None:
    row = prompt_sets.delete(session, name)
    audit.record(session, Action.SET_DELETED, ids.public(ids.PROMPT_SET, row.id))


def _shown(session: Session, row: models.PromptSet) -> PromptSet:
    newest, named = prompt_sets.newest_versions(session, [row.id]), aliases.versions(session, [row.id])
    return PromptSet.of(row, newest.get(row.id), named.get(row.id, {}))
