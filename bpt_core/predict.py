"""Prediction: any mix of prompt sets applied to the shared frozen backbone in one batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bpt_core import artifact, mixing, vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone, load_backbone
from bpt_core.compute import Compute, Precision
from bpt_core.dataset import MULTI_LABEL
from bpt_core.errors import ArtifactError, ImageError
from bpt_core.evaluate import DEFAULT_LABEL_THRESHOLD, probabilities
from bpt_core.methods import Depth, prompted_blocks
from bpt_core.mixing import Group
from bpt_core.residency import Facts, Residency, Resident
from bpt_core.transforms import evaluation_view

DEVICE_BYTES = 1 << 30
BATCH_ROWS = 64

# uint8 [S, S, 3] as `evaluation_view` gives it, or float32 [3, S, S], normalised already.
Picture = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one prompt set says of one image. `logits` [C] and `features` [d], float32 on the CPU."""

    facts: Facts
    logits: Tensor
    features: Tensor

    @cached_property
    def probabilities(self) -> Tensor:
        """Calibrated, [C]: of the classes, or of each label on its own."""
        return probabilities(self.logits, self.facts.task, self.facts.calibration.temperature)

    @property
    def error(self) -> ImageError | None:
        """`image_not_finite` where the numbers of the image led to none that could be told."""
        if bool(torch.isfinite(self.logits).all()):
            return None
        return ImageError("the result is not a finite number", code="image_not_finite")

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most probable classes, best first, with their probabilities."""
        scores, labels = self.probabilities.topk(min(count, len(self.facts.class_names)))
        return [
            (self.facts.class_names[label], score)
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]

    def labels(self, threshold: float | None = None) -> tuple[str, ...]:
        """What applies, most probable first: one class, or none where it is unknown; any number of several labels.

        `threshold` takes the place of the fitted ones: of the one a class must reach to be believed, of each label's.
        """
        names, calibration = self.facts.class_names, self.facts.calibration
        if self.facts.task == MULTI_LABEL:
            fitted = calibration.label_thresholds or (DEFAULT_LABEL_THRESHOLD,) * len(names)
            least = torch.tensor(fitted) if threshold is None else torch.full((len(names),), threshold)
            order = self.probabilities.argsort(descending=True)
            return tuple(names[index] for index in order.tolist() if self.probabilities[index] >= least[index])
        best = int(self.probabilities.argmax())
        needed = calibration.rejection_threshold if threshold is None else threshold
        return () if needed is not None and float(self.probabilities[best]) < needed else (names[best],)

    def is_unknown(self, threshold: float | None = None) -> bool:
        """None of the classes, or labels, seems to be there."""
        return not self.labels(threshold)


class Predictor:
    """A frozen backbone that answers for any prompt sets learned on it, mixed as they come.

    predictor = Predictor.from_artifacts("birds.safetensors", "quality.safetensors")
    for prediction in predictor.predict(images, ["birds", "quality", "birds"]):
        print(prediction.top(3))

    `device_bytes` bounds what prompt sets take on the device, `host_bytes` what those take that wait in the host's
    memory; what fits nowhere is compiled again when it is asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        precision: Precision = Precision.AUTO,
        device_bytes: int = DEVICE_BYTES,
        host_bytes: int = 0,
    ) -> None:
        self.fingerprint = backbone.fingerprint
        self._dtype = Compute(precision).dtype(backbone.device)
        if self._dtype is not torch.float32:
            # A copy: the one that was given may be tuned on, in its own dtype.
            backbone = replace(backbone, model=copy.deepcopy(backbone.model).to(self._dtype))
        self.backbone = backbone
        self.residency = Residency(backbone, self._dtype, device_bytes=device_bytes, host_bytes=host_bytes)
        self._named: dict[str, PromptSet] = {}

    @classmethod
    def from_artifacts(cls, *paths: Path | str, weights: Path | None = None, device: str = "cpu") -> Predictor:
        """The backbone that artifacts were learned on, and their prompt sets under the names of the files.

        Raises ArtifactError, also when they are of different backbones, and BackboneError.
        """
        sets = {Path(path).stem: artifact.from_bytes(Path(path).read_bytes()) for path in paths}
        backbones = sorted({each.backbone for each in sets.values()})
        if len(backbones) != 1 or len(sets) != len(paths):
            raise ArtifactError(
                f"one backbone and different file names are needed, not {backbones} and {[*map(str, paths)]}",
                code="artifact_schema",
            )
        predictor = cls(load_backbone(backbones[0], weights=weights, device=device))
        for name, prompt_set in sets.items():
            predictor.add(name, prompt_set)
        return predictor

    def add(self, name: str, prompt_set: PromptSet) -> None:
        """Have `predict` know a prompt set by a name. ArtifactError as `check`."""
        self.check(prompt_set)
        self._named[name] = prompt_set

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._named)

    def check(self, prompt_set: PromptSet) -> None:
        """ArtifactError `artifact_schema` unless the prompt set was learned on exactly this backbone."""
        if prompt_set.backbone_fingerprint != self.fingerprint:
            raise ArtifactError(
                f"the prompt set was learned on other weights of {prompt_set.backbone} "
                f"({prompt_set.backbone_fingerprint[:12]}) than are loaded ({self.fingerprint[:12]})",
                code="artifact_schema",
            )

        blocks = len(prompted_blocks(Depth(prompt_set.method["depth"]), self.backbone.depth))
        if prompt_set.prompts is not None and len(prompt_set.prompts) != blocks:
            raise ArtifactError(
                f"{len(prompt_set.prompts)} blocks have prompts where {blocks} should", code="artifact_schema"
            )

    def predict(
        self, images: Sequence[Image.Image], prompt_sets: PromptSet | str | Sequence[PromptSet | str]
    ) -> list[Prediction]:
        """Upright RGB images, and the prompt set of all or one for each (or names given to `add`) -> predictions.

        Raises ArtifactError as `check`, KeyError for an unknown name.
        """
        each = [prompt_sets] * len(images) if isinstance(prompt_sets, PromptSet | str) else list(prompt_sets)
        if len(each) != len(images):
            raise ValueError(f"{len(images)} images and {len(each)} prompt sets")
        found: list[Prediction] = []
        pending: list[tuple[Image.Image, Resident]] = []

        def flush() -> None:
            distinct = {id(image): image for image, _ in pending}
            at = {identity: index for index, identity in enumerate(distinct)}
            pictures = [evaluation_view(image, self.backbone.image_size) for image in distinct.values()]
            rows = [(at[id(image)], resident) for image, resident in pending]
            found.extend(self.launch(pictures, rows).predictions() if rows else [])
            for _, resident in pending:
                self.residency.release(resident)
            pending.clear()

        try:
            for image, one in zip(images, each, strict=True):
                prompt_set = self._named[one] if isinstance(one, str) else one
                self.check(prompt_set)
                key = prompt_set.sha256
                resident = self.residency.acquire(key) or self.residency.load(key, prompt_set, wait=False)
                if resident is None:  # the pool is full of what this very call has pinned
                    flush()
                    resident = self.residency.load(key, prompt_set)
                assert resident is not None
                pending.append((image, resident))
                if len(pending) == BATCH_ROWS:
                    flush()
            flush()
        finally:
            for _, resident in pending:
                self.residency.release(resident)
        return found

    @torch.inference_mode()
    def warm(self) -> None:
        """A blank image through the backbone, so that the first request does not wait for the device to get ready."""
        size = self.backbone.image_size
        vit.features(self.backbone, self._inputs([np.zeros((size, size, 3), np.uint8)]))

    @torch.inference_mode()
    def launch(self, pictures: Sequence[Picture], rows: Sequence[tuple[int, Resident]]) -> Launched:
        """Begin a batch: each row is the index of a picture and a pinned prompt set; an image may have several rows.

        On a GPU this returns before the device is done.
        """
        residents = [resident for _, resident in rows]
        parts = list(mixing.groups(residents))
        features = torch.cat([self._features(pictures, [rows[row] for row in part.rows], part) for part in parts])
        order = [row for part in parts for row in part.rows]
        if len(parts) > 1:
            features = features[np.argsort(order)]
        return Launched(residents, mixing.apply_heads(self.residency.pool, residents, features), features)

    def _features(self, pictures: Sequence[Picture], rows: Sequence[tuple[int, Resident]], group: Group) -> Tensor:
        """-> [R, d] float32 for the rows of one group."""
        at = {index: place for place, index in enumerate(dict.fromkeys(index for index, _ in rows))}
        tokens = vit.below(self.backbone, self._inputs([pictures[index] for index in at]), group.depth)
        if len(at) < len(rows):  # below the prompts an image is computed once, however many sets look at it
            tokens = tokens[[at[index] for index, _ in rows]]
        members = [resident for _, resident in rows]
        compiled = mixing.gather(self.residency.pool, members, group.depth, self._head_width)
        return vit.above(self.backbone, tokens, compiled, group.pooling).float()

    def _inputs(self, pictures: Sequence[Picture]) -> Tensor:
        """-> [I, 3, S, S] in the backbone's dtype, on its device."""
        kinds = {picture.dtype for picture in pictures}
        if len(kinds) == 1:
            together = _to_device(np.stack(pictures), self.backbone.device)
            if kinds == {np.dtype(np.uint8)}:
                together = self.backbone.normalise(together.permute(0, 3, 1, 2))
            return together.to(self._dtype)
        return torch.cat([self._inputs([picture]) for picture in pictures])

    @property
    def _head_width(self) -> int:
        return int(self.backbone.model.blocks[0].attn.head_dim)


class Launched:
    """A batch on its way; `predictions` waits for the device."""

    def __init__(self, residents: Sequence[Resident], logits: Tensor, features: Tensor) -> None:
        self._residents = residents
        self._logits, self._features = _to_host(logits), _to_host(features)
        self._done = None
        if logits.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def predictions(self) -> list[Prediction]:
        """In the order of the rows."""
        if self._done is not None:
            self._done.synchronize()
        counts = [len(each.facts.class_names) for each in self._residents]
        logits = torch.split(self._logits, counts)
        return [
            Prediction(resident.facts, row + resident.facts.bias, features)
            for resident, row, features in zip(self._residents, logits, self._features, strict=True)
        ]


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _to_host(tensor: Tensor) -> Tensor:
    """On a GPU into pinned memory, without waiting."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
