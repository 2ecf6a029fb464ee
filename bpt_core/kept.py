"""What the frozen backbone makes of images before it meets a prompt: computed once, kept while memory allows.

For one view of one image this never changes. Views that come again (`Recipe.views`) are therefore computed in the
first epoch that uses them and read in the later ones; what does not fit is computed again, and no view is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from bpt_core.recipe import Recipe
from bpt_core.views import SplitImages

FORWARD_BATCH = 64  # images in a batch that takes no gradient

Below = Callable[[Tensor], Tensor]
"""uint8 pixels [B, 3, S, S] -> [B, ...]: the part of the forward that sees no prompt."""


class Kept:
    """`below` of the views of the training images, and of the validation images.

    Which rows are kept depends on sizes alone, and kept rows are computed in stored order, so that a run that goes
    on from a checkpoint reads what an uninterrupted one reads, to the bit.
    """

    def __init__(
        self,
        train: SplitImages,
        val: SplitImages,
        recipe: Recipe,
        below: Below,
        *,
        row_bytes: int,
        limit_bytes: int,
    ) -> None:
        self._train, self._val, self._recipe, self._below = train, val, recipe, below
        rows = limit_bytes // row_bytes
        self._val_rows = min(rows, len(val))
        self._train_rows = rows - self._val_rows
        self._views: dict[int, Tensor | None] = {}
        self._val_tokens: list[Tensor] | None = None

    def training(self, batches: list[Tensor], view: int) -> Iterator[Tensor]:
        """Yields [B, ...] for each batch of indices [B]."""
        recipe = self._recipe
        view = view % recipe.views if recipe.views else view
        kept = self._view(view) if recipe.views else None
        rows = 0 if kept is None else len(kept)
        absent = [batch[batch >= rows].tolist() for batch in batches]
        drawn = self._train.training_batches(
            [indices for indices in absent if indices], seed=recipe.seed, view=view, scale_min=recipe.crop_scale_min
        )
        for batch, missing in zip(batches, absent, strict=True):
            if kept is None:
                yield self._below(next(drawn))
            elif not missing:
                yield kept[batch.to(kept.device)]
            else:
                there = (batch < rows).to(kept.device)
                tokens = kept.new_empty(len(batch), *kept.shape[1:])
                tokens[there] = kept[batch.to(kept.device)[there]]
                tokens[~there] = self._below(next(drawn))
                yield tokens

    def validation(self) -> Iterator[Tensor]:
        """Yields [<= FORWARD_BATCH, ...] in stored order."""
        if self._val_rows < len(self._val):
            yield from self.evaluation(self._val)
            return
        if self._val_tokens is None:
            self._val_tokens = list(self.evaluation(self._val))
        yield from self._val_tokens

    def evaluation(self, images: SplitImages) -> Iterator[Tensor]:
        """Yields [<= FORWARD_BATCH, ...] of any images in stored order; nothing is kept."""
        for pixels in images.evaluation_batches(FORWARD_BATCH):
            yield self._below(pixels)

    def _view(self, view: int) -> Tensor | None:
        """The first rows of a view, as many as may be kept; None if that is none."""
        if view not in self._views:
            rows = min(len(self._train), max(0, self._train_rows - view * len(self._train)))
            recipe, kept = self._recipe, None
            batches = [range(at, min(at + FORWARD_BATCH, rows)) for at in range(0, rows, FORWARD_BATCH)]
            drawn = self._train.training_batches(batches, seed=recipe.seed, view=view, scale_min=recipe.crop_scale_min)
            for batch, pixels in zip(batches, drawn, strict=True):
                tokens = self._below(pixels)
                if kept is None:
                    kept = tokens.new_empty(rows, *tokens.shape[1:])
                kept[batch.start : batch.stop] = tokens
            self._views[view] = kept
        return self._views[view]
