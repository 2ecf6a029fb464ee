"""Tuning: a dataset and a frozen backbone in, a prompt set out.

The best epoch is chosen on the validation split; the test split is touched once, at the end. A run is a function of
(backbone, dataset, recipe, search): one that was interrupted and goes on from a checkpoint ends with the same artifact.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bpt_core import artifact, burstiness, continuing, review, vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, check_pooling
from bpt_core.compute import Compute
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError, BudgetExhausted, DatasetError, InvalidSetting
from bpt_core.evaluate import NO_CALIBRATION, Calibration, Evaluation, evaluate, fit_calibration
from bpt_core.methods import prompted_blocks
from bpt_core.recipe import Recipe
from bpt_core.sweep import Search
from bpt_core.train import Epoch, Group, Images, fusable
from bpt_core.trial import Trial, with_prefix
from bpt_core.views import SplitImages

BURSTINESS_IMAGES = 32


@dataclass(frozen=True)
class Tuned:
    """The outcome. `recipe` is the one that was best, with every number settled; `trials` tells what each trial of a
    search came to. `test` is None where the dataset has no test split (a val split is never called test).

    `stopped_by` is "budget" where there was no time for all epochs.

    `report` tells about single images: see review.make. It never costs the prompt set: where it could not be made it
    says so in its `error`, and `report_failure` is the traceback.
    """

    prompt_set: PromptSet
    recipe: Recipe
    best_epoch: int
    val: Evaluation
    test: Evaluation | None
    whitening: list[dict[str, Any]] = field(default_factory=list)
    burstiness: Mapping[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    report_failure: str | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Leader:
    """The trial that leads after an epoch, as it was judged then: an artifact without calibration, how it was trained,
    and what it came to on the validation split.
    """

    artifact: bytes
    recipe: Recipe
    val: Evaluation


@dataclass(frozen=True)
class Standing:
    """What can be had of a run between two epochs; neither costs a forward pass.

    `checkpoint()` gives the bytes from which `tune(..., checkpoint=...)` goes on.
    """

    checkpoint: Callable[[], bytes]
    leader: Callable[[], Leader]


OnEpoch = Callable[[Epoch, Standing], None]


def tune(
    backbone: Backbone,
    dataset: PackedDataset,
    recipe: Recipe,
    *,
    search: Search | None = None,
    compute: Compute | None = None,
    start: PromptSet | None = None,
    checkpoint: bytes | None = None,
    on_epoch: OnEpoch | None = None,
    is_time_up: Callable[[], bool] = lambda: False,
) -> Tuned:
    """Learn a prompt set; with a `search`, find the settings it names first, in the same run.

    With a `start` prompts begin as those of that prompt set, in every trial, and so does the head where class names and
    task are the same; else it is made anew. What it is at the start may be the best that comes out (epoch 0).

    After each epoch `on_epoch(report, standing)` is called; an exception it raises ends the run and passes through.
    `is_time_up` is asked before each epoch: with a True the run ends with the best that it has so far.

    Raises DatasetError (no training or validation images), BackboneError and InvalidSetting (what cannot work, before
    any work; `continue_mismatch` for a start that does not fit), TuningDiverged, ArtifactError (`checkpoint_corrupt`,
    or `checkpoint_mismatch` for one of another run), BudgetExhausted (no time for a single epoch).
    """
    run = _Run(backbone, dataset, recipe, search, compute or Compute(), start)
    if checkpoint is not None:
        run.restore(checkpoint)
    else:
        run.begin()
    while not run.is_over():
        if is_time_up():
            run.stop_early()
            break
        report = run.one_epoch()
        if on_epoch is not None:
            on_epoch(report, Standing(run.checkpoint, run.leader))
    return run.finish()


class _Run:
    def __init__(
        self,
        backbone: Backbone,
        dataset: PackedDataset,
        recipe: Recipe,
        search: Search | None,
        compute: Compute,
        start: PromptSet | None,
    ) -> None:
        check_pooling(backbone, recipe.pooling or backbone.pooling)
        if start is not None:
            _check_start(start, backbone, recipe, search)
        self.start = start
        self.backbone, self.dataset, self.recipe, self.search, self.compute = backbone, dataset, recipe, search, compute
        recipes = search.recipes(recipe) if search else (recipe,)
        splits = (Split.TRAIN, Split.VAL)
        train, val = (self._images(split) for split in splits)
        if not len(train) or not len(val):
            raise DatasetError("tuning needs images to train on and images to validate with", code="dataset_empty")
        images = Images(train, val, tuple(dataset.class_names), dataset.task)
        kinds: dict[Recipe, list[int]] = {}
        for index, each in enumerate(recipes):
            kinds.setdefault(fusable(each), []).append(index)
        self.groups = [
            Group(backbone, images, [recipes[index] for index in members], compute, start) for members in kinds.values()
        ]
        # Trials by their number in the search, and what each came to.
        self.trials: dict[int, Trial] = {
            index: trial
            for members, group in zip(kinds.values(), self.groups, strict=True)
            for index, trial in zip(members, group.trials, strict=True)
        }
        self.recipes = recipes
        self.history: list[dict[str, Any]] = [{"epochs": 0, "score": None} for _ in recipes]
        self.survivors = search.survivors(recipe.epochs) if search else {}
        self.epochs_done = 0
        self.stopped_by: str | None = None

    def begin(self) -> None:
        for group in self.groups:
            if group.has_heads:
                group.judge()
            elif self.recipe.head_fit_epochs:
                group.fit_heads()

    def is_over(self) -> bool:
        if self.epochs_done >= self.recipe.epochs:
            return True
        if not self.recipe.patience or len(self.trials) > 1:
            return False
        return self.epochs_done - self._leader().best_epoch >= self.recipe.patience

    def stop_early(self) -> None:
        """There is no time for more: what leads now has won. BudgetExhausted where no epoch has been done."""
        if not self.epochs_done:
            raise BudgetExhausted(
                "the time was up before the first epoch began; give a larger budget, or ask for less: "
                "fewer images, fewer trials, a smaller backbone"
            )
        self.stopped_by = "budget"

    def one_epoch(self) -> Epoch:
        reports = [group.one_epoch() for group in self.groups]
        self.epochs_done += 1
        for index, trial in self.trials.items():
            self.history[index] |= {"epochs": self.epochs_done, "score": trial.score[0]}
        lead = max(range(len(reports)), key=lambda at: (reports[at].val_accuracy, -reports[at].val_loss))
        seconds = sum(report.seconds for report in reports)
        report = Epoch(**{**vars(reports[lead]), "seconds": seconds, "trials": len(self.trials)})
        if self.epochs_done in self.survivors:
            ranked = sorted(self.trials, key=lambda index: self.trials[index].score, reverse=True)
            self._keep(ranked[: self.survivors[self.epochs_done]])
        return report

    def finish(self) -> Tuned:
        trial = self._leader()
        group = self._group_of(trial)
        group.trials = [trial]
        trial.settle()
        if self.recipe.head_fit_epochs:
            group.fit_heads()
        trial.restore_best()
        names, task = self.dataset.class_names, self.dataset.task
        (logits,) = group.logits(group.kept.validation())
        calibration = fit_calibration(logits, group.images.val.targets, task)
        answers = [review.Answers(Split.VAL, group.images.val, logits)]
        test, test_images = None, self._images(Split.TEST)
        if len(test_images):
            (test_logits,) = group.logits(group.kept.evaluation(test_images))
            test = evaluate(test_logits, test_images.targets, names, task, calibration)
            answers.append(review.Answers(Split.TEST, test_images, test_logits))
        report, report_failure = self._report(group, answers, calibration)
        return Tuned(
            prompt_set=self._prompt_set(group, trial, calibration),
            recipe=trial.recipe,
            best_epoch=trial.best_epoch,
            val=evaluate(logits, group.images.val.targets, names, task, calibration),
            test=test,
            whitening=[each.report() for each in group.whitening],
            burstiness=self._burstiness(group, trial),
            trials=self._table() if self.search else [],
            report=report,
            report_failure=report_failure,
            stopped_by=self.stopped_by,
        )

    def leader(self) -> Leader:
        """As it was judged after the last epoch, with the moving average where there is one."""
        trial = max(self.trials.values(), key=lambda trial: trial.score)
        assert trial.val is not None
        with trial.averaged():
            made = artifact.to_bytes(self._prompt_set(self._group_of(trial), trial, NO_CALIBRATION))
        return Leader(made, trial.recipe, trial.val)

    def checkpoint(self) -> bytes:
        """The whole state of the run: of each trial still in training what it trains, AdamW's moments, its best."""
        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, trial in self.trials.items()
            for name, value in trial.tensors().items()
        }
        facts = {
            **self._identity(),
            "epochs_done": self.epochs_done,
            "trials": {str(index): trial.facts() for index, trial in self.trials.items()},
            "history": self.history,
        }
        tensors["facts"] = torch.tensor(list(json.dumps(facts, sort_keys=True).encode()), dtype=torch.uint8)
        return save(tensors)

    def restore(self, checkpoint: bytes) -> None:
        """Raises ArtifactError where the bytes are no checkpoint of this backbone, recipe and number of images.

        A run that could not be restored is of no more use: it may have been changed in part.
        """
        try:
            self._restore(checkpoint)
        except torch.OutOfMemoryError:
            raise
        except (SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            # The last is torch's, for tensors of other names and shapes: of other software than this.
            raise ArtifactError(f"not a checkpoint: {error}", code="checkpoint_corrupt") from error

    def _restore(self, checkpoint: bytes) -> None:
        tensors = load(checkpoint)
        facts: dict[str, Any] = json.loads(bytes(tensors.pop("facts").tolist()))
        identity = json.loads(json.dumps(self._identity()))
        if {key: facts.get(key) for key in identity} != identity:
            raise ArtifactError("the checkpoint belongs to another run", code="checkpoint_mismatch")
        self._keep([int(index) for index in facts["trials"]])
        for index, trial in self.trials.items():
            trial.restore(with_prefix(tensors, f"{index}."), facts["trials"][str(index)])
        self.epochs_done, self.history = facts["epochs_done"], facts["history"]
        for group in self.groups:
            group.epochs_done = self.epochs_done

    def _images(self, split: Split) -> SplitImages:
        return SplitImages(self.dataset, split, self.backbone.image_size, keep_limit_bytes=self.compute.image_bytes)

    def _identity(self) -> dict[str, Any]:
        images = self.groups[0].images
        return {
            "recipe": self.recipe.to_dict(),
            "search": self.search.to_dict() if self.search else None,
            "backbone_fingerprint": self.backbone.fingerprint,
            "images": [len(images.train), len(images.val)],
            "start": self.start.sha256 if self.start is not None else None,
        }

    def _table(self) -> list[dict[str, Any]]:
        """What each trial of the search was and came to."""
        assert self.search is not None
        settings = [{name: getattr(recipe, name) for name in sorted(self.search.settings)} for recipe in self.recipes]
        return [each | came_to for each, came_to in zip(settings, self.history, strict=True)]

    def _leader(self) -> Trial:
        return max(self.trials.values(), key=lambda trial: trial.best_score)

    def _group_of(self, trial: Trial) -> Group:
        return next(group for group in self.groups if trial in group.trials)

    def _keep(self, indices: list[int]) -> None:
        """Only these trials go on."""
        self.trials = {index: trial for index, trial in self.trials.items() if index in indices}
        for group in self.groups:
            group.trials = [trial for trial in group.trials if trial in self.trials.values()]
        self.groups = [group for group in self.groups if group.trials]

    def _report(
        self, group: Group, answers: Sequence[review.Answers], calibration: Calibration
    ) -> tuple[dict[str, Any], str | None]:
        """The report, and the traceback where it could not be made."""
        unprompted = review.Unprompted(self.backbone, group.pooling, self.compute)
        images, seed = group.images, self.recipe.seed
        try:
            report = review.make(unprompted, images.train, answers, images.class_names, images.task, calibration, seed)
        except Exception:  # whatever it is: hours of tuning must not be lost for what is said about single images
            return review.unavailable(), traceback.format_exc()
        return report, None

    def _burstiness(self, group: Group, trial: Trial) -> dict[str, Any]:
        if trial.prompts is None:
            return {}
        images = next(iter(group.sample(BURSTINESS_IMAGES)))
        block = prompted_blocks(trial.recipe.depth, self.backbone.depth)[0]
        with torch.no_grad():
            tokens = vit.below(self.backbone, images, trial.recipe.depth)[:, self.backbone.model.num_prefix_tokens :]
            measured = burstiness.backbone_burstiness(tokens, self.backbone.model.blocks[block])
            measured["prompts"] = burstiness.measure(trial.fold())
        return {name: each.to_dict() for name, each in measured.items()}

    def _prompt_set(self, group: Group, trial: Trial, calibration: Calibration) -> PromptSet:
        recipe = trial.recipe
        return PromptSet(
            prompts=None if trial.prompts is None else trial.fold().detach(),
            head_weight=trial.head.weight.detach(),
            head_bias=trial.head.bias.detach(),
            class_names=tuple(self.dataset.class_names),
            method={
                "type": str(recipe.method),
                "depth": str(recipe.depth),
                "prompts": recipe.prompts,
                "rank": recipe.rank,
            },
            backbone=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            pooling=str(group.pooling),
            preprocessing=self.backbone.preprocessing,
            task=self.dataset.task,
            calibration=calibration,
            factors={} if trial.prompts is None else trial.prompts.factors(),
        )


def _check_start(start: PromptSet, backbone: Backbone, recipe: Recipe, search: Search | None) -> None:
    if start.backbone_fingerprint != backbone.fingerprint:
        raise InvalidSetting(
            f"tuning cannot go on from that version: it is for other weights of {start.backbone}, fingerprint "
            f"{start.backbone_fingerprint} there and {backbone.fingerprint} here",
            code=continuing.MISMATCH,
        )
    asked = {**recipe.to_dict(), "pooling": recipe.pooling or backbone.pooling}
    continuing.check(continuing.settings_of(start.method, start.pooling), asked, search.settings if search else ())
