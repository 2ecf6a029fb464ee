"""A tuning request becomes a plan: recipe, search, parameters and estimated time, before any worker is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from api.problems import Problem
from api.tuning_schemas import AUTO, TuningJobCreate
from bpt_core import catalog, continuing
from bpt_core.catalog import BackboneSpec
from bpt_core.cost import tuning_flops
from bpt_core.errors import BackboneError, InvalidSetting
from bpt_core.headers import describe
from bpt_core.methods import Method
from bpt_core.recipe import Recipe, default_recipe, parameter_count
from bpt_core.sweep import Search
from bpt_store import datasets, jobs, lineage, models, prompt_sets
from bpt_store.lineage import Lineage
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
    budget: dict[str, Any] | None
    continue_from: dict[str, Any] | None

    def payload(self, prompt_set: str) -> dict[str, Any]:
        return {
            "backbone": self.spec.name,
            "prompt_set": prompt_set,
            "recipe": self.recipe.to_dict(),
            "search": self.search.to_dict() if self.search else None,
            "parameters": self.parameters,
            "flops": self.flops,
            "estimated_seconds": self.estimated_seconds,
            "budget": self.budget,
            "continue_from": self.continue_from,
        }


def offered(backbone: str, settings: Settings) -> BackboneSpec:
    """BackboneError `backbone_unknown`, Problem `backbone_noncommercial`."""
    spec = catalog.find(backbone)
    if spec.non_commercial and not settings.allow_noncommercial:
        raise Problem("backbone_noncommercial", f"{spec.name} is under {spec.licence}; this service has not allowed it")
    return spec


def make(body: TuningJobCreate, dataset: models.DatasetVersion, session: Session, settings: Settings) -> Plan:
    """What a request asks for, with defaults filled in.

    Raises BackboneError, InvalidSetting, Problem `backbone_noncommercial`, and for a version to begin with NotFound,
    Damaged, ArtifactError, and `continue_mismatch`.
    """
    begun = _begun(body, session) if body.continue_from is not None else None
    spec = offered(body.backbone or (begun.backbone if begun else catalog.DEFAULT_BACKBONE), settings)
    given = {
        **body.method.model_dump(exclude_none=True, exclude_unset=begun is not None),
        **body.hyperparameters.model_dump(exclude_none=True),
    }
    auto = tuple(sorted("method" if name == "type" else name for name, value in given.items() if value == AUTO))
    fixed = {name: value for name, value in given.items() if value != AUTO}
    if begun is not None:
        fixed = begun.settle(spec, fixed, auto)
    method = Method(fixed.pop("type", Method.BPT_BILINEAR))
    recipe = default_recipe(spec, method, **fixed, seed=body.seed)
    search = _search(auto, body.trials)
    if search:
        search.recipes(recipe)  # refuses what cannot be searched
    return _planned(
        spec,
        recipe,
        search,
        dataset,
        _flops_per_second(session, settings),
        budget=body.budget.model_dump() if body.budget else None,
        continue_from=begun.lineage(dataset) if begun else None,
    )


def again(version: models.PromptSetVersion, learned_from: Lineage, session: Session, settings: Settings) -> Plan:
    """What a version was made by. Problem `not_reproducible`, `backbone_noncommercial`.

    Weights that an operator has put beside the service only the trainer can know.
    """
    try:
        spec = offered(version.backbone, settings)
        recipe = Recipe.from_dict(learned_from.recipe)
        search = Search.from_dict(learned_from.search) if learned_from.search else None
    except (BackboneError, InvalidSetting) as error:
        raise Problem(lineage.INCOMPLETE, f"the version cannot be learned again: {error}") from error
    known = catalog.known_fingerprint(settings.weights_directory, spec)
    if known not in (None, version.backbone_fingerprint):
        raise Problem(lineage.INCOMPLETE, f"the version was learned on other weights of {spec.name} than are here")
    return _planned(
        spec,
        recipe,
        search,
        learned_from.dataset,
        _flops_per_second(session, settings),
        budget=None,
        continue_from=dict(version.continued_from) if version.continued_from else None,
    )


def _planned(
    spec: BackboneSpec,
    recipe: Recipe,
    search: Search | None,
    dataset: models.DatasetVersion,
    flops_per_second: float,
    *,
    budget: dict[str, Any] | None,
    continue_from: dict[str, Any] | None,
) -> Plan:
    """With what it costs to do that on this dataset."""
    train, val = (datasets.images(dataset, split) for split in ("train", "val"))
    flops = tuning_flops(recipe, spec, train_images=train, val_images=val, search=search)
    return Plan(
        spec=spec,
        recipe=recipe,
        search=search,
        parameters=parameter_count(recipe, spec),
        flops=flops,
        estimated_seconds=flops / flops_per_second,
        budget=budget,
        continue_from=continue_from,
    )


def _flops_per_second(session: Session, settings: Settings) -> float:
    return jobs.measured_flops_per_second(session) or settings.tuning_flops_per_second


@dataclass(frozen=True)
class _Begun:
    """The version that tuning is to begin with; `header` is what its artifact says of itself."""

    prompt_set: str
    row: models.PromptSetVersion
    header: dict[str, Any]

    @property
    def backbone(self) -> str:
        return str(self.header["backbone"])

    def settle(self, spec: BackboneSpec, fixed: dict[str, Any], auto: tuple[str, ...]) -> dict[str, Any]:
        """Settings of the request with those of the version. InvalidSetting, Problem `continue_mismatch`.

        Whether the weights are the same, the trainer sees: nothing else has them.
        """
        if spec.name != self.backbone:
            raise Problem(continuing.MISMATCH, f"the version is for the backbone {self.backbone}, not {spec.name}")
        if "start" in fixed:
            raise Problem(continuing.MISMATCH, f"start is {self.prompt_set}:{self.row.version}, not {fixed['start']}")
        asked = {("method" if name == "type" else name): value for name, value in fixed.items()}
        own = continuing.settings_of(self.header["method"], self.header["pooling"])
        continuing.check(own, asked, auto)
        return {**fixed, "type": own.pop("method"), **own}

    def lineage(self, dataset: models.DatasetVersion) -> dict[str, Any]:
        same = (self.header["class_names"], self.header["task"]) == (list(dataset.class_names), dataset.task)
        return {
            "prompt_set": self.prompt_set,
            "version": self.row.version,
            "artifact_sha256": self.row.artifact_sha256,
            "head": "carried" if same else "new",
        }


def _begun(body: TuningJobCreate, session: Session) -> _Begun:
    assert body.continue_from is not None
    prompt_set, row = prompt_sets.resolve(session, body.continue_from)
    return _Begun(prompt_set.name, row, describe(prompt_sets.artifact(session, row)))


def _search(auto: tuple[str, ...], trials: int | None) -> Search | None:
    if auto:
        return Search(auto) if trials is None else Search(auto, trials)
    if trials is not None:
        raise InvalidSetting('trials are for settings that are "auto", and none is')
    return None
