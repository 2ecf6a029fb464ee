"""One trial: what is trained with one recipe, how it steps, and the best it has been."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpt_core.evaluate import Evaluation
from bpt_core.prompts import Prompts
from bpt_core.recipe import Recipe

Score = tuple[float, float]  # higher is better; the second number breaks ties
NONE_YET: Score = (-math.inf, -math.inf)
EMA_DECAY = 0.9999


class Trial:
    """Prompts (or none) and a head [C, d], AdamW, and the state of the best epoch so far.

    `head` is weight [C, d] and bias [C] to begin with; random where it is None.
    """

    def __init__(
        self,
        recipe: Recipe,
        prompts: Prompts | None,
        *,
        embed_dim: int,
        classes: int,
        generator: torch.Generator,
        device: torch.device,
        head: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.recipe, self.prompts = recipe, prompts
        self.head = nn.Linear(embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        if head is not None:
            self.head.load_state_dict({"weight": head[0], "bias": head[1]})
        modules = {"head": self.head} if prompts is None else {"prompts": prompts, "head": self.head}
        self.trainables = nn.ModuleDict(modules).to(device)
        self.optimizer = torch.optim.AdamW(self.parameter_groups())
        self.average = {name: value.clone() for name, value in self.state().items()} if recipe.ema else {}
        self.steps = 0
        self.best: dict[str, Tensor] = {}
        self.best_epoch, self.best_score = 0, NONE_YET
        self.score = NONE_YET  # of the last epoch
        self.val: Evaluation | None = None  # that score in full; a checkpoint does not keep it

    def fold(self) -> Tensor:
        """-> P~ [k, m, d], with a gradient."""
        assert self.prompts is not None
        return self.prompts.fold()

    def step(self, rate: float) -> None:
        """One step of everything with the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.average:
            decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
            for name, value in self.state().items():
                self.average[name].lerp_(value, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the trainables hold their moving average, where there is one: what is judged is what is served."""
        if not self.average:
            yield
            return
        now = {name: value.clone() for name, value in self.state().items()}
        self.trainables.load_state_dict(self.average)
        yield
        self.trainables.load_state_dict(now)

    def settle(self) -> None:
        """The moving average, where there is one, becomes what is trained."""
        if self.average:
            self.trainables.load_state_dict(self.average)
            self.average = {}

    def note(self, score: Score, epoch: int) -> None:
        """Remember the state that was judged if it is the best so far."""
        self.score = score
        if score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best = {name: value.clone() for name, value in (self.average or self.state()).items()}

    def restore_best(self) -> None:
        self.trainables.load_state_dict(self.best)

    def state(self) -> dict[str, Tensor]:
        """Everything trained, by name: `prompts.*`, `head.*`."""
        return {name: value.detach() for name, value in self.trainables.state_dict().items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Head, other matrices, vectors: three weight decays, as in the paper."""
        head: list[nn.Parameter] = []
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in self.trainables.named_parameters():
            group = vectors if parameter.ndim < 2 else head if name.startswith("head.") else matrices
            group.append(parameter)
        decays = ((head, self.recipe.head_weight_decay), (matrices, self.recipe.weight_decay), (vectors, 0.0))
        return [{"params": params, "weight_decay": decay} for params, decay in decays if params]

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs, beside `facts`."""
        tensors = {f"now.{name}": value for name, value in self.state().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.trainables.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adamw.{key}.{name}"] = value
        return tensors

    def facts(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "score": list(self.score),
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `facts`."""
        device = self.head.weight.device
        self.trainables.load_state_dict(with_prefix(tensors, "now."))
        self.best = {name: value.to(device) for name, value in with_prefix(tensors, "best.").items()}
        self.average = {name: value.to(device) for name, value in with_prefix(tensors, "average.").items()}
        for name, parameter in self.trainables.named_parameters():
            self.optimizer.state[parameter] = {
                key: tensors[f"adamw.{key}.{name}"].to(device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.steps, self.best_epoch = facts["steps"], facts["best_epoch"]
        self.best_score = (facts["best_score"][0], facts["best_score"][1])
        self.score = (facts["score"][0], facts["score"][1])


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Linear from 0 over the warm-up, then half a cosine down to 1e-8, per step."""
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return half_cosine(recipe.learning_rate, (step - warmup) / max(1, recipe.epochs * steps_per_epoch - warmup))


def half_cosine(rate: float, share: float) -> float:
    """From `rate` at share 0 down to 1e-8 at share 1."""
    return 1e-8 + (rate - 1e-8) * 0.5 * (1 + math.cos(math.pi * share))


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
