"""Rows of batch predictions: parts become three files that say the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bpt_core.results import FORMATS, Row, write_results, write_rows


def row(image: str, prompt_set: str = "birds:1", **changed: Any) -> Row:
    scores = [{"label": "owl", "score": 0.7}, {"label": "crow | raven", "score": 0.1}]
    known = {"image": image, "split": "test", "labels": ["owl"], "prompt_set": prompt_set, "predicted": ["owl"]}
    return {**known, "unknown": False, "scores": scores, "error": None, **changed}


UNREADABLE: Row = {
    "predicted": [],
    "unknown": None,
    "scores": [],
    "error": {"code": "image_corrupt", "detail": "damaged"},
}
ROWS = [
    row("a/1.png"),
    row("a/1.png", "quality:2", labels=[], predicted=[], unknown=True, scores=[{"label": "sharp", "score": 1e-9}]),
    row('b/"2", näher\n.png', predicted=["owl", "crow | raven"]),
    row("b/3.png", **UNREADABLE),
]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    write_rows(paths[0], iter([ROWS[:1], ROWS[1:2]]))
    write_rows(paths[1], iter([ROWS[2:]]))
    return paths


def test_all_rows_of_all_parts_are_in_each_file_in_their_order(tmp_path: Path, parts: list[Path]) -> None:
    results = write_results(parts, tmp_path, score_columns=2)
    assert (results.rows, results.errors, tuple(results.files)) == (4, 1, FORMATS)
    assert [json.loads(line) for line in results.files["jsonl"].read_text().split("\n")[:-1]] == ROWS
    stored = pq.read_table(results.files["parquet"]).to_pylist()
    assert [{**each, "scores": []} for each in stored] == [{**each, "scores": []} for each in ROWS]
    for found, expected in zip(stored, ROWS, strict=True):
        assert [score["label"] for score in found["scores"]] == [score["label"] for score in expected["scores"]]
        assert [score["score"] for score in found["scores"]] == pytest.approx(
            [score["score"] for score in expected["scores"]], rel=1e-6
        )


def test_csv_has_a_column_for_each_score_and_quotes_what_needs_it(tmp_path: Path, parts: list[Path]) -> None:
    path = write_results(parts, tmp_path, score_columns=2).files["csv"]
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    columns = ["image", "split", "labels", "prompt_set", "predicted", "unknown"]
    assert list(found[0]) == [*columns, "label_1", "score_1", "label_2", "score_2", "error"]
    assert [each["image"] for each in found] == [each["image"] for each in ROWS]
    assert [each["unknown"] for each in found] == ["false", "true", "false", ""]
    assert found[0]["score_1"] == "0.7"
    assert (found[1]["label_2"], found[1]["labels"]) == ("", "")
    assert found[3]["error"] == "image_corrupt: damaged"


def test_no_parts_are_files_without_rows(tmp_path: Path) -> None:
    results = write_results([], tmp_path, score_columns=1)
    assert (results.rows, results.files["jsonl"].read_text()) == (0, "")
    assert pq.read_table(results.files["parquet"]).num_rows == 0
    assert len(results.files["csv"].read_text().splitlines()) == 1
