"""How good predictions are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split; accuracies are shares between 0 and 1, `loss` is mean cross-entropy in nats.

    `per_class` has None for a class without images in the split.
    """

    images: int
    loss: float
    top1: float
    top5: float
    per_class: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> Evaluation:
    """logits [N, C] float32, labels [N] int64; N >= 1. With fewer than five classes top-5 is top-C."""
    assert len(logits) == len(labels) >= 1
    correct = logits.argmax(dim=1) == labels
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    per_class: dict[str, float | None] = {}
    for label, name in enumerate(class_names):
        mine = correct[labels == label]
        per_class[name] = mine.float().mean().item() if len(mine) else None
    return Evaluation(
        images=len(labels),
        loss=functional.cross_entropy(logits, labels).item(),
        top1=correct.float().mean().item(),
        top5=(top == labels[:, None]).any(dim=1).float().mean().item(),
        per_class=per_class,
    )
