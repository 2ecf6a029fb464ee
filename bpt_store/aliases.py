"""Aliases: names such as `production` that point at a version of a prompt set, and the history of their moves.

Every move holds the prompt set's row lock, so that moves come one after the other and their numbers have no gaps.
The number of its last move tells the state of an alias: it only ever rises, whatever versions come again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final
from uuid import UUID

from sqlalchemy import Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from bpt_store import audit, gates, ids, webhook_events
from bpt_store.audit import Action
from bpt_store.errors import Conflict, Invalid, LimitReached, NotFound
from bpt_store.models import AliasMove, PromptSet, PromptSetAlias, PromptSetVersion
from bpt_store.paging import page
from bpt_store.prompt_sets import LATEST, NAME_PATTERN, lock
from bpt_store.webhook_events import EventType

MOST_ALIASES = 100  # of one prompt set: whoever shows it shows all of them


class Expected(Enum):
    """What a caller can expect of an alias beside a version, or None for one that is not there yet."""

    ANY = "any"


ANY: Final = Expected.ANY


@dataclass(frozen=True)
class _By:
    """Who moves, as the history has it."""

    actor: str
    request_id: str | None
    override_reason: str | None = None


@dataclass(frozen=True)
class _Expectation:
    """What has to be so before an alias is touched."""

    version: int | Expected | None
    condition: Callable[[int | None], bool] | None

    def check(self, session: Session, prompt_set_id: UUID, alias: str, current: int | None) -> None:
        """The caller holds the lock. Conflict `alias_moved`, `precondition_failed`."""
        where = "does not exist" if current is None else f"is at version {current}"
        if self.version is not ANY and self.version != current:
            raise Conflict(f"the alias {alias!r} {where}, not as expected", code="alias_moved")
        if self.condition is not None:
            number = None if current is None else _last_number(session, prompt_set_id, alias)
            if not self.condition(number):
                after = "" if number is None else f" after move {number}"
                detail = f"the alias {alias!r} {where}{after}: the request's conditions do not hold"
                raise Conflict(detail, code="precondition_failed")


def move(
    session: Session,
    prompt_set_id: UUID,
    alias: str,
    version: int,
    *,
    actor: str,
    expected_version: int | Expected | None = ANY,
    condition: Callable[[int | None], bool] | None = None,
    override_reason: str | None = None,
    request_id: str | None = None,
) -> PromptSetAlias:
    """Point an alias at a version; it is made if absent, and nothing is written where it points there already.

    Conflict `alias_moved` if it is not at `expected_version` (None: it must not be there yet), `precondition_failed`
    if `condition` does not hold for the number of its last move (None: it is not there), `gate_not_passed` if the
    prompt set's gate is against it and there is no reason to override it, `version_quarantined`. NotFound for a version
    that is absent or archived, Invalid for a name no alias can have, LimitReached `alias_limit`.
    """
    _check_name(alias)
    prompt_set = lock(session, prompt_set_id)
    current = _version_of(session, prompt_set_id, alias)
    _Expectation(expected_version, condition).check(session, prompt_set_id, alias, current)
    if current is None:
        _check_number(session, prompt_set_id)
    _check_published(session, prompt_set_id, version)
    refusal = None if version == current else gates.refusal(session, prompt_set_id, alias, version)
    if refusal is not None and override_reason is None:
        raise Conflict(refusal, code="gate_not_passed")
    by = _By(actor, request_id, override_reason if refusal is not None else None)
    return _point(session, prompt_set, alias, current, version, by)


def rollback(
    session: Session,
    prompt_set_id: UUID,
    alias: str,
    *,
    actor: str,
    to_version: int | None = None,
    expected_version: int | Expected | None = ANY,
    condition: Callable[[int | None], bool] | None = None,
    request_id: str | None = None,
) -> PromptSetAlias:
    """Back to the version before the last move, by a move of its own: twice is where it began. Or to any version where
    the alias has been before. No gate is asked.

    Conflict `alias_no_history` where the last move made the alias, or it never was at `to_version`; `alias_moved`,
    `precondition_failed`, `version_quarantined` as for a move. NotFound if there is no such alias, or if the version is
    archived by now.
    """
    prompt_set = lock(session, prompt_set_id)
    current = get(session, prompt_set_id, alias).version
    _Expectation(expected_version, condition).check(session, prompt_set_id, alias, current)
    version = to_version
    if version is None:
        version = _before(session, prompt_set_id, alias)
        if version is None:
            raise Conflict(
                f"the alias {alias!r} was made at version {current} and not moved since", code="alias_no_history"
            )
    elif session.scalar(_moves(prompt_set_id, alias).where(AliasMove.to_version == version).limit(1)) is None:
        raise Conflict(f"the alias {alias!r} never was at version {version}", code="alias_no_history")
    _check_published(session, prompt_set_id, version)
    return _point(session, prompt_set, alias, current, version, _By(actor, request_id))


def remove(
    session: Session,
    prompt_set_id: UUID,
    alias: str,
    *,
    actor: str,
    condition: Callable[[int | None], bool] | None = None,
    request_id: str | None = None,
) -> None:
    """Its history stays, and goes on if an alias of that name is made again. Conflict `precondition_failed`."""
    prompt_set = lock(session, prompt_set_id)
    current = get(session, prompt_set_id, alias).version
    _Expectation(ANY, condition).check(session, prompt_set_id, alias, current)
    session.execute(
        delete(PromptSetAlias).where(PromptSetAlias.prompt_set_id == prompt_set_id, PromptSetAlias.name == alias)
    )
    _record(session, prompt_set, alias, current, None, _By(actor, request_id))


def get(session: Session, prompt_set_id: UUID, alias: str) -> PromptSetAlias:
    found = session.scalar(
        select(PromptSetAlias)
        .where(PromptSetAlias.prompt_set_id == prompt_set_id, PromptSetAlias.name == alias)
        # Under the lock only what is stored now counts, not what this session saw before.
        .execution_options(populate_existing=True)
    )
    if found is None:
        raise NotFound(f"there is no alias {alias!r}")
    return found


def state(session: Session, prompt_set_id: UUID, alias: str) -> tuple[PromptSetAlias, int]:
    """An alias and the number of its last move, both as of one moment. NotFound."""
    row = session.execute(
        select(PromptSetAlias, _number(prompt_set_id, alias).scalar_subquery())
        .where(PromptSetAlias.prompt_set_id == prompt_set_id, PromptSetAlias.name == alias)
        .execution_options(populate_existing=True)
    ).first()
    if row is None:
        raise NotFound(f"there is no alias {alias!r}")
    return row[0], row[1]


def of_prompt_set(session: Session, prompt_set_id: UUID) -> Sequence[PromptSetAlias]:
    """All, by name."""
    return session.scalars(
        select(PromptSetAlias).where(PromptSetAlias.prompt_set_id == prompt_set_id).order_by(PromptSetAlias.name)
    ).all()


def versions(session: Session, prompt_set_ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """{prompt set: {alias: version}}, for those prompt sets that have an alias."""
    rows = session.execute(
        select(PromptSetAlias.prompt_set_id, PromptSetAlias.name, PromptSetAlias.version)
        .where(PromptSetAlias.prompt_set_id.in_(prompt_set_ids))
        .order_by(PromptSetAlias.name)
    )
    found: dict[UUID, dict[str, int]] = {}
    for prompt_set_id, name, version in rows:
        found.setdefault(prompt_set_id, {})[name] = version
    return found


def history(
    session: Session, prompt_set_id: UUID, alias: str, *, after: int | None = None, limit: int = 20
) -> tuple[Sequence[AliasMove], bool]:
    """Moves, newest first -> (moves, whether there are more). NotFound for an alias that never was."""
    rows, has_more = page(session, _moves(prompt_set_id, alias), AliasMove.number, after, limit)
    if not rows and session.get(AliasMove, (prompt_set_id, alias, 1)) is None:
        raise NotFound(f"there never was an alias {alias!r}")
    return rows, has_more


def as_of(session: Session, prompt_set_id: UUID, alias: str, time: datetime) -> tuple[int, datetime]:
    """Where an alias was at a time -> (version, since when). NotFound where it was not there."""
    moves = _moves(prompt_set_id, alias).where(AliasMove.moved_at <= time)
    last = session.scalar(moves.order_by(AliasMove.number.desc()).limit(1))
    if last is None or last.to_version is None:
        raise NotFound(f"there was no alias {alias!r} at {time.isoformat()}")
    return last.to_version, last.moved_at


def _check_name(alias: str) -> None:
    if not re.fullmatch(NAME_PATTERN, alias):
        raise Invalid(f"an alias is lower-case letters, digits and . _ - within, at most 64: not {alias!r}")
    if alias == LATEST:
        raise Invalid(f"{LATEST!r} always means the newest version and cannot be moved", code="alias_reserved")


def _check_number(session: Session, prompt_set_id: UUID) -> None:
    """The caller holds the lock."""
    there = select(func.count()).where(PromptSetAlias.prompt_set_id == prompt_set_id)
    if session.scalars(there).one() >= MOST_ALIASES:
        raise LimitReached(f"a prompt set has at most {MOST_ALIASES} aliases", code="alias_limit")


def _moves(prompt_set_id: UUID, alias: str) -> Select[AliasMove]:
    return select(AliasMove).where(AliasMove.prompt_set_id == prompt_set_id, AliasMove.alias == alias)


def _number(prompt_set_id: UUID, alias: str) -> Select[int]:
    """Of the last move; 0 where there was none."""
    mine = AliasMove.prompt_set_id == prompt_set_id, AliasMove.alias == alias
    return select(func.coalesce(func.max(AliasMove.number), 0)).where(*mine)


def _last_number(session: Session, prompt_set_id: UUID, alias: str) -> int:
    return session.scalars(_number(prompt_set_id, alias)).one()


def _before(session: Session, prompt_set_id: UUID, alias: str) -> int | None:
    """Where it was before its last move."""
    return session.scalars(_moves(prompt_set_id, alias).order_by(AliasMove.number.desc()).limit(1)).one().from_version


def _check_published(session: Session, prompt_set_id: UUID, version: int) -> None:
    published = select(PromptSetVersion.version, PromptSetVersion.quarantined_at).where(
        PromptSetVersion.prompt_set_id == prompt_set_id,
        PromptSetVersion.version == version,
        PromptSetVersion.archived_at.is_(None),
    )
    found = session.execute(published).one_or_none()
    if found is None:
        raise NotFound(f"there is no version {version}, or it is archived")
    if found.quarantined_at is not None:
        raise Conflict(f"version {version} is in quarantine, and would serve nobody", code="version_quarantined")


def _version_of(session: Session, prompt_set_id: UUID, alias: str) -> int | None:
    return session.scalar(
        select(PromptSetAlias.version).where(
            PromptSetAlias.prompt_set_id == prompt_set_id, PromptSetAlias.name == alias
        )
    )


def _point(
    session: Session,
    prompt_set: PromptSet,
    alias: str,
    current: int | None,
    version: int,
    by: _By,
) -> PromptSetAlias:
    """The caller holds the lock and has looked where the alias is, and whether the version can be had."""
    if version == current:
        return get(session, prompt_set.id, alias)
    moved_at = _record(session, prompt_set, alias, current, version, by).moved_at
    place = {"version": version, "moved_at": moved_at}
    session.execute(
        insert(PromptSetAlias)
        .values(prompt_set_id=prompt_set.id, name=alias, customer_id=prompt_set.customer_id, **place)
        .on_conflict_do_update(index_elements=["prompt_set_id", "name"], set_=place)
    )
    return get(session, prompt_set.id, alias)


def _record(
    session: Session,
    prompt_set: PromptSet,
    alias: str,
    from_version: int | None,
    to_version: int | None,
    by: _By,
) -> AliasMove:
    """The caller holds the lock, so numbers have no gaps."""
    moved = AliasMove(
        prompt_set_id=prompt_set.id,
        alias=alias,
        number=_last_number(session, prompt_set.id, alias) + 1,
        customer_id=prompt_set.customer_id,
        from_version=from_version,
        to_version=to_version,
        actor=by.actor,
        request_id=by.request_id,
        override_reason=by.override_reason,
    )
    session.add(moved)
    session.flush()
    action = Action.ALIAS_REMOVED if to_version is None else Action.ALIAS_MOVED
    resource = ids.public(ids.PROMPT_SET, prompt_set.id)
    overridden = {"gate_overridden": True} if by.override_reason is not None else {}
    after = {"version": to_version, **overridden}
    audit.record(session, action, resource, before={"version": from_version}, after=after)
    told = {"id": resource, "name": prompt_set.name, "alias": alias}
    move = {"from": from_version, "to": to_version}
    webhook_events.emit(session, prompt_set.customer_id, EventType.ALIAS_MOVED, {**told, **move})
    return moved
