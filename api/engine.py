"""Serving inside the API process: shared frozen backbones and one thread that computes.

Only roles `predict` and `all` import this module; the role `api` stays free of torch.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from bpt_core import artifact, catalog, images
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.errors import ImageError
from bpt_core.predict import Predictor
from bpt_store.settings import Settings

PROMPT_SETS_KEPT = 1000
DECODE_THREADS = 4


@dataclass(frozen=True)
class Answer:
    """`probabilities` [number of good images, C]; `decoded` has an image or the error of each input, in order."""

    prompt_set: PromptSet
    decoded: list[Image.Image | ImageError]
    probabilities: Tensor
    decode_seconds: float
    compute_seconds: float


class Engine:
    """Decodes in a few threads, computes in one: the device is never shared by two computations."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._device = settings.device
        if self._device == "auto":
            self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._decoders = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        self._computer = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._predictors: dict[str, Predictor] = {}
        # Keyed by the artifact's hash, which covers content and backbone: equal bytes are the same prompt set.
        self._prompt_sets: OrderedDict[str, PromptSet] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, artifact_sha256: str) -> PromptSet | None:
        """The prompt set of an artifact that was loaded before, if it is still here."""
        with self._lock:
            if artifact_sha256 in self._prompt_sets:
                self._prompt_sets.move_to_end(artifact_sha256)
            return self._prompt_sets.get(artifact_sha256)

    def load(self, artifact_sha256: str, data: bytes) -> PromptSet:
        """The prompt set in the artifact `data`, kept for later; ArtifactError where it is none."""
        prompt_set = artifact.from_bytes(data)
        with self._lock:
            self._prompt_sets[artifact_sha256] = prompt_set
            if len(self._prompt_sets) > PROMPT_SETS_KEPT:
                self._prompt_sets.popitem(last=False)
        return prompt_set

    def predict(self, encoded: Sequence[bytes], prompt_set: PromptSet) -> Answer:
        """Decode and predict; call it off the event loop. Images fail one by one.

        Raises ArtifactError (learned on other weights), BackboneError.
        """
        started = time.monotonic()
        decoded = list(self._decoders.map(_decode, encoded))
        decoded_at = time.monotonic()
        good = [image for image in decoded if isinstance(image, Image.Image)]
        probabilities = self._computer.submit(self._compute, good, prompt_set).result()
        return Answer(
            prompt_set=prompt_set,
            decoded=decoded,
            probabilities=probabilities,
            decode_seconds=decoded_at - started,
            compute_seconds=time.monotonic() - decoded_at,
        )

    def close(self) -> None:
        self._decoders.shutdown()
        self._computer.shutdown()

    def _compute(self, good: list[Image.Image], prompt_set: PromptSet) -> Tensor:
        predictor = self._predictor(prompt_set.backbone)
        predictor.check(prompt_set)
        return predictor.predict(good, prompt_set) if good else torch.empty(0, len(prompt_set.class_names))

    def _predictor(self, backbone: str) -> Predictor:
        if backbone not in self._predictors:
            weights = catalog.local_weights(self._settings.weights_directory, backbone)
            self._predictors[backbone] = Predictor(load_backbone(backbone, weights=weights, device=self._device))
        return self._predictors[backbone]


def _decode(data: bytes) -> Image.Image | ImageError:
    try:
        return images.canonical(data)
    except ImageError as error:
        return error
