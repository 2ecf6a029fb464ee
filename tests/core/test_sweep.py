"""The search for settings: which trials it makes, and how many go on."""

from __future__ import annotations

import math

import pytest

from bpt_core.errors import InvalidSetting
from bpt_core.methods import Depth, Method
from bpt_core.recipe import Recipe
from bpt_core.sweep import RANGES, Search

BASE = Recipe(method=Method.BPT_BILINEAR, prompts=20, rank=15)
RATES = tuple(RANGES)


def test_the_first_trial_is_the_recipe_itself_and_the_others_spread_over_the_whole_range() -> None:
    first, *others = Search(RATES).recipes(BASE)
    assert first == BASE
    assert len(others) == 7
    for name, (low, high) in RANGES.items():
        shares = sorted(math.log(getattr(each, name) / low) / math.log(high / low) for each in others)
        assert [int(share * 7) for share in shares] == list(range(7))  # one in every seventh, on a log scale


def test_only_what_is_auto_differs() -> None:
    recipes = Search(("learning_rate",)).recipes(BASE)
    assert {(each.weight_decay, each.head_weight_decay, each.rank) for each in recipes} == {(5e-3, 0.5, 15)}
    assert len({each.learning_rate for each in recipes}) == 8


def test_the_seed_decides() -> None:
    assert Search(RATES).recipes(BASE) == Search(RATES).recipes(BASE)
    other = Recipe(method=Method.BPT_BILINEAR, prompts=20, rank=15, seed=1)
    assert Search(RATES).recipes(BASE)[1].learning_rate != Search(RATES).recipes(other)[1].learning_rate


def test_methods_depths_and_ranks_are_all_tried_and_fit_together() -> None:
    recipes = Search(("method", "depth", "rank"), trials=16).recipes(BASE)
    assert {each.depth for each in recipes} == set(Depth)
    assert {each.method for each in recipes} == {method for method in Method if method.has_prompts}
    assert all((each.rank > 0) == each.method.has_rank for each in recipes)
    assert all(each.rank <= 20 for each in recipes)


@pytest.mark.parametrize("epochs", [1, 2, 5, 8, 20, 100])
@pytest.mark.parametrize("trials", [2, 5, 8])
def test_the_better_half_goes_on_until_one_is_left_at_under_three_runs_cost(epochs: int, trials: int) -> None:
    survivors = Search(RATES, trials=trials).survivors(epochs)
    assert list(survivors) == sorted(survivors)
    assert list(survivors.values())[-1] == 1
    cost, alive, since = 0, trials, 0
    for epoch, left in survivors.items():
        cost += alive * (epoch - since)
        alive, since = left, epoch
    cost += epochs - since
    assert cost <= 3 * epochs or epochs < 8
    assert max(survivors) <= max(1, epochs / 2)


@pytest.mark.parametrize(
    ("settings", "trials"), [(("seed",), 8), ((), 8), (("learning_rate",), 1), (("learning_rate",), 65)]
)
def test_what_cannot_be_searched_is_refused(settings: tuple[str, ...], trials: int) -> None:
    with pytest.raises(InvalidSetting):
        Search(settings, trials)


@pytest.mark.parametrize("setting", ["rank", "depth", "method"])
def test_a_linear_probe_has_only_numbers_to_search(setting: str) -> None:
    probe = Recipe(method=Method.LINEAR_PROBE)
    with pytest.raises(InvalidSetting):
        Search((setting,)).recipes(probe)
    assert len(Search(RATES).recipes(probe)) == 8


def test_a_search_survives_being_stored() -> None:
    search = Search(("rank", "learning_rate"), trials=5)
    assert Search.from_dict(search.to_dict()) == search
