"""The images of one split, decoded once and kept, handed out as batches of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bpt_core import images
from bpt_core.dataset import PackedDataset, Split
from bpt_core.transforms import Pixels, evaluation_view, training_view

KEEP_LIMIT_BYTES = 2 << 30


class SplitImages:
    """Images and labels of one split. Decoded images stay in memory up to `keep_limit_bytes`; the rest is
    decoded again whenever it is needed.

    `targets` is float32 [N, C]: 1 where the image has the label. `paths` say where each image came from.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        split: Split,
        image_size: int,
        *,
        keep_limit_bytes: int = KEEP_LIMIT_BYTES,
    ) -> None:
        self._image_size = image_size
        self._stored: list[Image.Image | bytes] = []
        self.paths: list[str] = []
        labels: list[tuple[int, ...]] = []
        kept_bytes = 0
        for item in dataset.items(split):
            image = images.decode(item.image)
            kept_bytes += image.width * image.height * 3
            self._stored.append(image if kept_bytes <= keep_limit_bytes else item.image)
            self.paths.append(item.path)
            labels.append(item.labels)
        self.targets = torch.zeros(len(labels), len(dataset.class_names))
        for row, chosen in enumerate(labels):
            self.targets[row, list(chosen)] = 1

    def __len__(self) -> int:
        return len(self._stored)

    def evaluation_batches(self, batch_size: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yields uint8 [<= batch_size, 3, S, S] of the images `indices`, or of all in stored order."""
        chosen = range(len(self)) if indices is None else indices
        order = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        return self._batches(order, lambda index: evaluation_view(self._image(index), self._image_size))

    def training_batches(
        self, batches: Sequence[Sequence[int]], *, seed: int, view: int, scale_min: float
    ) -> Iterator[Tensor]:
        """Yields uint8 [B, 3, S, S] for each batch of indices.

        A view depends on (seed, view, index) alone: not on the order of the batches, nor on the number of threads.
        """

        def draw(index: int) -> Pixels:
            rng = np.random.default_rng((seed, view, index))
            return training_view(self._image(index), self._image_size, rng, scale_min)

        return self._batches(batches, draw)

    def _image(self, index: int) -> Image.Image:
        stored = self._stored[index]
        return images.decode(stored) if isinstance(stored, bytes) else stored

    @staticmethod
    def _batches(batches: Sequence[Sequence[int]], draw: Callable[[int], Pixels]) -> Iterator[Tensor]:
        # One batch is prepared while the model works on the one before: Pillow lets go of the interpreter.
        with ThreadPoolExecutor(2, thread_name_prefix="views") as pool:
            waiting = None
            for batch in batches:
                ahead = [pool.submit(draw, index) for index in batch]
                if waiting is not None:
                    yield _stack(waiting)
                waiting = ahead
            if waiting is not None:
                yield _stack(waiting)


def _stack(futures: list[Future[Pixels]]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in futures])).permute(0, 3, 1, 2)
