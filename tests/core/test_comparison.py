"""Two prompt sets on the same images, counted: by arithmetic on ten images, and as the evaluation has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bpt_core import comparison
from bpt_core.comparison import Comparison, Flip, Pair, pairs
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL
from bpt_core.evaluate import CALIBRATION_BINS, SingleLabelEvaluation, evaluate
from bpt_core.results import Row, write_rows

A, B, OTHER = "birds:1", "birds:2", "quality:4"
UNREADABLE: Row = {"predicted": [], "scores": [], "error": {"code": "image_corrupt", "detail": "damaged"}}


def row(image: int, prompt_set: str, labels: list[str], predicted: list[str], score: float = 0.5) -> Row:
    scores = [{"label": name, "score": score} for name in predicted]
    known = {"image": f"{image}.png", "split": "test", "labels": labels, "prompt_set": prompt_set, "error": None}
    return {**known, "predicted": predicted, "unknown": not predicted, "scores": scores}


def counted(given: list[Pair]) -> Comparison:
    found = Comparison()
    for pair in given:
        found.add(pair)
    return found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Ten images: owl or crow as the first letter says, then what a and b answer."""
    rows = []
    for image, said_by in enumerate(["ooo", "ooo", "ooc", "oco", "oco", "oco", "occ", "ccc", "cco", "c--"]):
        label, a, b = list(said_by)
        names = {"o": ["owl"], "c": ["crow"], "-": []}
        for prompt_set, said, score in ((OTHER, "c", 0.5), (A, a, 0.75), (B, b, 0.5)):
            bad = UNREADABLE if "-" in (a, b) else {}
            rows.append(row(image, prompt_set, names[label], names[said], score) | bad)
    path = tmp_path / "results.parquet"
    write_rows(path, iter([rows[:7], rows[7:20], rows[20:]]))  # row groups that end amid an image
    return path


def read(path: Path, a: str = A, b: str = B, skip: int = 0) -> list[Pair]:
    with path.open("rb") as file:
        return list(pairs(file, 3, a, b, SINGLE_LABEL, skip))


def test_ten_images_are_counted_as_by_hand(results: Path) -> None:
    found = counted(read(results))
    assert (found.images, found.unread) == (10, 1)
    assert (found.a.accuracy, found.b.accuracy) == (5 / 10, 6 / 10)
    assert (found.flips[Flip.LOST], found.flips[Flip.WON]) == (2, 3)
    assert found.agreement == 4 / 10
    assert list(found.classes()) == [("crow", 3, 2 / 3, 1 / 3), ("owl", 7, 3 / 7, 5 / 7)]
    assert found.a.calibration_error == pytest.approx(abs(0.75 - 5 / 9))  # all answers are in one bin
    assert found.b.calibration_error == pytest.approx(abs(0.5 - 6 / 9))
    assert found.p_value == pytest.approx(1)  # 2 of 5: as even as can be


def test_ten_flips_of_one_kind_are_no_chance() -> None:
    won = Pair(0, "", ("owl",), comparison.Answer(("crow",), False, 1), comparison.Answer(("owl",), True, 1), True)
    assert counted([won] * 10).p_value == pytest.approx(2 / 2**10)


@pytest.mark.parametrize("batch_rows", [2, 1024])
def test_images_that_flipped_are_named_and_a_scan_goes_on_behind_any_image(
    results: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr(comparison, "BATCH_ROWS", batch_rows)
    every = read(results)
    assert [(pair.number, pair.image) for pair in every if pair.flip is Flip.LOST] == [(2, "2.png"), (8, "8.png")]
    assert [(pair.a.labels, pair.b.labels) for pair in every if pair.flip is Flip.WON] == [(("crow",), ("owl",))] * 3
    for skip in range(12):
        assert read(results, skip=skip) == every[skip:], skip
    assert read(results, B, A)[2].flip is Flip.WON


def test_of_several_labels_an_image_is_right_where_all_are() -> None:
    rows = [row(0, A, ["x", "y"], ["y", "x"]), row(0, B, ["x", "y"], ["x"])]
    answers = [comparison.Answer.of(each, MULTI_LABEL) for each in rows]
    found = counted([Pair(0, "0.png", ("x", "y"), answers[0], answers[1], True)])
    assert (found.a.accuracy, found.b.accuracy, found.agreement) == (1, 0, 0)
    assert (found.flips[Flip.LOST], found.a.calibration_error) == (1, None)
    assert list(found.classes()) == [("x", 1, 1, 1), ("y", 1, 1, 0)]


def test_the_calibration_error_is_that_of_the_evaluation() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (100,), generator=generator)
    logits = 2 * torch.randn(100, 3, generator=generator)
    expected = evaluate(logits, torch.nn.functional.one_hot(labels, 3).float(), ("a", "b", "c"), SINGLE_LABEL)
    assert isinstance(expected, SingleLabelEvaluation)
    found = Comparison()
    for label, best in zip(labels.tolist(), logits.double().softmax(1).max(1).indices.tolist(), strict=True):
        confidence = float(logits.double().softmax(1)[found.images].max())
        answer = comparison.Answer(("abc"[best],), label == best, confidence)
        found.add(Pair(found.images, "", ("abc"[label],), answer, answer, True))
    assert comparison.CALIBRATION_BINS == CALIBRATION_BINS
    assert found.a.calibration_error == pytest.approx(expected.calibration_error)
    assert found.a.accuracy == pytest.approx(expected.top1)
