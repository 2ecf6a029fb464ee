"""What the interface offers is what the recipe has."""

from __future__ import annotations

from dataclasses import fields

from api.schemas import Hyperparameters, MethodChoice
from bpt_core.recipe import Recipe


def test_every_setting_of_a_recipe_can_be_asked_for() -> None:
    offered = {*Hyperparameters.model_fields, *MethodChoice.model_fields, "seed"}
    assert offered == {"type" if field.name == "method" else field.name for field in fields(Recipe)}
