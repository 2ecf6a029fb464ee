"""Runs what the plan says and is not on record yet: a search on the validation split, then tests with other seeds.

No run of a search reads the test split; a run that is tested reads it once, at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from benchmarks.paper.baselines import BaselineGroup
from benchmarks.paper.plan import SEARCH_RANGES, SEARCH_SEED, Configuration, Size, Suite
from benchmarks.paper.records import Record, Records, key_of
from benchmarks.paper.tasks import digest
from bpt_core import burstiness, vit
from bpt_core.backbones import Backbone
from bpt_core.compute import Compute
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import TuningDiverged
from bpt_core.evaluate import evaluate
from bpt_core.methods import prompted_blocks
from bpt_core.recipe import Recipe
from bpt_core.train import Group, Images
from bpt_core.trial import Trial
from bpt_core.views import SplitImages

BURSTINESS_IMAGES = 32
WIDER_TRIALS = 2  # that one widening adds


class Task:
    """A dataset that is compared on; its images are decoded once."""

    def __init__(self, name: str, dataset: PackedDataset, image_size: int) -> None:
        self.name, self._dataset, self._image_size = name, dataset, image_size

    @cached_property
    def digest(self) -> str:
        return digest(self._dataset)

    @cached_property
    def images(self) -> Images:
        train, val = (SplitImages(self._dataset, split, self._image_size) for split in (Split.TRAIN, Split.VAL))
        return Images(train, val, self._dataset.class_names, self._dataset.task)

    @cached_property
    def test(self) -> SplitImages:
        return SplitImages(self._dataset, Split.TEST, self._image_size)


@dataclass(frozen=True)
class Step:
    """One row of a table, on one task, with one seed."""

    task: Task
    configuration: Configuration
    seed: int


def steps(suites: Iterable[Suite], tasks: Sequence[Task], seeds: int) -> Iterator[Step]:
    """Breadth first: every row of a suite on every task with one seed, before the next seed, before the next suite."""
    for suite in suites:
        for seed in range(1, seeds + 1):
            for task in tasks[: suite.tasks or None]:
                for configuration in suite.configurations:
                    yield Step(task, configuration, SEARCH_SEED + seed)


class Runner:
    """`side_by_side` trials of a search train in one group where the service has the method: worth it on a GPU.

    Where hyperparameters are given (`is_searched` False) configurations bring them, there is no search, and what is
    reported is the last epoch, with the best one beside it: see `tasks.load(..., merged=True)`.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: Size,
        configurations: Iterable[Configuration],
        records: Records,
        *,
        compute: Compute | None = None,
        side_by_side: int = 1,
        machine: str = "",
        is_searched: bool = True,
    ) -> None:
        self.backbone, self.size, self.records, self.machine = backbone, size, records, machine
        self.compute, self.side_by_side, self.is_searched = compute or Compute(), side_by_side, is_searched
        self._by_name = {each.name: each for each in configurations}

    def run(self, step: Step) -> Record:
        """The tested run of a step, after the search that it needs; from the records where they have it."""
        found = self.found(step.task, step.configuration) if self.is_searched else {}
        recipe = step.configuration.recipe(self.backbone, self.size, step.seed, found)
        (record,) = self._on_record(step.task, step.configuration, [recipe], tested=True)
        return record

    def found(self, task: Task, configuration: Configuration) -> Mapping[str, float]:
        """The hyperparameters that are best on the validation split."""
        configuration = self._by_name.get(configuration.like, configuration)
        tried = configuration.draws(self.size.trials)
        trials = self._search(task, configuration, tried)
        for _ in range(self.size.widenings):
            best = _hyperparameters(max(trials, key=_standing))
            added: list[Mapping[str, float]] = []
            for _ in range(WIDER_TRIALS):
                wider = configuration.wider([*tried, *added], added[-1] if added else best, self.size.trials)
                if not wider:
                    break
                added.append(wider)
            if not added:
                break
            tried = [*tried, *(dict(each) for each in added)]
            trials = self._search(task, configuration, tried)
        return _hyperparameters(max(trials, key=_standing))

    def _search(self, task: Task, configuration: Configuration, tried: Sequence[Mapping[str, float]]) -> list[Record]:
        recipes = [configuration.recipe(self.backbone, self.size, SEARCH_SEED, each) for each in tried]
        return self._on_record(task, configuration, recipes, tested=False)

    def _on_record(
        self, task: Task, configuration: Configuration, recipes: Sequence[Recipe], *, tested: bool
    ) -> list[Record]:
        """A record of each recipe, made where there is none."""
        keys = [self._key(task, configuration, recipe, tested=tested) for recipe in recipes]
        waiting = [(key, recipe) for key, recipe in zip(keys, recipes, strict=True) if self.records.get(key) is None]
        together = 1 if configuration.baseline else self.side_by_side
        for at in range(0, len(waiting), together):
            some = waiting[at : at + together]
            made = self._train(task, configuration, [recipe for _, recipe in some], tested=tested)
            for (key, _), facts in zip(some, made, strict=True):
                self.records.add(Record(key=key, task=task.name, configuration=configuration.name, **facts))
        found = [self.records.get(key) for key in keys]
        return [record for record in found if record is not None]

    def _key(self, task: Task, configuration: Configuration, recipe: Recipe, *, tested: bool) -> str:
        fingerprint = self.backbone.fingerprint
        return key_of(
            task.name, task.digest, fingerprint, configuration.name, configuration.baseline, recipe, tested=tested
        )

    def _train(
        self, task: Task, configuration: Configuration, recipes: Sequence[Recipe], *, tested: bool
    ) -> list[dict[str, Any]]:
        """Trains recipes side by side -> what `Record` wants to know of each."""
        started = time.monotonic()
        group = self._group(task, configuration, recipes)
        trials = list(group.trials)
        curves: list[list[float]] = [[] for _ in trials]
        if group.recipe.head_fit_epochs:
            group.fit_heads()
        for curve, trial in zip(curves, trials, strict=True):
            curve.append(_share(trial.best_score[0]))  # epoch 0; no share where nothing was judged
        for _ in range(group.recipe.epochs):
            try:
                group.one_epoch()
            except TuningDiverged:
                break
            for curve, trial in zip(curves, trials, strict=True):
                curve.append(_share(trial.score[0]))
        tests: list[float | None] = [None for _ in trials]
        if tested:
            (trial,), ((*_, last),) = trials, curves
            tests = [self._test(task, group, trial) if self.is_searched else last]
        seconds = (time.monotonic() - started) / len(trials)
        return [
            {
                "recipe": trial.recipe.to_dict(),
                "parameters": _parameters(trial),
                "seconds": seconds,
                "machine": self.machine,
                "val": _share(trial.best_score[0]),
                "best_epoch": trial.best_epoch,
                "curve": curve,
                "test": test,
                "burstiness": _burstiness(group, trial) if tested and not configuration.baseline else {},
            }
            for trial, curve, test in zip(trials, curves, tests, strict=True)
        ]

    def _group(self, task: Task, configuration: Configuration, recipes: Sequence[Recipe]) -> Group:
        if configuration.baseline:
            return BaselineGroup(configuration.baseline, self.backbone, task.images, recipes, self.compute)
        return Group(self.backbone, task.images, recipes, self.compute)

    def _test(self, task: Task, group: Group, trial: Trial) -> float:
        """As the service ends a tuning run: the head fitted once more, the best state restored, the test split read."""
        if group.recipe.head_fit_epochs:
            group.fit_heads()
        trial.restore_best()
        (logits,) = group.logits(group.kept.evaluation(task.test))
        return evaluate(logits, task.test.targets, task.images.class_names, task.images.task).score


def _standing(record: Record) -> float:
    """What a search goes by; the first of equals wins."""
    return record.val


def _hyperparameters(record: Record) -> dict[str, float]:
    return {setting: record.recipe[setting] for setting in SEARCH_RANGES}


def _share(score: float) -> float:
    """-1 where there is none: nothing was judged, or the loss was no number."""
    return max(score, -1.0)


def _parameters(trial: Trial) -> int:
    return 0 if trial.prompts is None else sum(each.numel() for each in trial.prompts.parameters())


def _burstiness(group: Group, trial: Trial) -> dict[str, Any]:
    """Of what the first prompted block meets, and of the prompts that were learned; {} for the linear probe."""
    if trial.prompts is None:
        return {}
    backbone = group.backbone
    images = next(iter(group.sample(BURSTINESS_IMAGES)))
    block = prompted_blocks(trial.recipe.depth, backbone.depth)[0]
    with torch.no_grad():
        tokens = vit.below(backbone, images, trial.recipe.depth)[:, backbone.model.num_prefix_tokens :]
        measured = burstiness.backbone_burstiness(tokens, backbone.model.blocks[block])
        measured["prompts"] = burstiness.measure(trial.fold())
    return {name: each.to_dict() for name, each in measured.items()}
