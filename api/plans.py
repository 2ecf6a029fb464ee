"""A tuning request becomes a plan: recipe, search, parameters and estimated time, before any worker is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from api import schemas
from api.problems import Problem
from bpt_core import catalog
from bpt_core.catalog import BackboneSpec
from bpt_core.cost import tuning_flops
from bpt_core.errors import InvalidSetting
from bpt_core.methods import Method
from bpt_core.recipe import Recipe, default_recipe, parameter_count
from bpt_core.sweep import Search
from bpt_store import datasets, jobs, models
from bpt_store.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What a tuning job will do; `payload` is what a worker is given."""

    spec: BackboneSpec
    recipe: Recipe
    search: Search | None
    parameters: int
    flops: float
    estimated_seconds: float

    def payload(self, prompt_set: str) -> dict[str, Any]:
        return {
            "backbone": self.spec.name,
            "prompt_set": prompt_set,
            "recipe": self.recipe.to_dict(),
            "search": self.search.to_dict() if self.search else None,
            "parameters": self.parameters,
            "flops": self.flops,
            "estimated_seconds": self.estimated_seconds,
        }


def make(body: schemas.TuningJobCreate, dataset: models.DatasetVersion, session: Session, settings: Settings) -> Plan:
    """What a request asks for, with defaults filled in.

    Raises BackboneError, InvalidSetting, Problem `backbone_noncommercial`.
    """
    spec = catalog.find(body.backbone or catalog.DEFAULT_BACKBONE)
    if spec.non_commercial and not settings.allow_noncommercial:
        raise Problem("backbone_noncommercial", f"{spec.name} is under {spec.licence}; this service has not allowed it")
    given = {**body.method.model_dump(exclude_none=True), **body.hyperparameters.model_dump(exclude_none=True)}
    auto = tuple(sorted("method" if name == "type" else name for name, value in given.items() if value == schemas.AUTO))
    fixed = {name: value for name, value in given.items() if value != schemas.AUTO}
    method = Method(fixed.pop("type", Method.BPT_BILINEAR))
    recipe = default_recipe(spec, method, **fixed, seed=body.seed)
    search = _search(auto, body.trials)
    if search:
        search.recipes(recipe)  # refuses what cannot be searched
    train, val = (datasets.images(dataset, split) for split in ("train", "val"))
    flops = tuning_flops(recipe, spec, train_images=train, val_images=val, search=search)
    rate = jobs.measured_flops_per_second(session) or settings.tuning_flops_per_second
    return Plan(
        spec=spec,
        recipe=recipe,
        search=search,
        parameters=parameter_count(recipe, spec),
        flops=flops,
        estimated_seconds=flops / rate,
    )


def _search(auto: tuple[str, ...], trials: int | None) -> Search | None:
    if auto:
        return Search(auto) if trials is None else Search(auto, trials)
    if trials is not None:
        raise InvalidSetting('trials are for settings that are "auto", and none is')
    return None
