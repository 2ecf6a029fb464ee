"""Two prompt sets on the same labelled images, counted from the rows of a batch prediction.

What is held does not grow with the images. An image that could not be read was answered wrong by both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

import pyarrow.parquet as pq

from bpt_core.dataset import SINGLE_LABEL
from bpt_core.results import BATCH_ROWS, Row

CALIBRATION_BINS = 15
_COLUMNS = ["image", "labels", "prompt_set", "predicted", "scores", "error"]


class Flip(StrEnum):
    """What became of an image from `a` to `b`."""

    LOST = "lost"  # a was right, b is wrong
    WON = "won"  # the other way round


@dataclass(frozen=True)
class Answer:
    """What one prompt set says of one image. `confidence` is that of the first label; None where nothing is claimed."""

    labels: tuple[str, ...]
    is_right: bool
    confidence: float | None

    @classmethod
    def of(cls, row: Row, task: str) -> Answer:
        """Single-label: the class that comes first, whether or not it was rejected, as `top1` has it."""
        if row["error"] is not None:
            return cls((), False, None)
        if task == SINGLE_LABEL:
            best = row["scores"][0]
            return cls((best["label"],), [best["label"]] == row["labels"], best["score"])
        return cls(tuple(row["predicted"]), set(row["predicted"]) == set(row["labels"]), None)


@dataclass(frozen=True)
class Pair:
    """The `number`th image, from 0, as both see it; `is_read` is False where it could not be."""

    number: int
    image: str
    labels: tuple[str, ...]
    a: Answer
    b: Answer
    is_read: bool

    @property
    def flip(self) -> Flip | None:
        if self.a.is_right == self.b.is_right:
            return None
        return Flip.LOST if self.a.is_right else Flip.WON


def pairs(results: BinaryIO, prompt_sets: int, a: str, b: str, task: str, skip: int = 0) -> Iterator[Pair]:
    """From a Parquet file of results.py, in its order, without the first `skip` images.

    Of every image it has a row for each of so many `prompt_sets`.
    """
    waiting: list[Row] = []
    with pq.ParquetFile(results) as file:
        number, groups = skip, list(range(file.num_row_groups))
        start = 0  # row at which the first of the groups begins
        while groups and start + file.metadata.row_group(groups[0]).num_rows <= skip * prompt_sets:
            start += file.metadata.row_group(groups.pop(0)).num_rows
        ahead = skip * prompt_sets - start
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=_COLUMNS):
            waiting += batch.slice(ahead).to_pylist()
            ahead = max(0, ahead - batch.num_rows)
            whole = len(waiting) - len(waiting) % prompt_sets
            for first in range(0, whole, prompt_sets):
                rows = {row["prompt_set"]: row for row in waiting[first : first + prompt_sets]}
                yield _pair(number, rows[a], rows[b], task)
                number += 1
            waiting = waiting[whole:]


def _pair(number: int, a: Row, b: Row, task: str) -> Pair:
    assert a["image"] == b["image"]
    is_read = a["error"] is None or b["error"] is None
    return Pair(number, a["image"], tuple(a["labels"]), Answer.of(a, task), Answer.of(b, task), is_read)


@dataclass(frozen=True)
class Side:
    """`accuracy` is the share that is right: top1, for several labels exact_match. `calibration_error` is the expected
    calibration error of what was answered; None for several labels."""

    accuracy: float | None
    calibration_error: float | None


class Comparison:
    """`lost` and `won` count images by Flip; `agreeing` those that got the same answer, right or wrong."""

    def __init__(self) -> None:
        self.images = self.unread = self.agreeing = 0
        self.flips: Counter[Flip] = Counter()
        self._a, self._b = _Tally(), _Tally()
        self._of_class: Counter[str] = Counter()

    def add(self, pair: Pair) -> None:
        self.images += 1
        self.unread += not pair.is_read
        self.agreeing += pair.is_read and set(pair.a.labels) == set(pair.b.labels)
        if pair.flip is not None:
            self.flips[pair.flip] += 1
        self._of_class.update(pair.labels)
        self._a.add(pair.labels, pair.a)
        self._b.add(pair.labels, pair.b)

    @property
    def a(self) -> Side:
        return self._a.side(self.images)

    @property
    def b(self) -> Side:
        return self._b.side(self.images)

    @property
    def agreement(self) -> float | None:
        return self.agreeing / self.images if self.images else None

    @property
    def p_value(self) -> float:
        """McNemar's test, exact: how likely so uneven a split of the flips is where neither is better."""
        few, all_ = min(self.flips[Flip.LOST], self.flips[Flip.WON]), self.flips.total()
        tail = math.fsum(math.exp(_log_choose(all_, count) - all_ * math.log(2)) for count in range(few + 1))
        return min(1.0, 2 * tail)

    def classes(self) -> Iterator[tuple[str, int, float, float]]:
        """(name, images, recall of a, recall of b) by name."""
        for name, images in sorted(self._of_class.items()):
            yield name, images, self._a.found[name] / images, self._b.found[name] / images


class _Tally:
    """Of one side."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()  # images of a class that were said to show it
        self._right = self._claims = 0
        self._gaps = [0.0] * CALIBRATION_BINS  # confidence less outcome, summed over each bin

    def add(self, labels: tuple[str, ...], answer: Answer) -> None:
        self._right += answer.is_right
        self.found.update(set(labels) & set(answer.labels))
        if answer.confidence is not None:
            self._claims += 1
            # The bins (0, 1/15], ..., (14/15, 1] that evaluate.py has.
            place = math.ceil(answer.confidence * CALIBRATION_BINS) - 1
            self._gaps[min(max(place, 0), CALIBRATION_BINS - 1)] += answer.confidence - answer.is_right

    def side(self, images: int) -> Side:
        error = sum(map(abs, self._gaps)) / self._claims if self._claims else None
        return Side(self._right / images if images else None, error)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
