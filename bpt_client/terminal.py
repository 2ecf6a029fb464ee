"""What the `bpt` command writes: tables for people, JSON for scripts, errors as one red line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

_WIDE = 400  # columns where no terminal sets a limit: a script must not get a cut-off id


def output() -> Console:
    return _console(sys.stdout.isatty())


def errors() -> Console:
    """Standard error, for errors and for what is no result."""
    return _console(sys.stderr.isatty(), stderr=True)


def fail(message: object) -> None:
    """One red line, whatever line breaks and control characters the message has."""
    errors().print(Text(f"error: {plain(message)}", style="bold red"), soft_wrap=True)


def plain(value: object) -> str:
    """Text from elsewhere as one line that cannot steer the terminal."""
    return "".join(each if each.isprintable() else " " for each in str(value))


def show_json(value: Any) -> None:
    """Dataclasses, and lists of them, as JSON with times in ISO 8601."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=_jsonable)
    sys.stdout.write("\n")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Cells are text, numbers, times or None; ready-made `Text` keeps its style."""
    console = output()
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    if not console.is_terminal:
        for column in table.columns:
            column.no_wrap = True
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    console.print(table)


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; facts that are None are left out."""
    known = [(name, value) for name, value in facts if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        output().print(Text.assemble((name.ljust(width), "bold"), "  ", cell(value)), soft_wrap=True)


def cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    return Text(plain(value))


def first(items: Iterator[T], limit: int) -> list[T]:
    """At most `limit` of them; says so on standard error where there are more."""
    found = list(islice(items, limit))
    if len(found) == limit and next(items, None) is not None:
        errors().print(Text(f"only the first {limit}; see --limit", style="dim"))
    return found


def percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def size(count: int | None) -> str | None:
    """Bytes for people, in powers of 1000."""
    if count is None:
        return None
    number, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"


def duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _console(is_terminal: bool, *, stderr: bool = False) -> Console:
    # highlight=False: numbers in a sentence need no colours, and markup=False: [names] are no tags.
    width = None if is_terminal else _WIDE
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def _jsonable(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")
