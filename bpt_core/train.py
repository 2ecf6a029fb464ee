"""Tuning: learn prompts and a head for one dataset on one frozen backbone.

The best epoch is chosen on the validation split; the test split is touched once, at the end. A run is a
function of (backbone, dataset, recipe): all randomness is drawn from the seed and the epoch, so a run that
was interrupted and goes on from a checkpoint ends with the same artifact as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from bpt_core import vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.dataset import PackedDataset, Split
from bpt_core.errors import ArtifactError, DatasetError, TuningDiverged
from bpt_core.evaluate import Evaluation, evaluate
from bpt_core.prompts import build_prompts
from bpt_core.recipe import Recipe
from bpt_core.views import SplitImages

FORWARD_BATCH = 64  # images in a batch that takes no gradient
HEAD_FIT_VIEWS = 6  # crops of each image that the head is fitted to


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training split gave; `epoch` counts from 1, losses are mean cross-entropy in nats."""

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """The outcome: `test` is None where the dataset has no test split (a val split is never called test)."""

    prompt_set: PromptSet
    best_epoch: int
    val: Evaluation
    test: Evaluation | None


OnEpoch = Callable[[Epoch, Callable[[], bytes]], None]


def tune(
    backbone: Backbone,
    dataset: PackedDataset,
    recipe: Recipe,
    *,
    checkpoint: bytes | None = None,
    on_epoch: OnEpoch | None = None,
) -> Tuned:
    """Learn a prompt set.

    After each epoch `on_epoch(report, make_checkpoint)` is called; `make_checkpoint()` gives the bytes from
    which `tune(..., checkpoint=...)` goes on. An exception that `on_epoch` raises ends the run and passes through.

    Raises DatasetError (no training or validation images), TuningDiverged, ArtifactError (a checkpoint of
    another run).
    """
    run = _Run(backbone, dataset, recipe)
    if checkpoint is not None:
        run.restore(checkpoint)
    elif recipe.head_fit_epochs:
        run.fit_head()
    while run.epochs_done < recipe.epochs:
        report = run.one_epoch()
        if on_epoch is not None:
            on_epoch(report, run.checkpoint)
    return run.finish()


