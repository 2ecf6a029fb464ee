"""Rows of a batch prediction: parts of them while it runs, and at its end three files with all of them.

One row for each image and prompt set. In Parquet, with the names that JSON has, too:

    image string · split string · labels list<string>, what the dataset says · prompt_set string ·
    predicted list<string>, what applies by the fitted thresholds · unknown bool, nothing does ·
    scores list<struct<label, score>>, best first · error struct<code, detail>, why there is no prediction; then
    unknown is null and the lists but labels are empty

CSV has the lists joined by "|", and scores as label_1, score_1, label_2, ...
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("jsonl", "csv", "parquet")
BATCH_ROWS = 1024  # held in memory at a time

_SCORE = pa.struct([("label", pa.string()), ("score", pa.float32())])
_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("split", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("prompt_set", pa.string()),
        ("predicted", pa.list_(pa.string())),
        ("unknown", pa.bool_()),
        ("scores", pa.list_(_SCORE)),
        ("error", pa.struct([("code", pa.string()), ("detail", pa.string())])),
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """`files` has a path for each of FORMATS; `errors` are rows with one."""

    files: dict[str, Path]
    rows: int
    errors: int


def write_rows(path: Path, chunks: Iterator[list[Row]]) -> None:
    """One Parquet file of rows, a row group for each chunk."""
    with _writer(path) as writer:
        for rows in chunks:
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))


def write_results(
    parts: Sequence[Path], directory: Path, score_columns: int, see: Callable[[Row], object] = lambda _: None
) -> Results:
    """results.jsonl, results.csv and results.parquet in `directory`: the rows of all parts, in their order.

    Memory holds BATCH_ROWS rows. CSV has `score_columns` pairs of label and score. `see` is given every row.
    """
    files = {name: directory / f"results.{name}" for name in FORMATS}
    count = errors = 0
    with ExitStack() as stack:
        parquet = stack.enter_context(_writer(files["parquet"]))
        jsonl = stack.enter_context(files["jsonl"].open("w", encoding="utf-8"))
        table = csv.writer(stack.enter_context(files["csv"].open("w", encoding="utf-8", newline="")))
        table.writerow(_header(score_columns))
        for part in parts:
            with pq.ParquetFile(part) as source:
                for batch in source.iter_batches(BATCH_ROWS):
                    parquet.write_batch(batch)
                    for row in batch.to_pylist():
                        count, errors = count + 1, errors + (row["error"] is not None)
                        see(row)
                        row["scores"] = [{**each, "score": _short(each["score"])} for each in row["scores"]]
                        jsonl.write(json.dumps(row, ensure_ascii=False) + "\n")
                        table.writerow(_cells(row, score_columns))
    return Results(files, count, errors)


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, _SCHEMA, compression="zstd")


def _short(score: float) -> float:
    """The shortest number that is the same as a float32: 0.1 and not 0.10000000149011612."""
    return float(str(np.float32(score)))


def _header(score_columns: int) -> list[str]:
    scores = [f"{name}_{place}" for place in range(1, score_columns + 1) for name in ("label", "score")]
    return ["image", "split", "labels", "prompt_set", "predicted", "unknown", *scores, "error"]


def _cells(row: Row, score_columns: int) -> list[str | float]:
    scores: list[str | float] = [cell for each in row["scores"] for cell in (each["label"], each["score"])]
    return [
        row["image"],
        row["split"],
        "|".join(row["labels"]),
        row["prompt_set"],
        "|".join(row["predicted"]),
        "" if row["unknown"] is None else str(row["unknown"]).lower(),
        *scores,
        *[""] * (2 * score_columns - len(scores)),
        f"{row['error']['code']}: {row['error']['detail']}" if row["error"] else "",
    ]
