"""The report of a tuning job: as dataclasses, as tables, as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from bpt_client import errors
from bpt_client.cli import main
from bpt_client.client import Client

if TYPE_CHECKING:
    from tests.client.conftest import Server


def report(**given: Any) -> dict[str, Any]:
    image = {"path": "train/a[red].png", "split": "train", "given": ["daisy"]}
    wrong = {**image, "suggested": ["rose", "lily"], "confidence": 0.912, "source": "cross-validation"}
    items = [{**wrong, "item": f"itm_{number}"} for number in range(3)]
    return {
        "job": "job_1",
        "dataset": "ds_1",
        "dataset_version": 2,
        "error": None,
        "label_errors": {"total": 7, "items": items},
        "hardest": [{**image, "item": None, "predicted": [], "loss": 3.456}],
        "confused_pairs": [{"split": "val", "true": "daisy", "predicted": "rose", "images": 3, "rate": 0.25}],
        "sampled": {"images": 20_000, "of": 30_000},
        "left_out": [{"class_name": "tulip", "images": 4, "reason": "too few"}],
        **given,
    }


@pytest.fixture
def bpt(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `bpt jobs report job_1` against the server -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(("jobs", "report", "job_1", *arguments))
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_a_report_is_typed(server: Server) -> None:
    server.will(server.json(report()))
    with Client(server.url, "bpt_key", timeout=5) as client:
        found = client.tuning_jobs.report("job_1")
    assert server.received[0].path == "/v1/tuning-jobs/job_1/report"
    assert (found.label_errors.total, len(found.label_errors.items)) == (7, 3)
    first = found.label_errors.items[0]
    assert (first.item, first.given, first.suggested, first.confidence) == (
        "itm_0",
        ("daisy",),
        ("rose", "lily"),
        0.912,
    )
    assert (found.hardest[0].item, found.hardest[0].predicted, found.hardest[0].loss) == (None, (), 3.456)
    assert (found.confused_pairs[0].true, found.confused_pairs[0].rate) == ("daisy", 0.25)
    assert found.sampled is not None
    assert (found.sampled.of, found.left_out[0].class_name, found.error) == (30_000, "tulip", None)


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(409, "job_unfinished", errors.Conflict), (404, "not_found", errors.NotFound)]
)
def test_a_report_that_is_not_there_is_an_error(server: Server, status: int, code: str, kind: type[Exception]) -> None:
    server.will(server.json({"code": code, "detail": "no"}, status))
    with Client(server.url, "bpt_key", timeout=5) as client, pytest.raises(kind):
        client.tuning_jobs.report("job_1")


def test_tables_show_the_worst_and_how_to_put_a_label_right(server: Server, bpt: Any) -> None:
    server.will(server.json(report()))
    code, out, err = bpt("--limit", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["dataset", "ds_1:2"] in lines
    assert "Probable label errors, the worst 2 of 7" in out
    assert ["itm_1", "train/a[red].png", "daisy", "rose,", "lily", "0.91"] in lines
    assert "itm_2" not in out
    assert ["-", "train/a[red].png", "daisy", "-", "3.46"] in lines
    assert "Confused classes (val)" in out
    assert ["daisy", "rose", "3", "25.0", "%"] in lines
    assert "20000 of 30000" in out
    assert "tulip (too few)" in out
    assert "bpt datasets relabel ds_1 ITEM LABEL" in err
    assert "relabel" not in out


def test_nothing_found_is_no_table_and_no_advice(server: Server, bpt: Any) -> None:
    empty: dict[str, Any] = {
        "label_errors": {"total": 0, "items": []},
        "hardest": [],
        "confused_pairs": [],
        "sampled": None,
    }
    server.will(server.json(report(**empty, left_out=[])))
    code, out, err = bpt()
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [["dataset", "ds_1:2"], ["probable", "label", "errors", "0"]]


def test_json_has_all_of_it(server: Server, bpt: Any) -> None:
    server.will(server.json(report()))
    code, out, err = bpt("--json", "--limit", "1")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["label_errors"]["items"]) == 3
    assert json.loads(out)["confused_pairs"] == report()["confused_pairs"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_report_that_could_not_be_made_is_one_line_and_exit_code_1(
    server: Server, bpt: Any, options: tuple[str, ...]
) -> None:
    server.will(server.json(report(error={"code": "report_failed", "detail": "it could not be made"})))
    code, out, err = bpt(*options)
    assert (code, err) == (1, "error: it could not be made (report_failed)\n")
    assert bool(out) is bool(options)
