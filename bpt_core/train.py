"""Trials in training: several recipes at once over one frozen backbone, in shared batches.

All trials of a group see the same views of the same images in the same order; what lies below the first prompted
block is computed once for all of them, above it each trial has rows of its own with its own prompts. A gradient never
crosses from one trial to another, so each learns what it would have learned alone.

All randomness is drawn from the seed and the epoch: a group that goes on from a checkpoint ends where it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bpt_core import objective, vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.compute import Compute
from bpt_core.errors import TuningDiverged
from bpt_core.evaluate import Evaluation, evaluate
from bpt_core.kept import FORWARD_BATCH, Kept
from bpt_core.objective import Objective
from bpt_core.prompts import build_prompts
from bpt_core.recipe import HEAD_FIT_VIEWS, Recipe
from bpt_core.trial import NONE_YET, Trial, half_cosine, learning_rate
from bpt_core.views import SplitImages
from bpt_core.whitening import Whitening


@dataclass(frozen=True)
class Images:
    """The images of one tuning run, decoded once for all its groups."""

    train: SplitImages
    val: SplitImages
    class_names: tuple[str, ...]
    task: str


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training split gave; `epoch` counts from 1, losses are mean cross-entropy in nats.

    `val_accuracy` is top-1, or mean average precision with several labels per image. With several trials in
    training, figures are those of the trial that leads.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    trials: int = 1


def fusable(recipe: Recipe) -> Recipe:
    """Recipes for which this is equal may train in one group: they differ in nothing but rates, decays and rank."""
    return replace(recipe, learning_rate=1.0, weight_decay=0.0, head_weight_decay=0.0, rank=min(recipe.rank, 1))


class Group:
    """Trials that train together. `trials` may shrink between epochs; a sole trial is the common case."""

    def __init__(
        self,
        backbone: Backbone,
        images: Images,
        recipes: Sequence[Recipe],
        compute: Compute,
        going_on_from: PromptSet | None = None,
    ) -> None:
        assert len({fusable(recipe) for recipe in recipes}) == 1
        self.backbone, self.images, self.compute = backbone, images, compute
        self.going_on_from = going_on_from
        self.recipe = recipes[0]  # for what is the same in all
        self.pooling: Pooling = self.recipe.pooling or backbone.pooling
        self.whitening: Sequence[Whitening] = ()
        self.trials = [self._trial(recipe) for recipe in recipes]
        self.objective = Objective(images.task, self.recipe, images.train.targets.to(backbone.device))
        self._above = torch.compile(vit.above) if compute.compile else vit.above
        self.kept = Kept(
            images.train,
            images.val,
            self.recipe,
            self._below,
            row_bytes=self._row_bytes(),
            limit_bytes=compute.token_bytes,
        )
        self.epochs_done = 0

    def one_epoch(self) -> Epoch:
        """Train for one epoch and validate.

        A trial whose loss is no number scores -inf; TuningDiverged if that is true of all.
        """
        started = time.monotonic()
        epoch, recipe = self.epochs_done, self.recipe
        batches = self._batches(epoch)
        totals = torch.zeros(len(self.trials), device=self.backbone.device)
        rates = [0.0] * len(self.trials)
        for at, (batch, tokens) in enumerate(zip(batches, self.kept.training(batches, epoch), strict=True)):
            targets = self.images.train.targets[batch].to(self.backbone.device, non_blocking=True)
            if recipe.mixup:
                draw = np.random.default_rng((recipe.seed, epoch, at, 3)).integers(2**62)
                generator = torch.Generator().manual_seed(int(draw))
                tokens, targets = objective.mix(tokens, targets, recipe.mixup, generator)
            totals += self._gradients(tokens, targets) * len(batch)
            for index, trial in enumerate(self.trials):
                rates[index] = learning_rate(trial.recipe, epoch * len(batches) + at, len(batches))
                trial.step(rates[index])
        self.epochs_done += 1
        train_losses = (totals / len(self.images.train)).tolist()
        evaluations = self.evaluate_val()
        for trial, train_loss, val in zip(self.trials, train_losses, evaluations, strict=True):
            sound = math.isfinite(train_loss) and math.isfinite(val.loss)
            trial.note((val.score, -val.loss) if sound else NONE_YET, self.epochs_done)
            trial.val = val
        lead = max(range(len(self.trials)), key=lambda index: self.trials[index].score)
        if self.trials[lead].score == NONE_YET:
            raise TuningDiverged(
                f"the loss became {train_losses[lead]} in epoch {epoch + 1}; "
                f"a learning rate below {self.trials[lead].recipe.learning_rate} may help"
            )
        return Epoch(
            epoch=self.epochs_done,
            epochs=recipe.epochs,
            train_loss=train_losses[lead],
            val_loss=evaluations[lead].loss,
            val_accuracy=evaluations[lead].score,
            learning_rate=rates[lead],
            seconds=time.monotonic() - started,
            trials=len(self.trials),
        )

    def _gradients(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Of the mean loss over a batch, in each trial's parameters -> the losses [T]."""
        total = torch.zeros(len(self.trials), device=self.backbone.device)
        size = math.ceil(len(tokens) / self.compute.micro_batches)
        for at in range(0, len(tokens), size):
            rows, wanted = tokens[at : at + size], targets[at : at + size]
            losses = [
                self.objective(trial.head(features), wanted) * (len(rows) / len(tokens))
                for trial, features in zip(self.trials, self._features(rows, self.trials), strict=True)
            ]
            torch.autograd.backward(losses)
            total += torch.stack([loss.detach() for loss in losses])
        return total

    def fit_heads(self) -> None:
        """Fit the heads alone to the features that the prompts give as they are now; candidates for the best."""
        recipe, device = self.recipe, self.backbone.device
        steps = recipe.head_fit_epochs * math.ceil(len(self.images.train) / recipe.batch_size)
        # Prompts get no gradient here, and what has none is left alone.
        optimizers = [torch.optim.AdamW(trial.parameter_groups()) for trial in self.trials]
        kept: dict[int, list[Tensor]] = {}
        step = 0
        for epoch in range(recipe.head_fit_epochs):
            view = epoch % min(HEAD_FIT_VIEWS, recipe.views or HEAD_FIT_VIEWS)
            if view not in kept:
                kept[view] = self._features_of_view(view)
            for batch in self._batches(-1 - epoch):
                targets = self.images.train.targets[batch].to(device)
                rate = half_cosine(recipe.head_fit_learning_rate, step / steps)
                for trial, optimizer, features in zip(self.trials, optimizers, kept[view], strict=True):
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    torch.autograd.backward(self.objective(trial.head(features[batch.to(device)]), targets))
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                step += 1
        self.judge()

    @property
    def has_heads(self) -> bool:
        """The prompt set that is gone on from tells the same classes apart, so its head is where the heads begin."""
        start = self.going_on_from
        return start is not None and (start.class_names, start.task) == (self.images.class_names, self.images.task)

    def judge(self) -> None:
        """What the trials are now may be the best they will have been."""
        for trial, val in zip(self.trials, self.evaluate_val(), strict=True):
            trial.note((val.score, -val.loss) if math.isfinite(val.loss) else NONE_YET, self.epochs_done)

    def evaluate_val(self) -> list[Evaluation]:
        """The validation split, for each trial."""
        targets = self.images.val.targets
        return [
            evaluate(logits, targets, self.images.class_names, self.images.task)
            for logits in self.logits(self.kept.validation())
        ]

    @torch.no_grad()
    def logits(self, tokens: Iterator[Tensor]) -> list[Tensor]:
        """What `Kept` gives of N images -> logits [N, C] float32 on the CPU, for each trial."""
        parts: list[list[Tensor]] = [[] for _ in self.trials]
        with ExitStack() as judged:
            for trial in self.trials:
                judged.enter_context(trial.averaged())
            for rows in tokens:
                for index, features in enumerate(self._features(rows, self.trials)):
                    parts[index].append(self.trials[index].head(features).float().cpu())
        return [torch.cat(each) for each in parts]

    def _trial(self, recipe: Recipe) -> Trial:
        generator = torch.Generator().manual_seed(recipe.seed)
        # The trials of a group have blocks and images in common, hence the whitening too.
        start = self.going_on_from
        prompts, self.whitening = build_prompts(recipe, self.backbone, self.sample, generator, self.whitening, start)
        return Trial(
            recipe,
            prompts,
            embed_dim=self.backbone.embed_dim,
            classes=len(self.images.class_names),
            generator=generator,
            device=self.backbone.device,
            head=(start.head_weight, start.head_bias) if start is not None and self.has_heads else None,
        )

    def sample(self, count: int) -> Iterator[Tensor]:
        """Batches of so many training images (or all), chosen by the seed, as they are evaluated."""
        train = self.images.train
        order = np.random.default_rng((self.recipe.seed, 2)).permutation(len(train))[:count].tolist()
        for pixels in train.evaluation_batches(FORWARD_BATCH, order):
            yield self.backbone.normalise(pixels)

    def _batches(self, epoch: int) -> list[Tensor]:
        """Indices of the training images in this epoch's order; negative epochs are those of `fit_heads`."""
        size = self.recipe.batch_size
        seed = (self.recipe.seed, abs(epoch), int(epoch < 0))
        order = np.random.default_rng(seed).permutation(len(self.images.train))
        return [torch.from_numpy(order[at : at + size]) for at in range(0, len(order), size)]

    @torch.no_grad()
    def _below(self, pixels: Tensor) -> Tensor:
        """uint8 pixels -> tokens entering the first prompted block, or for the linear probe the features."""
        images = self.backbone.normalise(pixels)
        dtype = self.compute.dtype(self.backbone.device)
        with self.compute.autocast(self.backbone.device):
            if not self.recipe.method.has_prompts:
                return vit.features(self.backbone, images, pooling=self.pooling).float()
            return vit.below(self.backbone, images, self.recipe.depth).to(dtype)

    def _features(self, tokens: Tensor, trials: Sequence[Trial]) -> Tensor:
        """What `_below` gave of B images -> features [trials, B, d], with a gradient to each trial's prompts."""
        if not self.recipe.method.has_prompts:
            return tokens[None].expand(len(trials), -1, -1)
        plain = torch.stack([trial.fold() for trial in trials])
        with self.compute.autocast(self.backbone.device):
            compiled = vit.compile_prompts(self.backbone, plain, self.recipe.depth, self.pooling)
            rows = tokens.repeat(len(trials), 1, 1)
            features: Tensor = self._above(self.backbone, rows, compiled, self.pooling)
        return features.float().view(len(trials), len(tokens), -1)

    @torch.no_grad()
    def _features_of_view(self, view: int) -> list[Tensor]:
        """Features [N, d] of one view of all training images, for each trial; equal prompts are computed once."""
        count = len(self.images.train)
        in_order = [torch.arange(at, min(at + FORWARD_BATCH, count)) for at in range(0, count, FORWARD_BATCH)]
        tokens = self.kept.training(in_order, view)
        if not self.recipe.method.has_prompts:
            return [torch.cat(list(tokens))] * len(self.trials)
        plain = [trial.fold() for trial in self.trials]
        same = [next(at for at, other in enumerate(plain) if torch.equal(other, own)) for own in plain]
        distinct = sorted(set(same))
        parts = [self._features(rows, [self.trials[index] for index in distinct]) for rows in tokens]
        features = torch.cat(parts, dim=1)
        return [features[distinct.index(index)] for index in same]

    def _row_bytes(self) -> int:
        width = self.backbone.embed_dim
        if not self.recipe.method.has_prompts:
            return width * 4
        tokens = self.backbone.model.patch_embed.num_patches + self.backbone.model.num_prefix_tokens
        return int(tokens) * width * self.compute.dtype(self.backbone.device).itemsize
