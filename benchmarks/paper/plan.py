"""What is compared: configurations, the suites they belong to, and the hyperparameters that are tried for each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from bpt_core.catalog import Pooling
from bpt_core.methods import Depth, Method, Start
from bpt_core.recipe import Recipe, Shape, WhiteningInput

SEARCH_SEED = 0
SEARCH_RANGES: Mapping[str, tuple[float, float]] = {
    "learning_rate": (1e-3, 1.0),
    "weight_decay": (1e-5, 1e-1),
    "head_weight_decay": (1e-3, 1.0),
}


class Baseline(StrEnum):
    """Methods that the service does not have."""

    FULL = "full"
    GATE_VPT = "gate-vpt"
    LORA = "lora"
    SSF = "ssf"


# What changes the backbone itself needs smaller steps than prompts do; where the range ends it is widened for all.
_RATES: Mapping[Baseline, tuple[float, float]] = {
    Baseline.FULL: (1e-5, 1e-2),
    Baseline.LORA: (1e-4, 1e-1),
    Baseline.SSF: (1e-4, 1e-1),
}


@dataclass(frozen=True)
class Size:
    """What a comparison may cost: the same for every method.

    `train`, `val` and `test` are images of each class, 0 means all. `widenings` is how many times two more trials are
    added beyond the edge of the learning rates.
    """

    train: int = 0
    val: int = 0
    test: int = 0
    epochs: int = 100
    batch_size: int = 32
    warmup_epochs: int = 10
    head_fit_epochs: int = 60
    views: int = 0
    crop_scale_min: float = 0.08
    trials: int = 12
    widenings: int = 2
    seeds: int = 3


FULL = Size()
# Fits one CPU core in an afternoon, with the bundled backbone.
CUT = Size(
    train=20,
    val=10,
    test=40,
    epochs=6,
    batch_size=8,
    warmup_epochs=1,
    head_fit_epochs=40,
    views=3,
    crop_scale_min=0.25,
    trials=6,
    widenings=1,
)


@dataclass(frozen=True)
class Configuration:
    """A row of a table. `name` is unique; `like` names the row whose hyperparameters it takes, "" searches its own."""

    name: str
    method: Method
    depth: Depth = Depth.SHALLOW
    baseline: Baseline | None = None
    like: str = ""
    settings: Mapping[str, Any] | None = None  # of the recipe, over what the size and the backbone give
    epochs_factor: int = 1

    def recipe(self, shape: Shape, size: Size, seed: int, found: Mapping[str, float]) -> Recipe:
        """With the hyperparameters `found`, which names those of `SEARCH_RANGES`."""
        patches = (shape.image_size // shape.patch_size) ** 2
        values: dict[str, Any] = {
            "pooling": shape.pooling,
            "epochs": size.epochs * self.epochs_factor,
            "warmup_epochs": size.warmup_epochs,
            "batch_size": size.batch_size,
            "crop_scale_min": size.crop_scale_min,
            "views": size.views,
            "head_fit_epochs": size.head_fit_epochs,
            "seed": seed,
        }
        if self.method.has_prompts:
            # The paper's 100 of 196 patches (50 deep) and its ranks of 75 (50), as shares.
            values["prompts"] = max(1, patches // 2 if self.depth is Depth.SHALLOW else patches // 4)
            if self.method.has_rank:
                share = 0.75 if self.depth is Depth.SHALLOW else 1.0
                values["rank"] = max(1, int(values["prompts"] * share))
                values["start"] = Start.RANDOM if self.depth is Depth.SHALLOW else Start.WHITENED
        else:  # features are computed once for each view, so that more epochs cost nothing
            values |= {"head_fit_epochs": 0, "epochs": max(100, size.epochs), "views": size.views or 8}
        return Recipe(self.method, self.depth, **{**values, **(self.settings or {}), **found})

    def search_range(self, setting: str) -> tuple[float, float]:
        usual = SEARCH_RANGES[setting]
        return _RATES.get(self.baseline, usual) if self.baseline and setting == "learning_rate" else usual

    def draws(self, count: int) -> list[dict[str, float]]:
        """`count` trials, each setting spread evenly and log-uniformly over its range, alike for everybody."""
        drawn = random.Random(SEARCH_SEED)
        columns = {}
        for setting in SEARCH_RANGES:
            shares = [(part + drawn.random()) / count for part in range(count)]
            drawn.shuffle(shares)
            low, high = self.search_range(setting)
            columns[setting] = [low * (high / low) ** share for share in shares]
        return [{setting: column[trial] for setting, column in columns.items()} for trial in range(count)]

    def wider(self, tried: Sequence[Mapping[str, float]], best: Mapping[str, float], count: int) -> dict[str, float]:
        """One more trial, a step beyond the range, if the best learning rate is the least or the greatest tried; {} if
        not. A step is the width of one of the `count` parts that trials were drawn from.
        """
        low, high = self.search_range("learning_rate")
        step = (high / low) ** (1 / count)
        rates = sorted(each["learning_rate"] for each in tried)
        rate = best["learning_rate"]
        if rates[0] < rate < rates[-1]:
            return {}
        return {**best, "learning_rate": rate * step if rate == rates[-1] else rate / step}


@dataclass(frozen=True)
class Suite:
    """Configurations that are compared. `tasks` limits how many of the tasks are taken, 0 means all."""

    name: str
    configurations: tuple[Configuration, ...]
    tasks: int = 0


def _ours(method: Method, depth: Depth, suffix: str = "", **settings: Any) -> Configuration:
    name = f"{method} {depth}"
    if not suffix:
        return Configuration(name, method, depth, settings=settings)
    return Configuration(f"{name} {suffix}", method, depth, like=name, settings=settings)


_PROMPTED = (Method.BPT_BILINEAR, Method.VPT, Method.SPT, Method.BPT_TWHITEN, Method.BPT_FWHITEN)
_BOTH = (Depth.SHALLOW, Depth.DEEP)

METHODS = Suite(
    "methods",
    (
        Configuration("linear-probe", Method.LINEAR_PROBE),
        *(_ours(method, depth) for method in _PROMPTED for depth in _BOTH),
    ),
)
BASELINES = Suite(
    "baselines",
    tuple(Configuration(str(baseline), Method.VPT, baseline=baseline) for baseline in Baseline),
)
CONVERGENCE = Suite(
    "convergence",
    tuple(
        replace(_ours(method, Depth.SHALLOW, "4x epochs"), epochs_factor=4)
        for method in (Method.SPT, Method.VPT, Method.BPT_BILINEAR)
    ),
    tasks=1,
)


def length_suite(patches: int) -> Suite:
    """Numbers of prompts, at the rank of the paper's table; half the patches is in the main table."""
    lengths = [max(1, patches * share // 16) for share in (1, 2, 4, 16)]
    rank = {"rank": max(1, patches * 3 // 8)}
    return Suite(
        "length",
        tuple(
            _ours(method, Depth.SHALLOW, f"m={length}", prompts=length, **(rank if method.has_rank else {}))
            for length in lengths
            for method in (Method.BPT_BILINEAR, Method.VPT, Method.SPT)
        ),
        tasks=1,
    )


def width_suite(patches: int) -> Suite:
    """Ranks, as the paper's quarters of the number of prompts; three quarters is in the main table."""
    ranks = [max(1, patches // 2 * share // 4) for share in (1, 2, 4)]
    return Suite(
        "width", tuple(_ours(Method.BPT_BILINEAR, Depth.SHALLOW, f"p={rank}", rank=rank) for rank in ranks), tasks=1
    )


def questions_suite(pooling: Pooling) -> Suite:
    """The choices that defaults rest on, each against the row of the main table that it varies."""
    other = Pooling.MEAN_PATCHES if pooling is Pooling.MEAN_ALL else Pooling.MEAN_ALL
    normed = {"whitening_input": WhiteningInput.NORMED}
    return Suite(
        "questions",
        (
            *(_ours(Method.BPT_BILINEAR, depth, str(other), pooling=other) for depth in _BOTH),
            *(_ours(Method.VPT, depth, str(other), pooling=other) for depth in _BOTH),
            *(_ours(Method.BPT_TWHITEN, depth, "whitened after norm1", **normed) for depth in _BOTH),
            _ours(Method.BPT_BILINEAR, Depth.SHALLOW, "whitened start", start=Start.WHITENED),
            _ours(Method.BPT_BILINEAR, Depth.DEEP, "random start", start=Start.RANDOM),
            _ours(Method.BPT_BILINEAR, Depth.DEEP_TOP4),
            _ours(Method.BPT_BILINEAR, Depth.DEEP_TOP4, "8 views", views=8),
            _ours(Method.BPT_BILINEAR, Depth.DEEP_TOP4, "fresh crops", views=0),
        ),
        tasks=1,
    )


def suites(shape: Shape) -> dict[str, Suite]:
    """In the order they are run."""
    patches = (shape.image_size // shape.patch_size) ** 2
    found = (METHODS, BASELINES, CONVERGENCE, length_suite(patches), width_suite(patches))
    return {suite.name: suite for suite in (*found, questions_suite(shape.pooling))}
