"""What a tuning run costs, before it begins. Needs no torch.

Floating-point operations (a multiply-add is 2) of a Vision Transformer block over q query tokens, N tokens in all and
N + e keys: 24 d^2 for each token that passes whole (qkv 6, projection 2, MLP 16) and 4 d for each query and key. The
weights are frozen, so a backward pass costs about as much as the forward pass it goes back through.
"""

from __future__ import annotations

from bpt_core.catalog import BackboneSpec
from bpt_core.methods import Depth, prompted_blocks
from bpt_core.recipe import HEAD_FIT_VIEWS, Recipe
from bpt_core.sweep import Search

_HEAD_FITS = 2  # before and after


def tuning_flops(
    recipe: Recipe, spec: BackboneSpec, *, train_images: int, val_images: int, search: Search | None = None
) -> float:
    """Of the whole run; keeping of views and trials side by side counted in."""
    below, above = _forward(recipe, spec)
    trial_epochs = _trial_epochs(recipe, search)
    if not recipe.method.has_prompts:
        views = min(recipe.views or recipe.epochs, recipe.epochs)
        return below * (train_images * views + val_images)
    views = min(recipe.views or recipe.epochs, recipe.epochs)
    fits = _HEAD_FITS * HEAD_FIT_VIEWS if recipe.head_fit_epochs else 0
    once = below * (train_images * (views + fits) + val_images)
    return once + above * (train_images * (2 * trial_epochs + fits) + val_images * trial_epochs)


def _forward(recipe: Recipe, spec: BackboneSpec) -> tuple[float, float]:
    """Operations of one image below the first prompted block, and from there on."""
    d, patches = spec.embed_dim, (spec.image_size // spec.patch_size) ** 2
    tokens = patches + 1
    embed = 6 * spec.patch_size**2 * patches * d

    def block(passing: int, keys: int) -> float:
        return 24.0 * d * d * passing + 4.0 * d * passing * keys

    if not recipe.method.has_prompts:
        return embed + spec.depth * block(tokens, tokens), 0.0
    prompted = len(prompted_blocks(recipe.depth, spec.depth))
    if recipe.depth is Depth.SHALLOW:
        whole = tokens + recipe.prompts
        return embed, spec.depth * block(whole, whole)
    below = embed + (spec.depth - prompted) * block(tokens, tokens)
    return below, prompted * block(tokens, tokens + recipe.prompts)


def _trial_epochs(recipe: Recipe, search: Search | None) -> float:
    """Epochs of all trials together."""
    if search is None:
        return recipe.epochs
    total, alive, since = 0.0, search.trials, 0
    for epoch, left in search.survivors(recipe.epochs).items():
        total += alive * (epoch - since)
        alive, since = left, epoch
    return total + recipe.epochs - since
