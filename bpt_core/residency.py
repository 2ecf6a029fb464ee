"""Which prompt sets are ready to compute with: on the device while they fit, then in the host's memory.

Everything a set needs on the device is cut into pages of one width-d row each: per prompted block a row for the
keys and one for the values of each prompt, a row for each prompt that is a token, the rows of the head. One pool
holds the pages of all sets, whatever their method, depth, length and number of classes; a batch gathers what it needs
by page numbers. Sets that are in use are pinned; of the others the one unused for longest makes room.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpt_core import vit
from bpt_core.artifact import PromptSet
from bpt_core.backbones import Backbone
from bpt_core.catalog import Pooling
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import Calibration
from bpt_core.methods import Depth

Pages = NDArray[np.int64]

PADDING_PAGE = 0  # zeros: what shorter sets are padded with


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a prompt set beside its numbers on the device. `depth` None: no prompts; `bias` [C] float32."""

    class_names: tuple[str, ...]
    task: str
    calibration: Calibration
    pooling: Pooling
    depth: Depth | None
    length: int
    bias: Tensor

    @classmethod
    def of(cls, prompt_set: PromptSet) -> Facts:
        has_prompts = prompt_set.prompts is not None
        return cls(
            class_names=prompt_set.class_names,
            task=prompt_set.task,
            calibration=prompt_set.calibration,
            pooling=Pooling(prompt_set.pooling),
            depth=Depth(prompt_set.method["depth"]) if has_prompts else None,
            length=prompt_set.prompts.shape[1] if prompt_set.prompts is not None else 0,
            bias=prompt_set.head_bias,
        )

    @property
    def tokens(self) -> int:
        """How many of the prompts are tokens of a block."""
        pooled = self.depth is not None and self.pooling is Pooling.MEAN_ALL
        return self.length if pooled or self.depth is Depth.SHALLOW else 0


@dataclass(frozen=True, eq=False)
class Resident:
    """A prompt set on the device: the numbers of its pages.

    `blocks` [2 k', m]: keys and values in each of the k' blocks where prompts are only that. `tokens` [m or 0]:
    prompts that are tokens. `head` [C f], with f pages for a row of the head, which is float32 whatever the pool is.
    """

    key: str
    facts: Facts
    blocks: Pages
    tokens: Pages
    head: Pages

    @property
    def pages(self) -> Pages:
        return np.concatenate([self.blocks.ravel(), self.tokens, self.head])


