"""`bpt usage`: what was used, by the day."""

from __future__ import annotations

import sys
from datetime import date, datetime
from typing import Annotated

import typer

from bpt_client.commands.connection import JsonOption, LimitOption, connect
from bpt_client.terminal import first, show_json, show_table


def usage(
    context: typer.Context,
    customer: Annotated[
        str | None, typer.Option(help="With an administrator's key: only this one's (cus_...).")
    ] = None,
    since: Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="The first day (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="The last day (UTC).")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="All days as a table for spreadsheets.")] = False,
    limit: LimitOption = 100,
    json: JsonOption = False,
) -> None:
    """List images predicted, seconds of workers and stored bytes, the newest day first."""
    begin, end = _day(since), _day(until)
    with connect(context) as client:
        if csv:
            for piece in client.usage_csv(customer, first=begin, last=end):
                sys.stdout.write(piece)
            return
        found = first(client.usage(customer, first=begin, last=end), limit)
    if json:
        show_json(found)
        return
    rows = [
        (
            *(each.day, each.customer, each.online_images, each.batch_images),
            *(round(each.tuning_seconds), round(each.batch_seconds), each.stored_bytes),
        )
        for each in found
    ]
    names = ("day", "customer", "online images", "batch images", "tuning seconds", "batch seconds", "stored bytes")
    show_table(names, rows)


def _day(given: datetime | None) -> date | None:
    return None if given is None else given.date()
