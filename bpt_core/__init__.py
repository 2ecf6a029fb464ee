"""bpt_core computes: frozen Vision Transformers, prompts, tuning, prediction. No environment, no customers.

from bpt_core import PackedDataset, Predictor, default_recipe, load_backbone, pack, tune

backbone = load_backbone("vit_tiny_patch8_64.mae")
dataset = PackedDataset(pack(Path("flowers.zip"), Path("packed")).shards)
tuned = tune(backbone, dataset, default_recipe(backbone, "bpt-bilinear", epochs=10))
predictions = Predictor(backbone).predict(images, tuned.prompt_set)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpt_core.artifact import PromptSet
    from bpt_core.backbones import Backbone, load_backbone
    from bpt_core.compute import Compute
    from bpt_core.dataset import PackedDataset
    from bpt_core.packing import pack
    from bpt_core.predict import Predictor
    from bpt_core.recipe import Recipe, default_recipe
    from bpt_core.sweep import Search
    from bpt_core.tuning import Tuned, tune

__all__ = [
    "Backbone",
    "Compute",
    "PackedDataset",
    "Predictor",
    "PromptSet",
    "Recipe",
    "Search",
    "Tuned",
    "default_recipe",
    "load_backbone",
    "pack",
    "tune",
]

_HOMES = {
    "Backbone": "backbones",
    "Compute": "compute",
    "PackedDataset": "dataset",
    "Predictor": "predict",
    "PromptSet": "artifact",
    "Recipe": "recipe",
    "Search": "sweep",
    "Tuned": "tuning",
    "default_recipe": "recipe",
    "load_backbone": "backbones",
    "pack": "packing",
    "tune": "tuning",
}


def __getattr__(name: str) -> object:
    # Loaded when asked for: processes that never compute import parts of this package and must not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
