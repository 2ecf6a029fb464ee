"""Settings that the service finds itself: trials with different values, halved again and again by what they score.

Eight trials train side by side; after an eighth, a quarter and a half of the epochs the better half goes on, each on
the schedule of the whole run. All of it costs 8/8 + 4/8 + 2/4 + 1/2 = 2.5 runs' epochs above the first prompted block.
Needs no torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from bpt_core.errors import InvalidSetting
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import Recipe

RANGES: Mapping[str, tuple[float, float]] = {
    "learning_rate": (1e-3, 1.0),
    "weight_decay": (1e-5, 1e-1),
    "head_weight_decay": (1e-3, 1.0),
}
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "rank": (0.25, 0.5, 0.75, 1.0),  # of the number of prompts
    "depth": tuple(Depth),
    "method": (Method.BPT_BILINEAR, Method.BPT_FWHITEN, Method.BPT_TWHITEN, Method.VPT, Method.SPT),
}
RUNGS = (1 / 8, 1 / 4, 1 / 2)  # shares of the epochs after which the better half goes on


@dataclass(frozen=True)
class Search:
    """Which settings of a recipe are to be found, among how many trials.

    The first trial is the recipe as it stands; the others draw numbers log-uniformly from `RANGES` and choices from
    `CHOICES`, each setting spread evenly over the trials (a Latin hypercube), from the recipe's seed.
    """

    settings: tuple[str, ...]
    trials: int = 8

    def __post_init__(self) -> None:
        unknown = sorted(set(self.settings) - {*RANGES, *CHOICES})
        if unknown or not self.settings:
            raise InvalidSetting(
                f"only {', '.join([*RANGES, *CHOICES])} can be auto, not {', '.join(unknown) or 'none'}"
            )
        if not 2 <= self.trials <= 64:
            raise InvalidSetting(f"trials must lie between 2 and 64, not {self.trials}")

    def recipes(self, recipe: Recipe) -> tuple[Recipe, ...]:
        """The trials' recipes. InvalidSetting where the method has no such setting."""
        if not recipe.method.has_prompts and set(self.settings) & {"rank", "depth", "method"}:
            raise InvalidSetting("a linear probe has no rank, depth or other method to choose")
        if "rank" in self.settings and not recipe.method.has_rank and "method" not in self.settings:
            raise InvalidSetting(f"{recipe.method} has no rank to choose")
        drawn = random.Random(recipe.seed)  # noqa: S311 - trials, not secrets
        others = self.trials - 1
        columns = {name: _spread(name, others, drawn) for name in sorted(self.settings)}
        rows = ({name: column[row] for name, column in columns.items()} for row in range(others))
        return (recipe, *(_with(recipe, row) for row in rows))

    def survivors(self, epochs: int) -> dict[int, int]:
        """Epoch -> how many trials go on after it; the last entry leaves one."""
        counts: dict[int, int] = {}
        left = self.trials
        for share in RUNGS:
            left = math.ceil(left / 2)
            counts[max(1, math.floor(share * epochs))] = left
        return {**counts, max(counts): 1}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Search:
        return cls(tuple(values["settings"]), values["trials"])


def _spread(name: str, count: int, drawn: random.Random) -> list[Any]:
    """One value from each of `count` equal parts of the setting's range, shuffled."""
    shares = [(part + drawn.random()) / count for part in range(count)]
    drawn.shuffle(shares)
    if name in CHOICES:
        options = CHOICES[name]
        return [options[int(share * len(options))] for share in shares]
    low, high = RANGES[name]
    return [low * (high / low) ** share for share in shares]


def _with(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with these values, and with what then no longer fits the method or depth put right."""
    method, depth = values.get("method", recipe.method), values.get("depth", recipe.depth)
    rank = recipe.rank or max(1, recipe.prompts * 3 // 4)
    if "rank" in values:
        rank = max(1, round(values["rank"] * recipe.prompts))
    fitting: dict[str, Any] = {"method": method, "depth": depth, "rank": rank if method.has_rank else 0}
    if (method, depth) != (recipe.method, recipe.depth):
        whitened = method.has_rank and depth is not Depth.SHALLOW
        fitting["start"] = Start.WHITENED if whitened else Start.RANDOM
    numbers = {name: value for name, value in values.items() if name in RANGES}
    return replace(recipe, **fitting, **numbers)
