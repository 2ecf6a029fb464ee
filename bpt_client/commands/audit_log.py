"""`bpt audit-log`: who changed what."""

from __future__ import annotations

import json as json_module
from datetime import datetime
from typing import Annotated, Any

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.terminal import first, show_json, show_table


def audit_log(
    context: typer.Context,
    customer: Annotated[str | None, typer.Option(help="With an administrator's key: whose (cus_...).")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as dataset.deleted.")] = None,
    resource: Annotated[str | None, typer.Option(help="Only about this one, by its id.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this key (key_...).")] = None,
    since: Annotated[datetime | None, typer.Option(help="Local time; not before.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Local time; before.")] = None,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List what was changed, by which key and request, newest first."""
    times = {"since": since, "until": until}
    local = {name: None if time is None else time.astimezone() for name, time in times.items()}
    with connect(context) as client:
        found = first(client.audit_log(customer, action=action, resource=resource, actor=actor, **local), limit)
    if json:
        show_json(found)
        return
    rows = [
        (entry.at, entry.action, entry.resource, _facts(entry.before), _facts(entry.after), entry.actor)
        for entry in found
    ]
    show_table(("at", "action", "resource", "before", "after", "key"), rows)


def _facts(given: dict[str, Any] | None) -> str | None:
    return " ".join(f"{name}={json_module.dumps(value)}" for name, value in given.items()) if given else None
