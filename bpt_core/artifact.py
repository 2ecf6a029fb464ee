"""Prompt set <-> safetensors bytes. Equal content gives equal bytes: no times, no ids, one sorted JSON metadata key.

Tensors, all float32:
    prompts.folded  [k, m, d]   what is served: m prompts of each prompted block (absent for the linear probe)
    factors.A       [k, m, p]   from which tuning can go on (`bpt-bilinear`)
    factors.B       [k, d, p]
    head.weight     [C, d]
    head.bias       [C]

Format 1 knew shallow prompts only, without the leading k, and no calibration; it is still read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bpt_core.dataset import SINGLE_LABEL
from bpt_core.errors import ArtifactError
from bpt_core.evaluate import NO_CALIBRATION, Calibration
from bpt_core.headers import METADATA_KEY, describe
from bpt_core.inspection import FORMAT, inspect


@dataclass(frozen=True)
class PromptSet:
    """A customer's tuned prompts and head for one backbone. `prompts` is P~ [k, m, d], None for the linear probe."""

    prompts: Tensor | None
    head_weight: Tensor
    head_bias: Tensor
    class_names: tuple[str, ...]
    method: Mapping[str, Any]  # {"type", "depth", "prompts", "rank"}
    backbone: str
    backbone_fingerprint: str
    pooling: str
    preprocessing: Mapping[str, Any]
    task: str = SINGLE_LABEL
    calibration: Calibration = NO_CALIBRATION
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Of the artifact that `to_bytes` makes: two sets are the same exactly if it is."""
        return sha256(to_bytes(self))


def to_bytes(prompt_set: PromptSet) -> bytes:
    """The artifact of a prompt set."""
    tensors = {"head.weight": prompt_set.head_weight, "head.bias": prompt_set.head_bias}
    if prompt_set.prompts is not None:
        tensors["prompts.folded"] = prompt_set.prompts
    tensors.update({f"factors.{name}": tensor for name, tensor in prompt_set.factors.items()})
    metadata = {
        "backbone": prompt_set.backbone,
        "backbone_fingerprint": prompt_set.backbone_fingerprint,
        "calibration": prompt_set.calibration.to_dict(),
        "class_names": list(prompt_set.class_names),
        "format": FORMAT,
        "method": dict(prompt_set.method),
        "pooling": prompt_set.pooling,
        "preprocessing": dict(prompt_set.preprocessing),
        "task": prompt_set.task,
    }
    ready = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    return save(ready, {METADATA_KEY: json.dumps(metadata, sort_keys=True, separators=(",", ":"))})


def from_bytes(data: bytes) -> PromptSet:
    """The prompt set in an artifact.

    Raises ArtifactError as `inspect`, which looks at them first.
    """
    metadata = inspect(data).metadata
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"not a prompt-set artifact: {error}") from error
    if describe(data)["format"] == 1:
        tensors = {name: tensor if name.startswith("head.") else tensor[None] for name, tensor in tensors.items()}
    return PromptSet(
        prompts=tensors.get("prompts.folded"),
        head_weight=tensors["head.weight"],
        head_bias=tensors["head.bias"],
        class_names=tuple(metadata["class_names"]),
        method=metadata["method"],
        backbone=metadata["backbone"],
        backbone_fingerprint=metadata["backbone_fingerprint"],
        pooling=metadata["pooling"],
        preprocessing=metadata["preprocessing"],
        task=metadata["task"],
        calibration=Calibration.from_dict(metadata["calibration"]),
        factors={
            name.removeprefix("factors."): tensor for name, tensor in tensors.items() if name.startswith("factors.")
        },
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
