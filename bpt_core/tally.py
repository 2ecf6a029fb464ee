"""How good a batch prediction was, counted from its rows: what is held does not grow with the images.

The numbers are those of evaluate.py where every image has an answer; one that has none was answered wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL

# Shares between 0 and 1, of which more is better.
METRICS = {
    SINGLE_LABEL: ("top1", "top5", "balanced_top1", "coverage", "accepted_accuracy"),
    MULTI_LABEL: ("exact_match", "f1_micro", "f1_macro"),
}


def task_of(metrics: Mapping[str, Any]) -> str:
    """Of which task these are."""
    return next(task for task, names in METRICS.items() if names[0] in metrics)


class Tally:
    """Of one prompt set. Rows are as results.py has them; `top_k` is how many scores they have at most."""

    def __init__(self, task: str, top_k: int, class_count: int) -> None:
        self._task = task
        self._has_top5 = top_k >= min(5, class_count)
        self._counts: Counter[str] = Counter()
        self._actual: Counter[str] = Counter()  # images of each class
        self._claimed: Counter[str] = Counter()  # ... that are said to show it
        self._found: Counter[str] = Counter()  # ... that do show it, and are said to

    def add(self, row: dict[str, Any]) -> None:
        self._counts["images"] += 1
        self._actual.update(row["labels"])
        if self._task == SINGLE_LABEL:
            self._add_single(row)
        else:
            self._add_multi(row)

    def metrics(self) -> dict[str, float | None]:
        """Those of METRICS; None for what cannot be said: `top5` of rows with fewer scores, a share of nothing."""
        return self._single() if self._task == SINGLE_LABEL else self._multi()

    def _add_single(self, row: dict[str, Any]) -> None:
        [label] = row["labels"]
        names = [score["label"] for score in row["scores"]]
        is_right = names[:1] == [label]
        is_accepted = bool(row["predicted"])
        self._found[label] += is_right
        self._counts["top5"] += label in names[:5]
        self._counts["accepted"] += is_accepted
        self._counts["right"] += is_accepted and is_right

    def _add_multi(self, row: dict[str, Any]) -> None:
        self._counts["exact"] += row["error"] is None and set(row["labels"]) == set(row["predicted"])
        self._claimed.update(row["predicted"])
        self._found.update(set(row["labels"]) & set(row["predicted"]))

    def _single(self) -> dict[str, float | None]:
        images, recalls = self._counts["images"], [self._found[name] / count for name, count in self._actual.items()]
        return {
            "top1": _share(self._found.total(), images),
            "top5": _share(self._counts["top5"], images) if self._has_top5 else None,
            "balanced_top1": _share(sum(recalls), len(recalls)),
            "coverage": _share(self._counts["accepted"], images),
            "accepted_accuracy": _share(self._counts["right"], self._counts["accepted"]),
        }

    def _multi(self) -> dict[str, float | None]:
        f1 = [2 * self._found[name] / (count + self._claimed[name]) for name, count in self._actual.items()]
        return {
            "exact_match": _share(self._counts["exact"], self._counts["images"]),
            "f1_micro": _share(2 * self._found.total(), self._actual.total() + self._claimed.total()),
            "f1_macro": _share(sum(f1), len(f1)),
        }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
