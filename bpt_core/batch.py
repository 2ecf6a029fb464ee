"""Batch prediction: stored images through several prompt sets, of several backbones if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Self

import torch
from PIL import Image

from bpt_core import images
from bpt_core.artifact import PromptSet
from bpt_core.dataset import Item
from bpt_core.errors import ImageError
from bpt_core.predict import Prediction, Predictor
from bpt_core.results import Row

CHUNK_IMAGES = 64  # in one forward, and decoded ahead
DECODE_THREADS = 2


class Batch:
    """What is asked of every image. A context manager: it has threads that decode.

    `predictors` by the name of their backbone, `prompt_sets` by the reference that rows name them by; `class_names`
    are the dataset's. ArtifactError where a prompt set was learned on other weights than are loaded.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        prompt_sets: Mapping[str, PromptSet],
        class_names: Sequence[str],
        top_k: int,
    ) -> None:
        for prompt_set in prompt_sets.values():
            predictors[prompt_set.backbone].check(prompt_set)
        self._predictors, self._prompt_sets = predictors, prompt_sets
        self._class_names, self._top_k = class_names, top_k
        self._decoders = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._decoders.shutdown(cancel_futures=True)

    @property
    def score_columns(self) -> int:
        """The most scores a row has."""
        return min(self._top_k, max(len(prompt_set.class_names) for prompt_set in self._prompt_sets.values()))

    def chunks(self, items: Iterator[Item]) -> Iterator[list[Row]]:
        """Rows of some images at a time, in the order of `items`: for each image one per prompt set."""
        for chunk in self._decoded(items):
            good = [picture for _, picture in chunk if isinstance(picture, Image.Image)]
            answers = {name: self._answers(name, good) for name in self._predictors}
            yield [
                self._row(item, reference, picture if isinstance(picture, ImageError) else next(answers[one.backbone]))
                for item, picture in chunk
                for reference, one in self._prompt_sets.items()
            ]

    def _answers(self, backbone: str, pictures: list[Image.Image]) -> Iterator[Prediction]:
        """Picture by picture one for each prompt set of this backbone: what they have in common is computed once."""
        prompt_sets = [each for each in self._prompt_sets.values() if each.backbone == backbone]
        rows = [(picture, prompt_set) for picture in pictures for prompt_set in prompt_sets]
        return iter(_predict(self._predictors[backbone], rows))

    def _decoded(self, items: Iterator[Item]) -> Iterator[list[tuple[Item, Image.Image | ImageError]]]:
        """The next chunk is decoded while the one before is predicted."""
        ahead: deque[list[tuple[Item, Future[Image.Image | ImageError]]]] = deque()
        while True:
            chunk = [(item, self._decoders.submit(_decode, item.image)) for item in islice(items, CHUNK_IMAGES)]
            if chunk:
                ahead.append(chunk)
            if not ahead:
                return
            if len(ahead) > 1 or not chunk:
                yield [(item, picture.result()) for item, picture in ahead.popleft()]

    def _row(self, item: Item, reference: str, answer: Prediction | ImageError) -> Row:
        row: Row = {
            "image": item.path,
            "split": item.split.value,
            "labels": [self._class_names[label] for label in item.labels],
            "prompt_set": reference,
        }
        error = answer if isinstance(answer, ImageError) else answer.error
        if error is not None:
            told = {"code": error.code, "detail": str(error)}
            return {**row, "predicted": [], "unknown": None, "scores": [], "error": told}
        assert isinstance(answer, Prediction)
        scores = [{"label": label, "score": score} for label, score in answer.top(self._top_k)]
        predicted = list(answer.labels())
        return {**row, "predicted": predicted, "unknown": not predicted, "scores": scores, "error": None}


def _predict(predictor: Predictor, rows: list[tuple[Image.Image, PromptSet]]) -> list[Prediction]:
    """In one go, or in halves where the device has not the memory for that."""
    try:
        return predictor.predict([picture for picture, _ in rows], [prompt_set for _, prompt_set in rows])
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    return _predict(predictor, rows[:half]) + _predict(predictor, rows[half:])


def _decode(data: bytes) -> Image.Image | ImageError:
    try:
        return images.decode(data)
    except ImageError as error:
        return error
