"""What a tuning run is asked to do, with defaults, checked before any work. Needs no torch.

A Recipe's own defaults are the paper's (AdamW, linear warm-up, half-cosine, three weight-decay groups); what the
service chooses otherwise is in `DEFAULTS`, found on the validation split of the drawn flowers: a head that decays
little, and with prompts a fit of the head alone before and after the two learn together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Protocol

from bpt_core import methods
from bpt_core.catalog import Pooling
from bpt_core.errors import InvalidSetting
from bpt_core.methods import STARTS, Depth, Method, Start

HEAD_FIT_VIEWS = 6  # crops of each image that the head alone is fitted to


class WhiteningInput(StrEnum):
    """Which tokens are whitened: those that enter the block, or what its first norm makes of them."""

    TOKENS = "tokens"
    NORMED = "normed"


@dataclass(frozen=True)
class Recipe:
    """Every setting of one tuning run; equal recipes on equal data give equal artifacts (same machine, CPU).

    `prompts` = m is 0 for the linear probe, `rank` = p for every method but `bpt-bilinear`. `start` is where trained
    numbers start (see `methods.STARTS`). `pooling` None means the backbone's own.

    `epochs` counts passes over the training split; `warmup_epochs` of them raise the learning rate linearly from 0;
    `patience` > 0 ends the run after so many epochs without a better validation score. `crop_scale_min` is the
    smallest share of an image's area that a random resized crop keeps. `views` > 0 draws that many crops per image
    once and cycles through them, so that what lies below the first prompted block can be kept; 0 draws a fresh crop
    in every epoch.

    `head_fit_epochs` > 0 fits the head alone, at `head_fit_learning_rate`, twice: to the features of the initial
    prompts, so that the two begin to learn together from a good head and not from noise; and to those of the
    final prompts. Features are computed once for each, so it costs a few forward passes. The paper has none (0).

    `label_smoothing` is the share of the target given to all classes alike. `balance_classes` weighs the loss of a
    class by the inverse of its share in the training split. `mixup` > 0 is the alpha of Beta(alpha, alpha): pairs of
    images are mixed as tokens entering the first prompted block, which for patch embedding (affine) is the same as
    mixing pixels. `ema` evaluates and publishes a moving average of what is trained, decay min(0.9999, (1+t)/(10+t)).
    """

    method: Method
    depth: Depth = Depth.SHALLOW
    prompts: int = 0
    rank: int = 0
    start: Start = Start.RANDOM
    whitening_input: WhiteningInput = WhiteningInput.TOKENS
    pooling: Pooling | None = None
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-2
    weight_decay: float = 5e-3
    head_weight_decay: float = 0.5
    warmup_epochs: int = 10
    patience: int = 0
    crop_scale_min: float = 0.08
    views: int = 0
    head_fit_epochs: int = 0
    head_fit_learning_rate: float = 1e-1
    label_smoothing: float = 0.0
    balance_classes: bool = False
    mixup: float = 0.0
    ema: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method.has_prompts:
            _require("prompts", self.prompts, 1, 1000)
        elif self.prompts or self.rank:
            raise InvalidSetting("a linear probe has neither prompts nor rank")
        elif self.depth is not Depth.SHALLOW:
            raise InvalidSetting("a linear probe has no depth")
        if self.method.has_rank:
            _require("rank", self.rank, 1, 4096)
        elif self.rank:
            raise InvalidSetting(f"{self.method} has no rank; only {Method.BPT_BILINEAR} has")
        if self.start not in STARTS[self.method]:
            raise InvalidSetting(f"{self.method} starts from {' or '.join(STARTS[self.method])}, not {self.start}")
        _require("epochs", self.epochs, 1, 10_000)
        _require("batch_size", self.batch_size, 1, 4096)
        _require("learning_rate", self.learning_rate, 1e-8, 1e3)
        _require("weight_decay", self.weight_decay, 0, 1e3)
        _require("head_weight_decay", self.head_weight_decay, 0, 1e3)
        _require("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _require("patience", self.patience, 0, 10_000)
        _require("crop_scale_min", self.crop_scale_min, 0.01, 1)
        _require("views", self.views, 0, 64)
        _require("head_fit_epochs", self.head_fit_epochs, 0, 10_000)
        _require("head_fit_learning_rate", self.head_fit_learning_rate, 1e-8, 1e3)
        if self.head_fit_epochs and not self.method.has_prompts:
            raise InvalidSetting("a linear probe trains nothing but the head: it needs no head_fit_epochs")
        _require("label_smoothing", self.label_smoothing, 0, 0.9)
        _require("mixup", self.mixup, 0, 10)
        _require("seed", self.seed, 0, 2**63 - 1)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; InvalidSetting on a name or value that does not belong."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InvalidSetting(f"unknown setting: {', '.join(unknown)}")
        if "method" not in values:
            raise InvalidSetting("a recipe names its method")
        return cls(**_choices(values))


_CHOICES: Mapping[str, type[StrEnum]] = {
    "method": Method,
    "depth": Depth,
    "start": Start,
    "whitening_input": WhiteningInput,
    "pooling": Pooling,
}

_WITH_PROMPTS = {"head_weight_decay": 1e-2, "head_fit_epochs": 60}
DEFAULTS: Mapping[Method, Mapping[str, Any]] = {
    Method.LINEAR_PROBE: {
        "epochs": 100,
        "learning_rate": 1e-1,
        "weight_decay": 0.0,
        "head_weight_decay": 1e-2,
        "views": 6,
    },
    **{method: _WITH_PROMPTS for method in Method if method.has_prompts},
}

# The paper's rates for prompts on supervised backbones, whose class token is read; its others are Recipe's defaults.
_SUPERVISED = {"learning_rate": 1e-2, "weight_decay": 5e-2}
# The paper's number of prompts, and its rank as a share of them (100 and 75; 50 and 50).
_PROMPTS = {Depth.SHALLOW: (100, 0.75), Depth.DEEP: (50, 1.0), Depth.DEEP_TOP4: (50, 1.0)}
_KEPT_VIEWS = 8  # of deep-top4: what lies below its prompts is computed once for each


class Shape(Protocol):
    """What a recipe has to know of a backbone: a `BackboneSpec`, or a `Backbone` that is loaded."""

    @property
    def image_size(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def pooling(self) -> Pooling: ...


def default_recipe(shape: Shape, method: Method | str, **given: Any) -> Recipe:
    """The recipe for `method` on this backbone, with what the caller gave laid over the defaults.

    Numbers of prompts and rank not asked for are the paper's, but no more prompts than half the backbone's patch
    tokens (and rank in proportion), so that small backbones are not swamped.
    Raises InvalidSetting.
    """
    chosen = _choices({"method": method, **given})
    kind: Method = chosen["method"]
    values: dict[str, Any] = {**DEFAULTS[kind], "pooling": shape.pooling, **chosen}
    depth = values.setdefault("depth", Depth.SHALLOW)
    if kind.has_prompts:
        if values["pooling"] is Pooling.CLS:
            values = {**_SUPERVISED, **values}
        patches = (shape.image_size // shape.patch_size) ** 2
        prompts, rank_share = _PROMPTS[depth]
        values.setdefault("prompts", min(prompts, patches // 2))
        if kind.has_rank:
            values.setdefault("rank", max(1, min(shape.embed_dim, int(values["prompts"] * rank_share))))
            values.setdefault("start", Start.RANDOM if depth is Depth.SHALLOW else Start.WHITENED)
        if depth is Depth.DEEP_TOP4:
            values.setdefault("views", _KEPT_VIEWS)
    values.setdefault("warmup_epochs", min(10, values.get("epochs", 100) // 10))
    recipe = Recipe(**values)
    if recipe.start is Start.WHITENED and recipe.rank > shape.embed_dim:
        raise InvalidSetting(f"rank must be at most {shape.embed_dim}, the backbone's width, to start whitened")
    return recipe


def parameter_count(recipe: Recipe, shape: Shape) -> int:
    """Trained parameters without the head, as the paper counts."""
    return methods.parameter_count(
        recipe.method, recipe.depth, recipe.prompts, recipe.rank, shape.embed_dim, shape.depth
    )


def _choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with names of choices turned into what they name; InvalidSetting for a name of none."""
    try:
        chosen = {name: kind(values[name]) for name, kind in _CHOICES.items() if values.get(name) is not None}
    except ValueError as error:
        raise InvalidSetting(f"unknown choice: {error}") from error
    return {**values, **chosen}


def _require(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidSetting(f"{name} must lie between {low} and {high}, not {value}")
