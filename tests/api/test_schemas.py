"""What the interface offers is what the recipe has."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from api.schemas import Moment
from api.tuning_schemas import Hyperparameters, MethodChoice
from bpt_core.recipe import Recipe


def test_every_setting_of_a_recipe_can_be_asked_for() -> None:
    offered = {*Hyperparameters.model_fields, *MethodChoice.model_fields, "seed"}
    assert offered == {"type" if field.name == "method" else field.name for field in fields(Recipe)}


@pytest.mark.parametrize("moment", [0, 0.5, "1767225600", "2026-01-02", "2026-01-02T00:00:00", None])
def test_a_moment_is_a_date_a_time_and_a_zone(moment: object) -> None:
    schema: TypeAdapter[datetime] = TypeAdapter(Moment)
    with pytest.raises(ValidationError):
        schema.validate_python(moment)
    assert schema.validate_python("2026-01-02T00:00:00Z") == datetime(2026, 1, 2, tzinfo=UTC)