@dataclass(frozen=True)
class Occupancy:
    """What happened so far, and how full it is. A hit found the set on the device; a reload, in the host's memory."""

    hits: int
    misses: int
    reloads: int
    evictions: int
    resident: int
    pages: int
    pages_free: int


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A set in the form of its pages: `rows` [pages, d] in the host's memory, in the order of Resident.pages.

    `blocks` is k', the number of blocks in which prompts are keys and values only.
    """

    facts: Facts
    blocks: int
    rows: Tensor


class Residency:
    """The prompt sets of one backbone. Thread-safe; loading a set does not wait for what the device computes.

    `device_bytes` is taken at once (on a CPU the system gives it as it is touched); `host_bytes` holds sets that
    were on the device, ready to go back without being computed again.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, *, device_bytes: int, host_bytes: int = 0) -> None:
        self._backbone = backbone
        self._dtype = dtype
        width, size = backbone.embed_dim, torch.empty(0, dtype=dtype).element_size()
        self._count = max(2, device_bytes // (width * size))
        self.pool = torch.empty(self._count, width, dtype=dtype, device=backbone.device)
        self.pool[PADDING_PAGE] = 0
        self._free: Pages = np.arange(PADDING_PAGE + 1, self._count)[::-1].copy()
        self._free_count = len(self._free)
        self._changed = threading.Condition()
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # the one unused for longest comes first
        self._pins: dict[str, int] = {}
        self._loading: set[str] = set()
        self._host: OrderedDict[str, _Compiled] = OrderedDict()
        self._host_bytes, self._host_used = host_bytes, 0
        self._hits = self._misses = self._reloads = self._evictions = 0
        self._stream: torch.cuda.Stream | None = None
        if backbone.device.type == "cuda":
            self._stream = torch.cuda.Stream(backbone.device)  # type: ignore[no-untyped-call]

    def acquire(self, key: str) -> Resident | None:
        """The set, pinned until `release`, if it is on the device."""
        with self._changed:
            resident = self._residents.get(key)
            if resident is None:
                self._misses += 1
                return None
            self._hits += 1
            return self._pin(resident)

    def load(self, key: str, source: PromptSet | Callable[[], PromptSet], *, wait: bool = True) -> Resident | None:
        """The set, pinned until `release`; from the host's memory or `source` if it is not on the device.

        Several at once load it once. While there is no room because everything else is pinned: waits, or gives
        None. Raises ArtifactError (`prompt_set_too_large`, if it would not fit into an empty pool) and whatever
        `source` raises.
        """
        with self._changed:
            self._changed.wait_for(lambda: key not in self._loading)
            if key in self._residents:
                return self._pin(self._residents[key])
            self._loading.add(key)
            compiled = self._host.get(key)
            self._reloads += compiled is not None
        try:
            if compiled is None:
                compiled = self._compile(source if isinstance(source, PromptSet) else source())
            pages = self._take(len(compiled.rows), wait=wait)
            self._keep_on_host(key, compiled)
            if pages is None:
                return None
            self._write(pages, compiled.rows)
            with self._changed:
                self._residents[key] = _resident(key, compiled, pages)
                return self._pin(self._residents[key])
        finally:
            with self._changed:
                self._loading.discard(key)
                self._changed.notify_all()

    def release(self, resident: Resident) -> None:
        with self._changed:
            self._pins[resident.key] -= 1
            if not self._pins[resident.key]:
                del self._pins[resident.key]
                self._changed.notify_all()

    def occupancy(self) -> Occupancy:
        with self._changed:
            return Occupancy(
                hits=self._hits,
                misses=self._misses,
                reloads=self._reloads,
                evictions=self._evictions,
                resident=len(self._residents),
                pages=self._count - 1,
                pages_free=self._free_count,
            )

    def _pin(self, resident: Resident) -> Resident:
        self._pins[resident.key] = self._pins.get(resident.key, 0) + 1
        self._residents.move_to_end(resident.key)
        return resident

    def _take(self, count: int, *, wait: bool) -> Pages | None:
        if count >= self._count:
            raise ArtifactError(
                f"the prompt set takes {count} pages, and the device has room for {self._count - 1}",
                code="prompt_set_too_large",
            )
        with self._changed:
            if not self._make_room(count):
                if not wait:
                    return None
                self._changed.wait_for(lambda: self._make_room(count))
            self._free_count -= count
            return self._free[self._free_count : self._free_count + count].copy()

    def _make_room(self, count: int) -> bool:
        for key in list(self._residents):
            if self._free_count >= count:
                break
            if key not in self._pins:
                pages = self._residents.pop(key).pages
                self._free[self._free_count : self._free_count + len(pages)] = pages
                self._free_count += len(pages)
                self._evictions += 1
                if key in self._host:
                    self._host.move_to_end(key)
        return self._free_count >= count

    def _keep_on_host(self, key: str, compiled: _Compiled) -> None:
        # A copy from the beginning: when room is needed on the device nothing has to be read back from it.
        with self._changed:
            if key in self._host or compiled.rows.nbytes > self._host_bytes:
                return
            self._host[key] = compiled
            self._host_used += compiled.rows.nbytes
            while self._host_used > self._host_bytes:
                self._host_used -= self._host.popitem(last=False)[1].rows.nbytes

    @torch.inference_mode()
    def _compile(self, prompt_set: PromptSet) -> _Compiled:
        device, width = self._backbone.device, self._backbone.embed_dim
        facts, blocks, rows = Facts.of(prompt_set), 0, []
        with self._beside():
            if prompt_set.prompts is not None and facts.depth is not None:
                prompts = prompt_set.prompts.to(device, self._dtype)[None]
                compiled = vit.compile_prompts(self._backbone, prompts, facts.depth, facts.pooling)
                blocks = len(compiled.keys)
                for pair in zip(compiled.keys, compiled.values, strict=True):
                    rows += [part[0].transpose(0, 1).reshape(-1, width) for part in pair]  # [1, H, m, c] -> [m, H c]
                if compiled.tokens is not None:
                    rows.append(compiled.tokens[0])
            # Bit for bit: a float32 row of the head becomes rows of the pool's dtype.
            rows.append(prompt_set.head_weight.to(device).contiguous().view(self._dtype).reshape(-1, width))
            together = torch.cat(rows).cpu()
        return _Compiled(facts, blocks, together.pin_memory() if self._stream else together)

    @torch.inference_mode()
    def _write(self, pages: Pages, rows: Tensor) -> None:
        with self._beside():
            at = torch.from_numpy(pages).to(self.pool.device)
            self.pool.index_copy_(0, at, rows.to(self.pool.device, non_blocking=True))
        if self._stream is not None:
            self._stream.synchronize()

    def _beside(self) -> AbstractContextManager[object]:
        """On a GPU a stream of its own, so that a load is not queued behind the running batch."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _resident(key: str, compiled: _Compiled, pages: Pages) -> Resident:
    facts = compiled.facts
    prompts = 2 * compiled.blocks * facts.length
    return Resident(
        key=key,
        facts=facts,
        blocks=pages[:prompts].reshape(2 * compiled.blocks, facts.length),
        tokens=pages[prompts : prompts + facts.tokens],
        head=pages[prompts + facts.tokens :],
    )
