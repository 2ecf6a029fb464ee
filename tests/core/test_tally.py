"""Metrics that are counted from rows are those of the evaluation."""

from __future__ import annotations

import pytest
import torch

from bpt_core.catalog import Pooling
from bpt_core.dataset import MULTI_LABEL, SINGLE_LABEL
from bpt_core.evaluate import Calibration, MultiLabelEvaluation, SingleLabelEvaluation, evaluate
from bpt_core.predict import Prediction
from bpt_core.residency import Facts
from bpt_core.results import Row
from bpt_core.tally import METRICS, Tally

NAMES = tuple("abcdefg")
UNREADABLE: Row = {"predicted": [], "unknown": None, "scores": [], "error": {"code": "image_corrupt", "detail": ""}}


def rows(logits: torch.Tensor, targets: torch.Tensor, task: str, calibration: Calibration) -> list[Row]:
    """As batch.py makes them."""
    facts = Facts(NAMES, task, calibration, Pooling.CLS, None, 0, torch.zeros(len(NAMES)))
    found: list[Row] = []
    for one, target in zip(logits, targets, strict=True):
        answer = Prediction(facts, one, torch.zeros(1))
        scores = [{"label": label, "score": score} for label, score in answer.top(5)]
        labels = [NAMES[index] for index in target.nonzero().flatten().tolist()]
        found.append({"labels": labels, "predicted": list(answer.labels()), "scores": scores, "error": None})
    return found


def counted(task: str, given: list[Row], top_k: int = 5) -> dict[str, float | None]:
    tally = Tally(task, top_k, len(NAMES))
    for row in given:
        tally.add(row)
    assert tuple(tally.metrics()) == METRICS[task]
    return tally.metrics()


def test_single_label_metrics_are_those_of_the_evaluation() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (200,), generator=generator)  # two classes have no image
    targets = torch.nn.functional.one_hot(labels, len(NAMES)).float()
    logits = torch.randn(200, len(NAMES), generator=generator) + 1.5 * targets
    calibration = Calibration(1.3, 0.4)
    expected = evaluate(logits, targets, NAMES, SINGLE_LABEL, calibration)
    assert isinstance(expected, SingleLabelEvaluation)
    recalls = [recall for recall in expected.per_class.values() if recall is not None]
    assert 0.2 < expected.coverage < 0.95
    assert counted(SINGLE_LABEL, rows(logits, targets, SINGLE_LABEL, calibration)) == pytest.approx(
        {
            "top1": expected.top1,
            "top5": expected.top5,
            "balanced_top1": sum(recalls) / 5,
            "coverage": expected.coverage,
            "accepted_accuracy": expected.accepted_accuracy,
        }
    )


def test_multi_label_metrics_are_those_of_the_evaluation() -> None:
    generator = torch.Generator().manual_seed(2)
    targets = (torch.rand(200, len(NAMES), generator=generator) < 0.3).float()
    targets[:, 6] = 0
    logits = torch.randn(200, len(NAMES), generator=generator) + 2 * targets - 1
    calibration = Calibration(0.8, None, (0.3, 0.5, 0.4, 0.6, 0.5, 0.5, 0.7))
    expected = evaluate(logits, targets, NAMES, MULTI_LABEL, calibration)
    assert isinstance(expected, MultiLabelEvaluation)
    found = counted(MULTI_LABEL, rows(logits, targets, MULTI_LABEL, calibration))
    assert found == pytest.approx({name: getattr(expected, name) for name in METRICS[MULTI_LABEL]})


def test_an_image_without_an_answer_was_answered_wrong() -> None:
    right: Row = {"labels": ["a"], "predicted": ["a"], "scores": [{"label": "a", "score": 0.9}], "error": None}
    found = counted(SINGLE_LABEL, [right, {"labels": ["b"], **UNREADABLE}])
    assert found == {"top1": 0.5, "top5": 0.5, "balanced_top1": 0.5, "coverage": 0.5, "accepted_accuracy": 1.0}
    none = counted(MULTI_LABEL, [{"labels": [], **UNREADABLE}])
    assert none == {"exact_match": 0.0, "f1_micro": None, "f1_macro": None}


def test_what_cannot_be_said_is_none() -> None:
    row: Row = {"labels": ["b"], "predicted": [], "scores": [{"label": "a", "score": 0.9}], "error": None}
    found = counted(SINGLE_LABEL, [row], top_k=1)
    assert (found["top5"], found["accepted_accuracy"], found["top1"]) == (None, None, 0.0)
