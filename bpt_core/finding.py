"""One thing that is wrong with a dataset: what is said of it, and of which pictures or classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bpt_core.archive import Tally, printable
from bpt_core.pictures import Picture

GROUP_ITEMS = 10  # pictures of one group that an item names
_NAMES = 5  # classes that an explanation names

Group = tuple[list[Picture], dict[str, Any]]  # pictures, and what is said of them together


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    SERIOUS = "serious"


@dataclass(frozen=True)
class Finding:
    """Items are {"item": id, "entry": path, facts...}, groups {"items", "entries", "total", ...} of at most ten named,
    {"class": name, ...} or {"names": [...]}."""

    code: str
    severity: Severity
    explanation: str  # for the customer: what it is, how many, why it matters, what to do
    items: Tally
    pictures: frozenset[str] = frozenset()  # ids of all pictures concerned, also those that `items` has no room for
    share: float = 0.0  # of the pictures, or of the classes where it is about classes

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": self.severity.value,
            "explanation": self.explanation,
            "items": {"total": self.items.total, "items": self.items.items},
        }


def many(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def percent(share: float) -> str:
    return "under 0.1 %" if share < 0.001 else f"{share:.1%}".replace("%", " %")


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    return ", ".join(printable(name) for name in names[:_NAMES]) + more


def of_groups(code: str, severity: Severity, explanation: str, groups: Sequence[Group], share: float) -> Finding:
    items = Tally()
    for members, more in groups:
        shown = members[:GROUP_ITEMS]
        entries = [printable(picture.path) for picture in shown]
        items.add(items=[picture.id for picture in shown], entries=entries, total=len(members), **more)
    ids = frozenset(picture.id for members, _ in groups for picture in members)
    return Finding(code, severity, explanation, items, ids, share)


def of_classes(
    code: str, severity: Severity, explanation: str, items: Iterable[dict[str, Any]], share: float
) -> Finding:
    tally = Tally()
    for item in items:
        tally.add(**item)
    return Finding(code, severity, explanation, tally, share=share)
