"""The serving benchmark on a very small model: every row is there, and ratios mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "timm": [2.0, 2.0, 2.0]}
    assert serving.ratio(seconds, "ours", "timm") == 1.0
    assert serving.ratio({"ours": [2.0], "timm": [1.0]}, "ours", "timm") == 0.5  # slower: below 1


@pytest.mark.slow
def test_every_row_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    serving.main(["--model", "test_vit", "--batch", "4", "--rounds", "1", "--sets", "6", "--json", str(report)])
    found = json.loads(report.read_text())
    lines = {line["what"]: line for line in found["lines"]}
    assert len(lines) >= 17
    assert all(line["ratio"] > 0 for line in found["lines"] if line["unit"] == "x")
    assert lines["deep, 6 sets mixed"]["beside"] == "1 set"
    assert "64 distinct sets" in capsys.readouterr().out
