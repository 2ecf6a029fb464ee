"""How a run uses the machine: what changes its speed and memory, and its numbers only by rounding."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

import torch


def device_named(name: str) -> str:
    """torch's name of a device; `auto` is a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


class Precision(StrEnum):
    """`auto` is bf16 on GPUs that have it, float32 elsewhere (on CPUs bf16 was measured slower)."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"


@dataclass(frozen=True)
class Compute:
    """`compile` runs the prompted half of the forward through torch.compile. `image_bytes` is how much decoded
    images may take in the host's memory, for each split; `token_bytes` how much kept tokens may take on the device.
    With several `micro_batches` each batch of training goes through the backbone in so many parts, whose gradients add
    up to those of the whole: less memory, a little more time.
    """

    precision: Precision = Precision.AUTO
    compile: bool = False
    image_bytes: int = 2 << 30
    token_bytes: int = 4 << 30
    micro_batches: int = 1

    def dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of activations on this device."""
        if self.precision is Precision.AUTO:
            fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if fast else torch.float32
        return torch.bfloat16 if self.precision is Precision.BF16 else torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype(device) is torch.bfloat16)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory, on a GPU or on a CPU, which has no error of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
