"""What a tuning job found out about single images."""

from __future__ import annotations

from dataclasses import dataclass

from bpt_client.models import Problem


@dataclass(frozen=True)
class LabelError:
    """An image whose label is probably wrong. `item` is its id, None where the dataset has no index.

    `confidence`, between 0 and 1, is the probability of what is suggested less that of what is given. `source` is
    "tuned" where the prompt set says so, "cross-validation" of training images.
    """

    path: str
    split: str
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    confidence: float
    item: str | None = None
    source: str = ""


@dataclass(frozen=True)
class LabelErrors:
    """`total` of them; `items` are the worst, worst first."""

    total: int
    items: tuple[LabelError, ...] = ()


@dataclass(frozen=True)
class HardImage:
    """`loss` is cross-entropy in nats; with several labels the mean over them."""

    path: str
    split: str
    given: tuple[str, ...]
    predicted: tuple[str, ...]
    loss: float
    item: str | None = None


@dataclass(frozen=True)
class ConfusedPair:
    """So many images of the class `true` were taken for `predicted`, a share `rate` of all of `true` in the split."""

    true: str
    predicted: str
    images: int
    rate: float
    split: str = ""


@dataclass(frozen=True)
class Sampled:
    """So many training images were judged, of so many."""

    images: int
    of: int


@dataclass(frozen=True)
class LeftOut:
    """A class whose label was not judged among the training images."""

    class_name: str
    images: int
    reason: str


@dataclass(frozen=True)
class TuningReport:
    """Everything is worst first. `error` says why there is no report, where it could not be made.

    Label errors are of all splits; the hardest images are of validation and test, confused pairs of the test split, or
    of validation where there is none.
    """

    job: str
    dataset: str
    label_errors: LabelErrors
    dataset_version: int | None = None
    error: Problem | None = None
    hardest: tuple[HardImage, ...] = ()
    confused_pairs: tuple[ConfusedPair, ...] = ()
    sampled: Sampled | None = None
    left_out: tuple[LeftOut, ...] = ()
