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
from typing import Any

from bpt_core.catalog import BackboneSpec
from bpt_core.errors import InvalidSetting


class Method(StrEnum):
    LINEAR_PROBE = "linear-probe"
    BPT_BILINEAR = "bpt-bilinear"

    @property
    def has_prompts(self) -> bool:
        return self is not Method.LINEAR_PROBE


class Depth(StrEnum):
    SHALLOW = "shallow"


@dataclass(frozen=True)
class Recipe:
    """Every setting of one tuning run; equal recipes on equal data give equal artifacts (same machine, CPU).

    `prompts` = m and `rank` = p are 0 for the linear probe. `epochs` counts passes over the training split;
    `warmup_epochs` of them raise the learning rate linearly from 0. `crop_scale_min` is the smallest share
    of an image's area that a random resized crop keeps. `views` > 0 draws that many crops per image once and
    cycles through them; 0 draws a fresh crop in every epoch.

    `head_fit_epochs` > 0 fits the head alone, at `head_fit_learning_rate`, twice: to the features of the initial
    prompts, so that the two begin to learn together from a good head and not from noise; and to those of the
    final prompts. Features are computed once for each, so it costs a few forward passes. The paper has none (0).
    """

    method: Method
    depth: Depth = Depth.SHALLOW
    prompts: int = 0
    rank: int = 0
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-2
    weight_decay: float = 5e-3
    head_weight_decay: float = 0.5
    warmup_epochs: int = 10
    crop_scale_min: float = 0.08
    views: int = 0
    head_fit_epochs: int = 0
    head_fit_learning_rate: float = 1e-1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method.has_prompts:
            _require("prompts", self.prompts, 1, 1000)
            _require("rank", self.rank, 1, 4096)
        elif self.prompts or self.rank:
            raise InvalidSetting("a linear probe has neither prompts nor rank")
        _require("epochs", self.epochs, 1, 10_000)
        _require("batch_size", self.batch_size, 1, 4096)
        _require("learning_rate", self.learning_rate, 1e-8, 1e3)
        _require("weight_decay", self.weight_decay, 0, 1e3)
        _require("head_weight_decay", self.head_weight_decay, 0, 1e3)
        _require("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _require("crop_scale_min", self.crop_scale_min, 0.01, 1)
        _require("views", self.views, 0, 64)
        _require("head_fit_epochs", self.head_fit_epochs, 0, 10_000)
        _require("head_fit_learning_rate", self.head_fit_learning_rate, 1e-8, 1e3)
        if self.head_fit_epochs and not self.method.has_prompts:
            raise InvalidSetting("a linear probe trains nothing but the head: it needs no fit of the head")
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
        try:
            method = Method(values["method"])
            depth = Depth(values.get("depth", Depth.SHALLOW))
        except (KeyError, ValueError) as error:
            raise InvalidSetting(f"unknown method or depth: {error}") from error
        return cls(**{**values, "method": method, "depth": depth})


DEFAULTS: Mapping[Method, Mapping[str, Any]] = {
    Method.LINEAR_PROBE: {
        "epochs": 100,
        "learning_rate": 1e-1,
        "weight_decay": 0.0,
        "head_weight_decay": 1e-2,
        "views": 6,
    },
    Method.BPT_BILINEAR: {"prompts": 100, "rank": 75, "head_weight_decay": 1e-2, "head_fit_epochs": 60},
}


def default_recipe(spec: BackboneSpec, method: Method, **given: Any) -> Recipe:
    """The recipe for `method` on this backbone, with what the caller gave laid over the defaults.

    A number of prompts not asked for is at most half the backbone's patch tokens, and the rank at most
    three quarters of the prompts, so that small backbones are not swamped by the paper's m = 100, p = 75.
    """
    values: dict[str, Any] = {**DEFAULTS[method], **given}
    if method.has_prompts:
        patches = (spec.image_size // spec.patch_size) ** 2
        if "prompts" not in given:
            values["prompts"] = min(values["prompts"], patches // 2)
        if "rank" not in given:
            values["rank"] = max(1, min(values["rank"], values["prompts"] * 3 // 4))
    if "warmup_epochs" not in given:
        values["warmup_epochs"] = min(10, values.get("epochs", 100) // 10)
    return Recipe(method=method, **values)


def parameter_count(recipe: Recipe, spec: BackboneSpec) -> int:
    """Trained parameters without the head, as the paper counts: (m + d) p for the bilinear factors."""
    if recipe.method is Method.LINEAR_PROBE:
        return 0
    return (recipe.prompts + spec.embed_dim) * recipe.rank


def _require(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidSetting(f"{name} must lie between {low} and {high}, not {value}")