class _Run:
    def __init__(self, backbone: Backbone, dataset: PackedDataset, recipe: Recipe) -> None:
        self.backbone, self.dataset, self.recipe = backbone, dataset, recipe
        self.train = SplitImages(dataset, Split.TRAIN, backbone.image_size)
        self.val = SplitImages(dataset, Split.VAL, backbone.image_size)
        if not len(self.train) or not len(self.val):
            raise DatasetError("tuning needs images to train on and images to validate with", code="dataset_empty")
        generator = torch.Generator().manual_seed(recipe.seed)
        self.prompts = build_prompts(recipe, backbone, generator)
        self.head = nn.Linear(backbone.embed_dim, len(dataset.class_names))
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        modules = {"head": self.head} if self.prompts is None else {"prompts": self.prompts, "head": self.head}
        self.trainables = nn.ModuleDict(modules).to(backbone.device)
        self.optimizer = torch.optim.AdamW(self._parameter_groups())
        self.epochs_done = 0
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_score = 0, (-math.inf, -math.inf)
        # Without prompts the frozen backbone's features of a view (or of the val split) never change: they are
        # computed once and kept.
        self._kept: dict[int | Split, Tensor] = {}

    def fit_head(self) -> None:
        """Fit the head alone to the features that the prompts give as they are now; a candidate for the best."""
        recipe = self.recipe
        optimizer = torch.optim.AdamW(self._parameter_groups("head."))
        steps = recipe.head_fit_epochs * math.ceil(len(self.train) / recipe.batch_size)
        step = 0
        for epoch in range(recipe.head_fit_epochs):
            kept = self._kept_features(epoch % HEAD_FIT_VIEWS)
            for batch in self._batches(-1 - epoch):
                rate = _half_cosine(recipe.head_fit_learning_rate, step / steps)
                self._step(optimizer, rate, kept[batch], batch)
                step += 1
        self._kept.clear()  # prompts will have changed by the next time
        self._note_if_best(self._evaluate_val())

    def one_epoch(self) -> Epoch:
        started = time.monotonic()
        epoch, recipe = self.epochs_done, self.recipe
        batches = self._batches(epoch)
        total = torch.zeros((), device=self.backbone.device)
        rate = 0.0
        for step, (batch, features) in enumerate(self._training_features(batches, epoch), epoch * len(batches)):
            rate = self._learning_rate(step, len(batches))
            total += self._step(self.optimizer, rate, features, batch) * len(batch)
        self.epochs_done += 1
        train_loss = total.item() / len(self.train)
        val = self._evaluate_val()
        if not (math.isfinite(train_loss) and math.isfinite(val.loss)):
            raise TuningDiverged(
                f"the loss became {train_loss} in epoch {epoch + 1}; "
                f"a learning rate below {recipe.learning_rate} may help"
            )
        self._note_if_best(val)
        return Epoch(
            epoch=self.epochs_done,
            epochs=recipe.epochs,
            train_loss=train_loss,
            val_loss=val.loss,
            val_accuracy=val.top1,
            learning_rate=rate,
            seconds=time.monotonic() - started,
        )

    def finish(self) -> Tuned:
        if self.recipe.head_fit_epochs:
            self.fit_head()
        self.trainables.load_state_dict(self.best)
        test = SplitImages(self.dataset, Split.TEST, self.backbone.image_size)
        return Tuned(
            prompt_set=self._prompt_set(),
            best_epoch=self.best_epoch,
            val=self._evaluate_val(),
            test=self._evaluate(test, self._evaluation_features(test)) if len(test) else None,
        )

    def checkpoint(self) -> bytes:
        """The whole state of the run: trainables, AdamW moments, the best epoch so far. Small."""
        tensors = {f"now.{name}": value for name, value in self._state().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.trainables.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adamw.{key}.{name}"] = value
        facts = {
            **self._identity(),
            "epochs_done": self.epochs_done,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
        }
        ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        ready["facts"] = torch.tensor(list(json.dumps(facts, sort_keys=True).encode()), dtype=torch.uint8)
        return save(ready)

    def restore(self, checkpoint: bytes) -> None:
        """Raises ArtifactError where the bytes are no checkpoint of this backbone, recipe and number of images."""
        try:
            tensors = load(checkpoint)
            facts: dict[str, Any] = json.loads(bytes(tensors.pop("facts").tolist()))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"not a checkpoint: {error}", code="checkpoint_corrupt") from error
        if {key: facts.get(key) for key in self._identity()} != self._identity():
            raise ArtifactError("the checkpoint belongs to another run", code="checkpoint_mismatch")
        device = self.backbone.device
        self.trainables.load_state_dict(_with_prefix(tensors, "now."))
        self.best = {name: value.to(device) for name, value in _with_prefix(tensors, "best.").items()}
        for name, parameter in self.trainables.named_parameters():
            self.optimizer.state[parameter] = {
                key: tensors[f"adamw.{key}.{name}"].to(device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.epochs_done, self.best_epoch = facts["epochs_done"], facts["best_epoch"]
        self.best_score = (facts["best_score"][0], facts["best_score"][1])

    def _identity(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "backbone_fingerprint": self.backbone.fingerprint,
            "images": [len(self.train), len(self.val)],
        }

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.trainables.state_dict().items()}

    def _note_if_best(self, val: Evaluation) -> None:
        if (val.top1, -val.loss) > self.best_score:
            self.best_score, self.best_epoch = (val.top1, -val.loss), self.epochs_done
            self.best = {name: value.clone() for name, value in self._state().items()}

    def _batches(self, epoch: int) -> list[Tensor]:
        """Indices of the training images in this epoch's order; negative epochs are those of fit_head."""
        size = self.recipe.batch_size
        order = np.random.default_rng((self.recipe.seed, abs(epoch), int(epoch < 0))).permutation(len(self.train))
        return [torch.from_numpy(order[at : at + size]) for at in range(0, len(order), size)]

    def _step(self, optimizer: torch.optim.Optimizer, rate: float, features: Tensor, batch: Tensor) -> Tensor:
        """One step on features [B, d] of the images `batch` [B] -> their mean loss, still on the device."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = functional.cross_entropy(self.head(features), self.train.labels[batch].to(self.backbone.device))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    def _parameter_groups(self, prefix: str = "") -> list[dict[str, Any]]:
        """Head, other matrices, vectors: three weight decays, as in the paper."""
        head: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in self.trainables.named_parameters():
            if not name.startswith(prefix):
                continue
            group = vectors if parameter.ndim < 2 else head if name.startswith("head.") else matrices
            group.append(parameter)
        decays = ((head, self.recipe.head_weight_decay), (matrices, self.recipe.weight_decay), (vectors, 0.0))
        return [{"params": params, "weight_decay": decay} for params, decay in decays if params]

    def _learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Linear from 0 over the warm-up, then half a cosine down to 1e-8, per step."""
        warmup = self.recipe.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.recipe.learning_rate * (step + 1) / warmup
        share = (step - warmup) / max(1, self.recipe.epochs * steps_per_epoch - warmup)
        return _half_cosine(self.recipe.learning_rate, share)

    def _features(self, pixels: Tensor) -> Tensor:
        prompts = None if self.prompts is None else self.prompts.fold()
        return vit.features(self.backbone, self.backbone.normalise(pixels), prompts)

    def _training_features(self, batches: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (indices [B], features [B, d]) for each batch, with a gradient to the prompts if there are any."""
        recipe = self.recipe
        view = epoch % recipe.views if recipe.views else epoch
        if self.prompts is None:
            kept = self._kept_features(view)
            for batch in batches:
                yield batch, kept[batch]
            return
        drawn = self.train.training_batches(
            [batch.tolist() for batch in batches],
            seed=recipe.seed,
            view=view,
            scale_min=recipe.crop_scale_min,
        )
        for batch, pixels in zip(batches, drawn, strict=True):
            yield batch, self._features(pixels)

    def _kept_features(self, view: int) -> Tensor:
        if view not in self._kept:
            in_order = range(len(self.train))
            batches = [in_order[at : at + FORWARD_BATCH] for at in range(0, len(in_order), FORWARD_BATCH)]
            drawn = self.train.training_batches(
                batches, seed=self.recipe.seed, view=view, scale_min=self.recipe.crop_scale_min
            )
            with torch.no_grad():
                self._kept[view] = torch.cat([self._features(pixels) for pixels in drawn])
        return self._kept[view]

    def _evaluate_val(self) -> Evaluation:
        if self.prompts is not None:
            return self._evaluate(self.val, self._evaluation_features(self.val))
        if Split.VAL not in self._kept:
            self._kept[Split.VAL] = self._evaluation_features(self.val)
        return self._evaluate(self.val, self._kept[Split.VAL])

    @torch.no_grad()
    def _evaluation_features(self, images: SplitImages) -> Tensor:
        return torch.cat([self._features(pixels) for pixels in images.evaluation_batches(FORWARD_BATCH)])

    @torch.no_grad()
    def _evaluate(self, images: SplitImages, features: Tensor) -> Evaluation:
        return evaluate(self.head(features).float().cpu(), images.labels, self.dataset.class_names)

    def _prompt_set(self) -> PromptSet:
        recipe, state = self.recipe, self._state()
        return PromptSet(
            prompts=None if self.prompts is None else self.prompts.fold().detach(),
            head_weight=state["head.weight"],
            head_bias=state["head.bias"],
            class_names=tuple(self.dataset.class_names),
            method={
                "type": str(recipe.method),
                "depth": str(recipe.depth),
                "prompts": recipe.prompts,
                "rank": recipe.rank,
            },
            backbone=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            pooling=str(self.backbone.pooling),
            preprocessing=self.backbone.preprocessing,
            task=self.dataset.task,
            factors=_with_prefix(state, "prompts."),
        )


def _half_cosine(rate: float, share: float) -> float:
    """From `rate` at share 0 down to 1e-8 at share 1."""
    return 1e-8 + (rate - 1e-8) * 0.5 * (1 + math.cos(math.pi * share))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
