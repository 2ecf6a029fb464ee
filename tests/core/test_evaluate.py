"""Metrics by hand and against slow references."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL
from bpt_core.evaluate import (
    KEPT_CORRECT,
    NO_CALIBRATION,
    TEMPERATURE_BOUNDS,
    Calibration,
    MultiLabelEvaluation,
    SingleLabelEvaluation,
    _best_f1_thresholds,
    _calibration_error,
    evaluate,
    fit_calibration,
    probabilities,
)

LN3 = math.log(3)


def names(count: int) -> list[str]:
    return [f"c{label}" for label in range(count)]


def one_hot(labels: list[int], classes: int) -> Tensor:
    return functional.one_hot(torch.tensor(labels), classes).float()


def single(logits: Tensor, labels: list[int], calibration: Calibration = NO_CALIBRATION) -> SingleLabelEvaluation:
    classes = logits.shape[1]
    found = evaluate(logits, one_hot(labels, classes), names(classes), SINGLE_LABEL, calibration)
    assert isinstance(found, SingleLabelEvaluation)
    return found


def multi(logits: Tensor, targets: Tensor, calibration: Calibration = NO_CALIBRATION) -> MultiLabelEvaluation:
    found = evaluate(logits, targets, names(logits.shape[1]), MULTI_LABEL, calibration)
    assert isinstance(found, MultiLabelEvaluation)
    return found


def nll(logits: Tensor, targets: Tensor, task: str, temperature: float) -> float:
    """Mean over images (and labels) of -log of what the truth was given."""
    chances = probabilities(logits.double(), task, temperature)
    given_to_truth = (
        chances[targets.bool()] if task == SINGLE_LABEL else torch.where(targets.bool(), chances, 1 - chances)
    )
    return float(-given_to_truth.log().mean())


def slow_calibration_error(confidences: list[float], outcomes: list[float]) -> float:
    total = 0.0
    for place in range(15):
        inside = [
            (confidence, outcome)
            for confidence, outcome in zip(confidences, outcomes, strict=True)
            if place / 15 < confidence <= (place + 1) / 15 or (place == 0 and confidence == 0)
        ]
        if inside:
            gap = sum(outcome for _, outcome in inside) / len(inside) - sum(each for each, _ in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(gap)
    return total


def slow_average_precision(scores: list[float], positives: list[bool]) -> float | None:
    """sum over distinct thresholds, from the top, of (recall there - recall before) x precision there."""
    found, recall, total = 0, 0.0, 0.0
    if not any(positives):
        return None
    for threshold in sorted(set(scores), reverse=True):
        chosen = [positive for score, positive in zip(scores, positives, strict=True) if score >= threshold]
        found = sum(chosen)
        total += (found / sum(positives) - recall) * found / len(chosen)
        recall = found / sum(positives)
    return total


def f1(chosen: list[bool], positives: list[bool]) -> float:
    hits = sum(a and b for a, b in zip(chosen, positives, strict=True))
    return 2 * hits / (sum(chosen) + sum(positives))


# One class per image


def test_accuracies_and_loss_are_those_counted_by_hand() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0], [2.0, 0, 0]])
    found = single(logits, [0, 1, 0, 1])
    assert (found.images, found.top1, found.top5, found.score) == (4, 0.5, 1.0, 0.5)
    assert found.per_class == {"c0": 0.5, "c1": 0.5, "c2": None}
    assert found.confusion == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    right, wrong = (-math.log(math.exp(z) / (math.exp(2) + 2)) for z in (2, 0))
    assert found.loss == pytest.approx((2 * right + 2 * wrong) / 4)


def test_rows_of_the_confusion_are_true_classes() -> None:
    logits = torch.eye(3)[[1, 1, 2, 2]]
    assert single(logits, [0, 0, 0, 2]).confusion == [[0, 2, 1], [0, 0, 0], [0, 0, 1]]
    assert single(logits, [0, 0, 0, 2]).per_class == {"c0": 0, "c1": None, "c2": 1}


def test_top5_counts_the_five_best_of_eight() -> None:
    logits = torch.arange(8.0).repeat(3, 1)
    found = single(logits, [3, 2, 7])
    assert (found.top1, found.top5) == pytest.approx((1 / 3, 2 / 3))


def test_of_equal_logits_the_first_classes_win() -> None:
    found = single(torch.zeros(8, 8), list(range(8)))
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)
    assert found.loss == pytest.approx(math.log(8))
    assert found.calibration_error == pytest.approx(0)  # says 1/8 and is right once in eight


def test_calibration_error_by_hand() -> None:
    logits = torch.tensor([[LN3, 0], [LN3, 0], [0, LN3], [0, 0]])  # confidences .75 .75 .75 .5
    found = single(logits, [0, 1, 0, 0])  # right: 1 of 3, 1 of 1
    assert found.calibration_error == pytest.approx(3 / 4 * (0.75 - 1 / 3) + 1 / 4 * 0.5)
    hotter = single(logits, [0, 1, 0, 0], Calibration(temperature=0.5))  # 3^2 to 1: .9 .9 .9 .5
    assert hotter.calibration_error == pytest.approx(3 / 4 * (0.9 - 1 / 3) + 1 / 4 * 0.5)
    assert hotter.loss == found.loss


def test_a_confidence_on_the_edge_of_a_bin_belongs_below_it() -> None:
    confidence = torch.tensor([1 / 3, 0.36], dtype=torch.float64)
    assert _calibration_error(confidence, torch.tensor([1.0, 0])) == pytest.approx((2 / 3 + 0.36) / 2)


def test_rejection_by_hand() -> None:
    logits = torch.tensor([[2 * LN3, 0], [LN3, 0], [0, LN3], [0, 0.1]])  # .9 .75 .75 .52
    found = single(logits, [0, 1, 1, 1], Calibration(rejection_threshold=0.74))
    assert found.coverage == 0.75
    assert found.accepted_accuracy == pytest.approx(2 / 3)
    nothing = single(logits, [0, 1, 1, 1], Calibration(rejection_threshold=0.95))
    assert (nothing.coverage, nothing.accepted_accuracy) == (0, None)
    everything = single(logits, [0, 1, 1, 1])
    assert (everything.coverage, everything.accepted_accuracy) == (1, everything.top1)
    # At temperature 2 the first confidence is .75 and the others are less.
    warmer = single(logits, [0, 1, 1, 1], Calibration(temperature=2, rejection_threshold=0.74))
    assert (warmer.coverage, warmer.accepted_accuracy) == (0.25, 1)


def test_all_wrong_and_a_single_image() -> None:
    found = single(torch.tensor([[0.0, 1.0]]), [0])
    assert (found.images, found.top1, found.top5, found.coverage) == (1, 0, 1, 1)
    assert found.per_class == {"c0": 0, "c1": None}
    assert found.calibration_error == pytest.approx(math.e / (1 + math.e))


@given(st.data())
def test_single_label_numbers_agree_with_loops(data: st.DataObject) -> None:
    images, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 8))
    rows = st.lists(st.integers(-3, 3), min_size=classes, max_size=classes)
    logits = torch.tensor(data.draw(st.lists(rows, min_size=images, max_size=images))).float() / 2
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    calibration = Calibration(temperature=0.7, rejection_threshold=0.4)
    found = single(logits, labels, calibration)
    order = [sorted(range(classes), key=lambda label: -row[label]) for row in logits.tolist()]
    correct = [float(best[0] == label) for best, label in zip(order, labels, strict=True)]
    confidences = [max(math.exp(z / 0.7) for z in row) / sum(math.exp(z / 0.7) for z in row) for row in logits.tolist()]
    assert found.top1 == pytest.approx(sum(correct) / images)
    assert found.top5 == pytest.approx(
        sum(label in best[:5] for best, label in zip(order, labels, strict=True)) / images
    )
    assert found.loss == pytest.approx(nll(logits, one_hot(labels, classes), SINGLE_LABEL, 1))
    # Equal logits may lie exactly on the edge of a bin: there the last digit decides.
    exact = probabilities(logits.double(), SINGLE_LABEL, 0.7).amax(dim=1).tolist()
    assert exact == pytest.approx(confidences)
    assert found.calibration_error == pytest.approx(slow_calibration_error(exact, correct), abs=1e-9)
    assert found.coverage == pytest.approx(sum(each >= 0.4 for each in confidences) / images)
    for true in range(classes):
        for predicted in range(classes):
            pairs = zip(order, labels, strict=True)
            assert found.confusion[true][predicted] == sum((b[0], t) == (predicted, true) for b, t in pairs)


# Any number of labels per image


def test_average_precision_by_hand_equal_scores_together() -> None:
    logits = torch.tensor([[4.0, 1, 0, 0], [3.0, 1, 0, 0], [2.0, 1, 0, 0], [1.0, 0, 1, 0]])
    targets = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]])
    found = multi(logits, targets)
    # c0: ranks 1 and 3. c1: one of three equals, then 2 of 4. c2: 1 of 1, then 2 of 4.
    expected = {"c0": (1 + 2 / 3) / 2, "c1": (1 / 3 + 2 / 4) / 2, "c2": (1 + 2 / 4) / 2, "c3": None}
    assert found.per_class == pytest.approx(expected)
    assert found.mean_average_precision == pytest.approx((5 / 6 + 5 / 12 + 3 / 4) / 3)
    assert found.score == found.mean_average_precision


def test_decisions_by_hand() -> None:
    logits = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, 1, -1]])
    targets = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0]])
    found = multi(logits, targets)
    # c0: 1 hit, 2 said, 2 true. c1: 2 hits, 2 said, 2 true. c2: no hit, 1 said, none true.
    assert found.f1_micro == pytest.approx(2 * 3 / (5 + 4))
    assert found.f1_macro == pytest.approx((0.5 + 1) / 2)
    assert found.exact_match == 0
    assert found.loss == pytest.approx((6 * math.log(1 + math.exp(-1)) + 3 * math.log(1 + math.e)) / 9)
    thresholds = Calibration(label_thresholds=(0.1, 0.5, 0.9))
    strict = multi(logits, targets, thresholds)
    # c0 now says three, two of them true; c2 says none.
    assert strict.f1_micro == pytest.approx(2 * 4 / (5 + 4))
    assert strict.f1_macro == pytest.approx((4 / 5 + 1) / 2)
    assert strict.exact_match == pytest.approx(2 / 3)
    assert strict.loss == found.loss


def test_calibration_error_of_labels_by_hand() -> None:
    logits = torch.tensor([[LN3, -LN3], [LN3, -LN3]])  # .75 and .25
    targets = torch.tensor([[1.0, 0], [0, 0]])
    assert multi(logits, targets).calibration_error == pytest.approx((0.25 + 0.25) / 2)
    hotter = multi(logits, targets, Calibration(temperature=0.5))  # .9 and .1
    assert hotter.calibration_error == pytest.approx((0.4 + 0.1) / 2)


def test_without_any_positive_there_is_no_precision() -> None:
    found = multi(torch.tensor([[-1.0, -2]]), torch.zeros(1, 2))
    assert (found.mean_average_precision, found.f1_micro, found.f1_macro) == (None, None, None)
    assert (found.score, found.exact_match, found.per_class) == (0, 1, {"c0": None, "c1": None})
    assert multi(torch.tensor([[1.0, -2]]), torch.zeros(1, 2)).f1_micro == 0


@given(st.data())
def test_multi_label_numbers_agree_with_loops(data: st.DataObject) -> None:
    images, classes = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 4))
    rows = st.lists(st.integers(-3, 3), min_size=classes, max_size=classes)
    bits = st.lists(st.booleans(), min_size=classes, max_size=classes)
    logits = torch.tensor(data.draw(st.lists(rows, min_size=images, max_size=images))).float() / 2
    targets = torch.tensor(data.draw(st.lists(bits, min_size=images, max_size=images))).float()
    calibration = fit_calibration(logits, targets, MULTI_LABEL)
    found = multi(logits, targets, calibration)
    assert calibration.label_thresholds is not None
    truth = targets.bool().T.tolist()
    chances = probabilities(logits.double(), MULTI_LABEL, calibration.temperature)
    precisions, f1s = [], []
    for column in range(classes):
        scores = chances[:, column].tolist()
        precision = slow_average_precision(logits[:, column].tolist(), truth[column])
        assert found.per_class[f"c{column}"] == (None if precision is None else pytest.approx(precision))
        if precision is None:
            assert calibration.label_thresholds[column] == 0.5
            continue
        precisions.append(precision)
        by_cut = {cut: f1([score >= cut for score in scores], truth[column]) for cut in sorted(set(scores))}
        reached = f1([score >= calibration.label_thresholds[column] for score in scores], truth[column])
        assert reached == max(by_cut.values())
        f1s.append(reached)
        upper = min(cut for cut, value in by_cut.items() if value == reached)  # the lowest of equally good cuts
        lower = max((score for score in scores if score < upper), default=0.0)
        assert calibration.label_thresholds[column] == pytest.approx((lower + upper) / 2)
    if precisions:
        assert found.mean_average_precision == pytest.approx(sum(precisions) / len(precisions))
        assert found.f1_macro == pytest.approx(sum(f1s) / len(f1s))
    assert found.loss == pytest.approx(nll(logits, targets, MULTI_LABEL, 1))
    outcomes = targets.flatten().tolist()
    error = slow_calibration_error(chances.flatten().tolist(), outcomes)
    assert found.calibration_error == pytest.approx(error, abs=1e-9)


# Calibration


def drawn(task: str, images: int = 4000, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits whose own probabilities the targets were drawn from."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, classes, generator=generator)
    chances = probabilities(logits, task)
    if task == SINGLE_LABEL:
        labels = chances.multinomial(1, generator=generator)[:, 0]
        return logits, functional.one_hot(labels, classes).float()
    return logits, chances.bernoulli(generator=generator)


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_the_temperature_finds_the_scale_the_targets_were_drawn_at(task: str) -> None:
    logits, targets = drawn(task)
    plain, scaled, shrunk = (fit_calibration(factor * logits, targets, task) for factor in (1, 3, 0.2))
    assert plain.temperature == pytest.approx(1, rel=0.05)
    assert scaled.temperature == pytest.approx(3 * plain.temperature, rel=1e-3)
    assert shrunk.temperature == pytest.approx(0.2 * plain.temperature, rel=1e-3)
    before = evaluate(3 * logits, targets, names(6), task)
    after = evaluate(3 * logits, targets, names(6), task, scaled)
    assert after.calibration_error < 0.03 < 0.06 < before.calibration_error


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0, 0.01, 1, 5, 300]), images=st.integers(1, 30))
def test_no_temperature_is_better_and_one_is_not(task: str, seed: int, scale: float, images: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, 3, generator=generator)
    targets = (torch.rand(images, 3, generator=generator) < 0.4).float()
    if task == SINGLE_LABEL:
        targets = one_hot(torch.randint(0, 3, (images,), generator=generator).tolist(), 3)
    found = fit_calibration(logits, targets, task).temperature
    low, high = TEMPERATURE_BOUNDS
    assert low <= found <= high

    def loss(temperature: float) -> float:
        one = Calibration(temperature)
        return evaluate(logits.double() / one.temperature, targets, names(3), task).loss

    assert loss(found) <= loss(1) * (1 + 1e-12)
    for step in range(25):
        other = low * (high / low) ** (step / 24)
        assert loss(found) <= loss(other) * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize("factor", [1, 1e4])
def test_perfectly_separated_images_end_at_the_bound(factor: float) -> None:
    logits, targets = factor * torch.eye(3), torch.eye(3)
    found = fit_calibration(logits, targets, SINGLE_LABEL)
    assert TEMPERATURE_BOUNDS[0] <= found.temperature <= 1
    assert found.rejection_threshold is not None
    result = evaluate(logits, targets, names(3), SINGLE_LABEL, found)
    assert isinstance(result, SingleLabelEvaluation)
    assert (result.top1, result.coverage, result.accepted_accuracy) == (1, 1, 1)
    assert result.calibration_error == pytest.approx(0, abs=1e-6)


def test_constant_logits_say_nothing_about_the_temperature() -> None:
    logits = torch.tensor([0.1, 0.7, -33.3])[:, None].repeat(1, 3)
    assert fit_calibration(logits, torch.eye(3), SINGLE_LABEL).temperature == 1
    assert fit_calibration(torch.zeros(3, 3), torch.eye(3), MULTI_LABEL).temperature == 1


@given(st.integers(1, 130), st.integers(0, 10_000))
def test_rejection_keeps_what_it_must_and_little_more(images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, generator=generator)
    labels = torch.randint(0, 4, (images,), generator=generator)
    found = fit_calibration(logits, one_hot(labels.tolist(), 4), SINGLE_LABEL)
    confidence, predicted = probabilities(logits.double(), SINGLE_LABEL, found.temperature).max(dim=1)
    correct = confidence[predicted == labels]
    if len(correct) == 0:
        assert found.rejection_threshold is None
        return
    assert found.rejection_threshold is not None
    kept = int((correct >= found.rejection_threshold - 1e-12).sum())
    assert kept >= KEPT_CORRECT * len(correct)
    assert kept - 2 < KEPT_CORRECT * len(correct)


def test_rejection_drops_five_of_a_hundred_and_one_correct() -> None:
    logits = torch.stack([torch.arange(1.0, 102), torch.zeros(101)], dim=1) / 100
    wrong = torch.tensor([[0.0, 0.001]]).repeat(50, 1)  # unsure, but of no weight for the threshold
    labels = [0] * 151
    found = fit_calibration(torch.cat([logits, wrong]), one_hot(labels, 2), SINGLE_LABEL)
    result = single(logits, labels[:101], found)
    assert result.coverage == pytest.approx(96 / 101)


def test_label_thresholds_by_hand() -> None:
    chances = torch.tensor([[0.9, 0.6, 0.2], [0.7, 0.6, 0.3], [0.3, 0.2, 0.4], [0.1, 0.1, 0.5]])
    targets = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    found = fit_calibration(chances.logit(), targets, MULTI_LABEL)
    assert found.rejection_threshold is None
    assert found.label_thresholds is not None

    def tempered(chance: float) -> float:
        return float(probabilities(torch.tensor(chance).logit(), MULTI_LABEL, found.temperature))

    # Equal scores stay together; a label without positives keeps one half.
    midways = [(tempered(0.3) + tempered(0.7)) / 2, (tempered(0.2) + tempered(0.6)) / 2, 0.5]
    assert found.label_thresholds == pytest.approx(midways, rel=1e-4)


def test_of_equally_good_label_thresholds_the_lowest_is_taken() -> None:
    # Positive, negative, negative, positive: the first alone and all four have F1 2/3.
    logits = torch.tensor([[3.0], [1], [-1], [-3]])
    found = fit_calibration(logits, torch.tensor([[1.0], [0], [0], [1]]), MULTI_LABEL)
    assert found.label_thresholds is not None
    lowest = float(torch.tensor(-3 / found.temperature).sigmoid())
    assert found.label_thresholds[0] == pytest.approx(lowest / 2, rel=1e-4)


def test_a_threshold_between_adjacent_floats_still_parts_them() -> None:
    # Their middle rounds to the lower one.
    chances = torch.tensor([[1 - 2**-52], [1 - 2**-53]], dtype=torch.float64)
    found = _best_f1_thresholds(chances, torch.tensor([[0.0], [1]], dtype=torch.float64))
    assert (chances >= found).tolist() == [[False], [True]]


# Documents


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_documents_survive_json(task: str) -> None:
    logits, targets = drawn(task, images=50)
    targets[:, 0] = 0  # no data for the first class
    rows = targets.sum(dim=1) > 0
    calibration = fit_calibration(logits[rows], targets[rows], task)
    for each in (calibration, NO_CALIBRATION):
        assert Calibration.from_dict(json.loads(json.dumps(each.to_dict(), allow_nan=False))) == each
    document: dict[str, Any] = evaluate(logits[rows], targets[rows], names(6), task, calibration).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["per_class"]["c0"] is None


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_logits_that_are_no_numbers_give_a_loss_that_is_none(task: str) -> None:
    assert math.isnan(evaluate(torch.full((2, 2), torch.nan), torch.eye(2), names(2), task).loss)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(AssertionError):
        evaluate(torch.eye(2), torch.eye(2), names(2), "single_label")
