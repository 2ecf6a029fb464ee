"""One batch of rows with different prompt sets -> the tensors a forward takes. Rows gather from the pool by pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bpt_core.catalog import Pooling
from bpt_core.methods import Depth
from bpt_core.residency import PADDING_PAGE, Pages, Resident
from bpt_core.vit import Compiled


@dataclass(frozen=True)
class Group:
    """Rows of a batch (their positions) that go through the backbone together."""

    depth: Depth | None
    pooling: Pooling
    rows: list[int]


def groups(residents: Sequence[Resident]) -> Iterator[Group]:
    """Rows whose prompts enter alike, whatever their length; those without prompts go with some whose are keys only."""
    rows: dict[tuple[Pooling, Depth | None], list[int]] = {}
    for row, resident in enumerate(residents):
        rows.setdefault((resident.facts.pooling, resident.facts.depth), []).append(row)
    for pooling in {pooling for pooling, depth in rows if depth is None}:
        # Prompts of the top blocks first: there the blocks below stay free of padding.
        host = next((depth for depth in (Depth.DEEP_TOP4, Depth.DEEP) if (pooling, depth) in rows), None)
        if host is not None:
            rows[pooling, host] = sorted(rows[pooling, host] + rows.pop((pooling, None)))
    for (pooling, depth), members in rows.items():
        yield Group(depth, pooling, members)


def gather(pool: Tensor, residents: Sequence[Resident], depth: Depth | None, head_width: int) -> Compiled | None:
    """The prompts of R rows of one group, as `vit.above` takes them; `head_width` is c. None: no row has any."""
    if depth is None:
        return None
    if all(each is residents[0] for each in residents):
        residents = residents[:1]
    rows, lengths = len(residents), [each.facts.length for each in residents]
    heads = pool.shape[1] // head_width
    longest, parts = max(lengths), max(len(each.blocks) for each in residents)
    # Keys and values of each block, then the tokens.
    pages = np.full((rows, parts + 1, longest), PADDING_PAGE)
    for row, each in enumerate(residents):
        pages[row, : len(each.blocks), : each.facts.length] = each.blocks
        pages[row, parts, : len(each.tokens)] = each.tokens
    absent = None
    if min(lengths) < longest:
        absent = torch.from_numpy(np.arange(longest) >= np.array(lengths)[:, None]).to(pool.device, non_blocking=True)
    prompts = _select(pool, pages[:, :-1]).reshape(rows, parts, longest, heads, head_width).permute(1, 0, 3, 2, 4)
    has_tokens = any(len(each.tokens) for each in residents)
    return Compiled(
        depth=depth,
        sets=rows,
        keys=tuple(prompts[0::2]),  # [R, H, m, c] each
        values=tuple(prompts[1::2]),
        tokens=_select(pool, pages[:, -1]) if has_tokens else None,
        absent=absent,
    )


def apply_heads(pool: Tensor, residents: Sequence[Resident], features: Tensor) -> Tensor:
    """features [R, d] float32 -> logits [sum of C] float32, without the biases: C of the first row, of the next, ..."""
    if all(each is residents[0] for each in residents):
        return (features @ _head(pool, residents[0].head).T).flatten()
    heads = _head(pool, np.concatenate([each.head for each in residents]))
    # No padding to the greatest number of classes, and no loop: each row of a head meets its own features.
    counts = torch.tensor([len(each.facts.class_names) for each in residents]).to(pool.device, non_blocking=True)
    logits: Tensor = torch.linalg.vecdot(heads, features.repeat_interleave(counts, dim=0, output_size=len(heads)))
    return logits


def _head(pool: Tensor, pages: Pages) -> Tensor:
    """Pages of heads -> their rows [sum of C, d] in float32, bit for bit as they were stored."""
    per_row = torch.float32.itemsize // pool.element_size()
    return _select(pool, pages).reshape(-1, per_row * pool.shape[1]).view(torch.float32)


def _select(pool: Tensor, pages: Pages) -> Tensor:
    """Pages of any shape [...] -> their rows [..., d]."""
    at = torch.from_numpy(np.ascontiguousarray(pages)).to(pool.device, non_blocking=True)
    # More than twice as fast on a CPU as pool[at].
    return pool.index_select(0, at.flatten()).unflatten(0, at.shape)  # type: ignore[no-any-return, no-untyped-call]
