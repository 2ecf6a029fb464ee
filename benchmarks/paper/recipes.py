"""The recipes that the paper's authors released, by pre-training and dataset, for `--recipe paper`.

From the scripts of github.com/WangYZ1608/BPT: AdamW, 100 epochs, 10 of warm-up, 100 prompts of rank 75 shallow and 50
of rank 50 deep. There each of four processes takes 32 images at a time, so that a step sees 128; the paper says 32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.paper.plan import Configuration
from bpt_core.catalog import Pooling
from bpt_core.errors import InvalidSetting
from bpt_core.methods import Depth, Method, Start

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Released(NamedTuple):
    learning_rate: float
    weight_decay: float
    head_weight_decay: float
    rank: int = 75


_MAE = {
    "cub": Released(5e-2, 5e-3, 0.5),
    "nabirds": Released(5e-2, 5e-3, 0.1),
    "dogs": Released(5e-2, 5e-3, 0.1),
    "cars": Released(5e-2, 2e-3, 0.1),
    "flowers": Released(1e-1, 5e-3, 1.0),
}
_MAE_DEEP = {
    "cub": Released(5e-2, 5e-3, 0.5, 50),
    "nabirds": Released(5e-2, 5e-3, 0.3, 50),
    "dogs": Released(5e-2, 5e-3, 0.1, 50),
    "cars": Released(5e-2, 5e-3, 0.1, 50),
}
_MOCO = {
    "cub": Released(5e-2, 5e-3, 0.1),
    "nabirds": Released(5e-2, 1e-3, 0.05),
    "dogs": Released(5e-2, 2e-3, 0.1),
    "flowers": Released(5e-2, 1e-3, 0.05),
}
_SUPERVISED = {
    "cub": Released(5e-3, 0.1, 10.0, 25),
    "nabirds": Released(1e-2, 5e-2, 5.0),
    "dogs": Released(5e-3, 1e-2, 3.0),
    "cars": Released(2e-2, 1e-2, 3.0),
    "flowers": Released(1e-2, 5e-4, 10.0),
}


def configurations(backbone: str, pooling: Pooling, dataset: str) -> tuple[Configuration, ...]:
    """Bilinear prompts as released for this dataset: shallow, and deep where a script for it was.

    InvalidSetting where the dataset's name contains that of none (cub, nabirds, dogs, cars, flowers).
    """
    shallow, deep = _MAE, _MAE_DEEP
    if "moco" in backbone.lower():
        shallow, deep = _MOCO, {}
    elif pooling is Pooling.CLS:
        shallow, deep = _SUPERVISED, {}
    found = next((known for known in shallow if known in dataset.lower().replace("_", "")), None)
    if found is None:
        raise InvalidSetting(f"no recipe was released for {dataset}; there are some for {', '.join(shallow)}")
    rows = [_configuration(Depth.SHALLOW, 100, Start.RANDOM, shallow[found])]
    if found in deep:
        rows.append(_configuration(Depth.DEEP, 50, Start.WHITENED, deep[found]))
    return tuple(rows)


def _configuration(depth: Depth, prompts: int, start: Start, released: Released) -> Configuration:
    settings: dict[str, Any] = {**released._asdict(), "prompts": prompts, "start": start}
    settings |= {"head_fit_epochs": 0, "views": 0, "crop_scale_min": 0.08}
    return Configuration(f"{Method.BPT_BILINEAR} {depth}", Method.BPT_BILINEAR, depth, settings=settings)
