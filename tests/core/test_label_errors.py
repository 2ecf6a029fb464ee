"""Confident learning: what it finds, what it leaves alone, and that strange input does not break it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bpt_core.label_errors import LabelError, confused_pairs, find, hardest

SINGLE, MULTI = "single-label", "multi-label"


def one_hot(labels: list[int] | Tensor, classes: int) -> Tensor:
    return functional.one_hot(torch.as_tensor(labels), classes).double()


def sample(seed: int, images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities of a model that is right more often than not, and targets."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator, dtype=torch.float64) + 2 * one_hot(labels, classes)
    return logits.softmax(dim=1), one_hot(labels, classes)


def flipped(seed: int, classes: int, images: int, share: float) -> tuple[Tensor, Tensor, set[int]]:
    """A separable task of which a share of the labels was changed -> probabilities, targets, which were changed.

    The model knows the truth, not too surely, and is noisy.
    """
    rng = np.random.default_rng(seed)
    truth = np.arange(images) % classes
    changed = rng.permutation(images)[: round(share * images)]
    labels = truth.copy()
    labels[changed] = (labels[changed] + rng.integers(1, classes, len(changed))) % classes
    logits = torch.from_numpy(rng.normal(size=(images, classes))) + 5 * one_hot(torch.from_numpy(truth), classes)
    return logits.softmax(dim=1), one_hot(torch.from_numpy(labels), classes), set(changed.tolist())


sizes = st.tuples(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 6))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_changed_labels_are_found_and_put_right(classes: int) -> None:
    chances, targets, changed = flipped(0, classes, 500, 0.1)
    found = find(chances, targets, SINGLE)
    hits = [error for error in found if error.index in changed]
    assert len(hits) >= 0.9 * len(found)
    assert len(hits) >= 0.7 * len(changed)
    right = [error for error in hits if error.suggested == (error.index % classes,)]
    assert len(right) >= 0.95 * len(hits)
    worst = found[: len(found) // 2]
    assert sum(error.index in changed for error in worst) >= 0.97 * len(worst)


def test_clean_separable_labels_give_none() -> None:
    chances, targets, _ = flipped(1, 10, 500, 0.0)
    assert len(find(chances, targets, SINGLE)) <= 2
    rng = np.random.default_rng(0)
    truth = one_hot(torch.from_numpy(np.arange(300) % 3), 3)
    sure = (truth * 20 + torch.from_numpy(rng.normal(size=(300, 3)))).softmax(dim=1)
    assert find(sure, truth, SINGLE) == []
    assert find(sure, truth, MULTI) == []


def test_changed_labels_of_several_are_found_and_turned_round() -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.random((400, 4)) < 0.4).double()
    logits = 6 * truth - 3 + torch.from_numpy(rng.normal(size=(400, 4)))
    targets, changed = truth.clone(), rng.permutation(400)[:40]
    for row in changed.tolist():
        targets[row, row % 4] = 1 - targets[row, row % 4]
    for row in changed[:10].tolist():
        targets[row, row % 4 - 1] = 1 - targets[row, row % 4 - 1]
    found = find(logits.sigmoid(), targets, MULTI)
    hits = [error for error in found if error.index in changed]
    assert len(hits) >= 0.85 * len(found)
    assert len(hits) >= 0.8 * len(changed)
    right = [error for error in hits if set(error.suggested) == set(truth[error.index].nonzero()[:, 0].tolist())]
    assert len(right) >= 0.9 * len(hits)
    assert max(len(set(error.given) ^ set(error.suggested)) for error in found) == 2
    for error in found:
        turned = sorted(set(error.given) ^ set(error.suggested))
        sureness = (2 * logits[error.index].sigmoid() - 1).abs()[turned]
        assert error.score == pytest.approx(float(sureness.max()))


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_every_finding_names_another_class_that_is_more_probable_and_the_worst_come_first(
    size: tuple[int, int, int],
) -> None:
    chances, targets = sample(*size)
    found = find(chances, targets, SINGLE)
    assert len({error.index for error in found}) == len(found)
    assert [error.score for error in found] == sorted((error.score for error in found), reverse=True)
    for error in found:
        ((own,), (other,)) = error.given, error.suggested
        assert targets[error.index, own] == 1
        assert error.score == pytest.approx(float(chances[error.index, other] - chances[error.index, own]))
        assert 0 < error.score <= 1


@given(sizes, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_images_and_of_classes_does_not_matter(size: tuple[int, int, int], random: object) -> None:
    chances, targets = sample(*size)
    images, classes = chances.shape
    rng = np.random.default_rng(size[0])
    rows, columns = torch.from_numpy(rng.permutation(images)), torch.from_numpy(rng.permutation(classes))

    def named(found: list[LabelError], shuffled: bool) -> set[tuple[int, int, int]]:
        if not shuffled:
            return {(error.index, error.given[0], error.suggested[0]) for error in found}
        return {
            (int(rows[error.index]), int(columns[error.given[0]]), int(columns[error.suggested[0]])) for error in found
        }

    shuffled = find(chances[rows][:, columns], targets[rows][:, columns], SINGLE)
    assert named(shuffled, True) == named(find(chances, targets, SINGLE), False)


@given(sizes, st.sampled_from([math.nan, math.inf]))
@settings(max_examples=40, deadline=None)
def test_rows_that_are_not_finite_change_nothing_for_the_others(size: tuple[int, int, int], number: float) -> None:
    chances, targets = sample(*size)
    bad = torch.full((2, chances.shape[1]), number, dtype=torch.float64)
    bad[:, 1:] = 0.5
    more, wanted = torch.cat([bad, chances]), torch.cat([targets[:1], targets[:1], targets])
    for task in (SINGLE, MULTI):
        expected = find(chances, targets, task)
        found = find(more, wanted, task)
        assert [(error.index - 2, error.given, error.suggested, error.score) for error in found] == [
            (error.index, error.given, error.suggested, error.score) for error in expected
        ]
        shifted = [(index - 2, loss) for index, loss in hardest(more, wanted, task, 99)]
        assert shifted == hardest(chances, targets, task, 99)


@given(sizes)
@settings(max_examples=40, deadline=None)
def test_one_label_that_is_there_or_not_is_a_choice_of_two_classes(size: tuple[int, int, int]) -> None:
    chances, targets = sample(size[0], size[1], 2)
    single = find(chances, targets, SINGLE)
    multi = find(chances[:, 1:], targets[:, 1:], MULTI)
    assert [error.index for error in multi] == [error.index for error in single]
    assert [error.score for error in multi] == pytest.approx([error.score for error in single])
    for one, other in zip(multi, single, strict=True):
        assert (one.given, one.suggested) == (((0,), ()) if other.given == (1,) else ((), (0,)))


def test_a_class_without_images_is_never_suggested() -> None:
    chances, targets, _ = flipped(2, 3, 90, 0.1)
    absent = torch.full((90, 1), 0.9, dtype=torch.float64)  # whatever the model says of it
    found = find(torch.cat([chances * 0.1, absent], dim=1), functional.pad(targets, (0, 1)), SINGLE)
    assert found
    assert all(error.suggested != (3,) for error in found)


def test_fewer_images_than_classes_and_none_at_all() -> None:
    chances, targets = sample(0, 3, 6)
    assert all(error.index < 3 for error in find(chances, targets, SINGLE))
    for task in (SINGLE, MULTI):
        assert find(chances[:0], targets[:0], task) == []
        assert hardest(chances[:0], targets[:0], task, 5) == []


def test_what_agrees_with_the_labels_gives_nothing() -> None:
    targets = one_hot([0, 1, 2, 2, 1, 0], 3)
    assert find(targets, targets, SINGLE) == []
    assert find(targets, targets, MULTI) == []


def test_a_model_that_knows_nothing_accuses_nobody() -> None:
    labels = [0] * 60 + [1] * 40
    constant = torch.tensor([[0.6, 0.4]], dtype=torch.float64).expand(100, 2)
    assert find(constant, one_hot(labels, 2), SINGLE) == []
    assert find(constant[:, 1:], one_hot(labels, 2)[:, 1:], MULTI) == []


def test_a_class_that_half_of_its_images_only_seem_to_have_is_not_suggested() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20)
    looks = torch.tensor([0] * 20 + [1] * 40)  # half of what looks like class 1 bears label 0
    chances = 0.05 + 0.9 * one_hot(looks, 2)
    assert find(chances, one_hot(labels, 2), SINGLE) == []
    fewer = torch.cat([torch.arange(22), torch.arange(40, 60)])  # two of 22
    assert [error.index for error in find(chances[fewer], one_hot(labels, 2)[fewer], SINGLE)] == [20, 21]


def judged(*strange: tuple[int, int, int]) -> list[LabelError]:
    """What is found among ten images of each of three classes, and `strange` ones that bear label 0.

    Probabilities are in 64ths, so that means are exact; classes 1 and 2 are suggested from 28 on.
    """
    usual = [(52, 6, 6)] * 10 + [(20, 28, 16)] * 10 + [(20, 16, 28)] * 10
    labels = [0] * 10 + [1] * 10 + [2] * 10 + [0] * len(strange)
    return find(torch.tensor([*usual, *strange]) / 64, one_hot(labels, 3), SINGLE)


def test_an_image_that_seems_to_be_of_two_other_classes_gets_the_more_probable_one() -> None:
    # The second is why there is something to find between 0 and 2, but the first differs more.
    assert judged((4, 32, 28), (24, 8, 32)) == [LabelError(30, (0,), (1,), 28 / 64)]


def test_what_is_suggested_is_more_probable_than_what_is_given() -> None:
    assert judged((20, 30, 14)) == [LabelError(30, (0,), (1,), 10 / 64)]
    assert judged((32, 30, 2)) == []


def test_an_image_is_named_only_where_both_ways_of_counting_name_it() -> None:
    # By the difference the first is the one that is wrong, by the probability of its own label the second.
    assert judged((16, 44, 4), (12, 26, 26)) == []
    assert [error.index for error in judged((16, 44, 4), (16, 24, 24))] == [30]


def test_the_hardest_images_have_the_greatest_loss() -> None:
    chances = torch.tensor([[0.7, 0.3], [0.0, 1.0], [0.2, 0.8]])
    found = hardest(chances, one_hot([0, 0, 0], 2), SINGLE, 2)
    assert [index for index, _ in found] == [1, 2]
    assert found[0][1] == pytest.approx(-math.log(1e-12))
    assert found[1][1] == pytest.approx(-math.log(0.2), rel=1e-6)
    ((index, loss),) = hardest(chances[2:], torch.tensor([[1.0, 0.0]]), MULTI, 9)
    assert index == 0
    assert loss == pytest.approx(-math.log(0.2), rel=1e-6)


def test_confused_pairs_count_images_and_their_share_of_the_true_class() -> None:
    true, said = [0, 0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 2, 1, 1]
    pairs = confused_pairs(one_hot(said, 3), one_hot(true, 3).float(), 3)
    assert [(pair.true, pair.predicted, pair.images, pair.rate) for pair in pairs] == [
        (0, 1, 2, 0.5),
        (2, 1, 1, 1.0),
        (1, 2, 1, 0.5),
    ]


def test_with_several_labels_a_pair_is_one_missed_and_one_invented() -> None:
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]])
    predicted = torch.tensor([[0.0, 1, 0], [0, 1, 0], [1, 1, 0]])
    pairs = confused_pairs(predicted, targets, 9)
    assert [(pair.true, pair.predicted, pair.images) for pair in pairs] == [(2, 1, 1), (0, 1, 1)]
