"""Going on from a prompt set that is there already: what of it must fit. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bpt_core.errors import InvalidSetting
from bpt_core.methods import Depth

MISMATCH = "continue_mismatch"
SETTINGS = ("method", "depth", "prompts", "rank", "pooling")  # they say which numbers there are, and what they do


def settings_of(method: Mapping[str, Any], pooling: str) -> dict[str, Any]:
    """The method and pooling of a prompt set, as its artifact has them -> the same as settings of a recipe."""
    depth = method.get("depth", Depth.SHALLOW)  # the first format knew no other
    rank = method["rank"] or 0
    return {"method": method["type"], "depth": depth, "prompts": method["prompts"], "rank": rank, "pooling": pooling}


def check(has: Mapping[str, Any], asked: Mapping[str, Any], searched: Collection[str]) -> None:
    """InvalidSetting `continue_mismatch` names what was asked for, or is to be searched, and the prompt set has not.

    `has` is what `settings_of` gives; what `asked` does not hold is the prompt set's own.
    """
    free = sorted({*SETTINGS} & {*searched})
    if free:
        raise InvalidSetting(f"tuning that goes on from a version has its {', '.join(free)}, not auto", code=MISMATCH)
    differing = [name for name in SETTINGS if name in asked and str(asked[name]) != str(has[name])]
    if differing:
        told = ", ".join(f"{name} is {has[name]} there and {asked[name]} here" for name in differing)
        raise InvalidSetting(f"tuning cannot go on from that version: {told}", code=MISMATCH)
