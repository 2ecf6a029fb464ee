"""The `bpt` command: readable errors, JSON for scripts."""

from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bpt_client.models import JobEvent, parse
from bpt_client.terminal import duration, size
from bpt_client.watch import JobWatch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import Server


def test_an_error_of_the_service_is_one_line_and_exit_code_1(server: Server, bpt: Any) -> None:
    server.will(server.json({"code": "not_found", "detail": "there is no\n\x1b[31m'ds_1'", "request_id": "r"}, 404))
    assert bpt("datasets", "show", "ds_1") == (
        1,
        "",
        "error: there is no  [31m'ds_1' (404 not_found, request r)\n",
    )


def test_nobody_listening_is_one_line_and_exit_code_1(bpt: Any) -> None:
    code, out, err = bpt("--url", "http://127.0.0.1:1", "customers", "create", "x")
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot reach http://127.0.0.1:1")
    assert err.count("\n") == 1


def test_a_missing_key_is_told_before_anything_is_asked(server: Server, bpt: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("BPT_API_KEY")
    code, _, err = bpt("jobs", "list")
    assert code == 1
    assert "BPT_API_KEY" in err
    assert not server.received


def test_a_wrong_command_line_is_exit_code_2(bpt: Any) -> None:
    assert bpt("tune")[0] == 2


def test_server_commands_say_when_the_server_is_not_installed(bpt: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("bpt_client.commands.server._SERVER_PACKAGES", ("no_such_package",))
    for command in (
        ("up", "--data-dir", str(tmp_path)),
        ("admin", "bootstrap", "--data-dir", str(tmp_path)),
        ("demo",),
    ):
        code, _, err = bpt(*command)
        assert code == 1
        assert "pip install 'bpt-service[server]'" in err


def test_a_list_in_json_is_an_array_with_times(server: Server, bpt: Any) -> None:
    server.will(server.page(server.dataset(name="Blüte [red]")))
    code, out, err = bpt("datasets", "list", "--json")
    assert (code, err) == (0, "")
    (dataset,) = json.loads(out)
    assert (dataset["name"], dataset["created_at"]) == ("Blüte [red]", "2026-01-02T03:04:05+00:00")


def test_a_table_in_a_pipe_cuts_nothing_off(server: Server, bpt: Any) -> None:
    name = "a-very-long-name-" * 8 + "[red]"
    server.will(server.page(server.dataset(name=name, id="ds_0199c0de000070008000000000000000")))
    _, out, _ = bpt("datasets", "list")
    assert name in out
    assert "ds_0199c0de000070008000000000000000" in out


def test_a_list_says_when_there_is_more(server: Server, bpt: Any) -> None:
    server.will(server.page(server.dataset(), server.dataset(id="ds_2")))
    code, out, err = bpt("datasets", "list", "--limit", "1")
    assert code == 0
    assert "ds_2" not in out
    assert "--limit" in err


def test_a_dataset_can_be_named_instead_of_numbered(server: Server, bpt: Any) -> None:
    old = server.dataset(id="ds_old", state="ready", created_at="2025-01-01T00:00:00Z")
    new = server.dataset(id="ds_new", state="ready")
    server.will(server.page(server.dataset(id="ds_failed", state="failed"), old, new), server.json(server.job(), 201))
    assert bpt("tune", "flowers", "--prompt-set", "p", "--epochs", "3")[0] == 0
    body = json.loads(server.received[1].body)
    assert body == {"dataset": "ds_new", "prompt_set": "p", "hyperparameters": {"epochs": 3}}
    server.will(server.page())
    assert "no dataset named 'roses' is ready" in bpt("tune", "roses", "--prompt-set", "p")[2]


def version(number: int = 2, **given: Any) -> dict[str, Any]:
    known = {"dataset": "ds_1", "number": number, "state": "validating", "created_at": "2026-01-02T03:04:05Z"}
    return {**known, **given}


def test_a_dataset_is_uploaded_with_its_options_and_waited_for(server: Server, bpt: Any, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    ready = server.dataset(state="ready", version=1, image_count=7, verdict="tune with care")
    server.will(server.json(server.dataset(), 201), server.json(ready))
    options = ("--name", "b", "--task", "multi-label", "--first-frame", "--short-side", "64", "--bad-images", "0.5")
    code, out, _ = bpt("datasets", "upload", str(tmp_path / "a.zip"), *options, "--column", "label=tags", "--wait")
    assert code == 0
    query = "name=b&task=multi-label&first_frame=true&short_side=64&bad_images=0.5&label_column=tags"
    assert server.received[0].path == f"/v1/datasets?{query}"
    assert [line.split("  ")[-1].strip() for line in out.splitlines()][2:6] == ["1", "ready", "7", "tune with care"]


def test_images_are_added_to_a_dataset_by_its_name(server: Server, bpt: Any, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    server.will(
        server.page(server.dataset(state="ready")),
        server.json(version(), 201),
        server.json(version(state="ready", image_count=9)),
    )
    code, out, _ = bpt("datasets", "upload", str(tmp_path / "a.zip"), "--add-to", "flowers", "--wait", "--json")
    assert (code, json.loads(out)["image_count"]) == (0, 9)
    assert [each.path for each in server.received[1:]] == ["/v1/datasets/ds_1/versions", "/v1/datasets/ds_1/versions/2"]


def test_options_that_do_not_go_together_ask_for_nothing(server: Server, bpt: Any, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    upload = ("datasets", "upload", str(tmp_path / "a.zip"))
    wrong = (("--add-to", "ds_1", "--task", "auto"), ("--add-to", "ds_1", "--first-frame"), ("--metadata", "spring"))
    for options in (*wrong, ("--column", "=x"), ("--metadata", "a=1", "--metadata", "a=2"), ("--bad-images", "2")):
        code, _, err = bpt(*upload, *options)
        assert (code, options[0] in err) == (2, True)
    assert not server.received


def test_a_dataset_is_imported(server: Server, bpt: Any) -> None:
    server.will(server.json(server.dataset(), 201))
    options = ("--name", "owls", "--metadata", "season=spring", "--metadata", "url=a=b")
    assert bpt("datasets", "import", "s3://bucket/birds/", *options)[0] == 0
    metadata = {"season": "spring", "url": "a=b"}
    assert json.loads(server.received[0].body) == {"name": "owls", "url": "s3://bucket/birds/", "metadata": metadata}


def test_items_are_relabelled_and_excluded(server: Server, bpt: Any) -> None:
    server.will(server.json(version(base=1), 201))
    code, out, _ = bpt("datasets", "relabel", "ds_1", "itm_1", "cat", "dog", "--base", "1")
    assert code == 0
    assert out.splitlines()[:3] == ["dataset    ds_1", "version    2", "made from  1"]
    assert bpt("datasets", "exclude", "ds_1", "itm_1", "itm_2", "--base", "1")[0] == 0
    assert [json.loads(each.body) for each in server.received] == [
        {"base": 1, "relabel": [{"item": "itm_1", "labels": ["cat", "dog"]}]},
        {"base": 1, "remove": ["itm_1", "itm_2"]},
    ]
    assert bpt("datasets", "relabel", "ds_1", "itm_1")[0] == 2


def test_versions_and_items_are_listed(server: Server, bpt: Any) -> None:
    error = {"code": "too_few_classes", "detail": "one class is not enough"}
    server.will(server.page(version(3, state="failed", error=error), version(state="ready", image_count=7)))
    _, third, second = bpt("datasets", "versions", "ds_1")[1].splitlines()
    assert third.split()[:3] == ["3", "-", "failed"]
    assert third.endswith("one class is not enough")
    assert second.split()[:4] == ["2", "-", "ready", "7"]
    item = {"id": "itm_1", "path": "a/[red].jpg", "labels": ["cat", "dog"], "split": "val", "width": 64, "height": 48}
    server.will(server.page({**item, "findings": ["dark"]}))
    options = ("--version", "2", "--split", "val", "--label", "cat", "--finding", "dark")
    row = bpt("datasets", "items", "ds_1", *options)[1].splitlines()[1]
    assert row.split() == ["itm_1", "a/[red].jpg", "cat,", "dog", "val", "-", "64", "x", "48", "dark"]
    assert server.received[-1].path.endswith("items?limit=100&version=2&split=val&label=cat&finding=dark")


def test_an_image_is_written_to_a_file(server: Server, bpt: Any, tmp_path: Path) -> None:
    server.will(server.raw(200, b"picture"))
    assert bpt("datasets", "image", "ds_1", "itm_1", "-o", str(tmp_path / "a.webp"))[0] == 0
    assert (tmp_path / "a.webp").read_bytes() == b"picture"
    bpt("datasets", "image", "ds_1", "itm_1", "-o", str(tmp_path / "a.jpg"), "--thumbnail", "--version", "2")
    assert [each.path.rpartition("itm_1/")[2] for each in server.received] == ["image", "thumbnail?version=2"]


def test_a_report_is_readable_and_whole_in_json(server: Server, bpt: Any) -> None:
    found = {
        "verdict": "fix first",
        "images": {"accepted": 30, "rejected": 25, "packed": 29},
        "splits": {"train": 20, "val": 9, "test": 0},
        "counts": {"cat": {"train": 12, "val": 5, "test": 0}, "dog": {"train": 8, "val": 4, "test": 0}},
        "formats": {"JPEG": 29},
        "changes": {"added": 3, "relabelled": 0, "removed": 1},
        "ignored": {"total": 2, "items": []},
        "rejected": {"total": 25, "items": [{"entry": f"{n}.jpg", "code": "image_corrupt"} for n in range(25)]},
        "findings": [
            {
                "code": "class_imbalance",
                "severity": "serious",
                "explanation": "cat has [far] more",
                "items": {"total": 2},
            }
        ],
    }
    server.will(server.json(found))
    code, out, _ = bpt("datasets", "report", "ds_1")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["verdict", "fix", "first"] in lines
    assert ["packed", "29"] in lines
    assert ["removed", "1"] in lines
    assert [line for line in lines if line[:1] in (["class"], ["cat"], ["dog"])] == [
        ["class", "train", "val"],
        ["cat", "12", "5"],
        ["dog", "8", "4"],
    ]
    assert ["serious", "class_imbalance", "2", "cat", "has", "[far]", "more"] in lines
    assert [line for line in lines if "image_corrupt" in line][-1][0] == "19.jpg"
    assert lines[-1] == ["and", "5", "more"]
    assert json.loads(bpt("datasets", "report", "ds_1", "--version", "2", "--json")[1]) == found
    assert server.received[-1].path == "/v1/datasets/ds_1/versions/2/report"
    server.will(server.json({"verdict": None}))  # of a dataset that was refused as a whole
    assert bpt("datasets", "report", "ds_1")[0] == 0


def test_a_dry_run_asks_for_the_plan_and_shows_it(server: Server, bpt: Any) -> None:
    plan = {
        "backbone": "vit",
        "method": {"type": "bpt-bilinear", "depth": "deep", "prompts": 8, "rank": "auto"},
        "hyperparameters": {"learning_rate": "auto", "epochs": 10},
        "seed": 0,
        "trials": 8,
        "parameters": 1234,
        "estimated_seconds": 61.5,
    }
    server.will(server.json(server.dataset(id="ds_1")), server.json(plan))
    options = ("--depth", "deep", "--rank", "auto", "--learning-rate", "auto", "--weight-decay", "0.1", "--dry-run")
    code, out, _ = bpt("tune", "ds_1", "--prompt-set", "p", *options)
    assert code == 0
    asked = json.loads(server.received[-1].body)
    assert asked["dry_run"] is True
    assert asked["method"] == {"depth": "deep", "rank": "auto"}
    assert asked["hyperparameters"] == {"learning_rate": "auto", "weight_decay": 0.1}
    assert "bpt-bilinear, deep, 8 prompts, rank auto" in out
    assert "1234" in out
    assert "62" in out


def test_a_rate_that_is_no_number_is_refused_before_anything_is_asked(server: Server, bpt: Any) -> None:
    code, _, err = bpt("tune", "ds_1", "--prompt-set", "p", "--learning-rate", "fast")
    assert code == 2
    assert "neither a number nor auto" in err
    assert not server.received


def test_following_a_job_that_fails_is_exit_code_1(server: Server, bpt: Any) -> None:
    error = {"code": "out_of_memory", "detail": "a smaller batch helps"}
    events = [
        server.event(1, "state", attempt=0, state="queued"),
        server.event(2, "epoch", epoch=1, epochs=3, train_loss=2.5, val_accuracy=0.25, seconds=60),
        server.event(3, "state", state="failed", error=error),
    ]
    job = server.json(server.job(state="failed", error=error))
    server.will(job, server.events(*events), job)
    code, out, err = bpt("jobs", "follow", "job_1")
    assert (code, out) == (1, "")
    assert "epoch 1/3  loss 2.500  validation accuracy  25.0 %  2:00 left" in err
    assert err.splitlines()[-1] == "error: job job_1 is failed: a smaller batch helps (out_of_memory)"


def test_images_are_predicted_in_portions_by_one_version(server: Server, bpt: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jpg" for number in range(40)]
    for path in paths:
        path.write_bytes(b"x")
    used = {"name": "flowers", "version": 2, "artifact_sha256": "ab", "backbone": "vit", "backbone_fingerprint": "f"}

    def answer(count: int) -> Any:
        seen = {"prompt_set": "flowers:2", "labels": ["daisy"], "predictions": [{"label": "daisy", "score": 0.5}]}
        return server.json({"prompt_sets": [used], "data": [{"index": at, "results": [seen]} for at in range(count)]})

    server.will(answer(32), answer(8))
    code, out, _ = bpt("predict", *map(str, paths), "--prompt-set", "flowers", "--json")
    assert code == 0
    assert [each["index"] for each in json.loads(out)["data"]] == list(range(40))
    assert b"\r\n\r\nflowers:2\r\n" in server.received[1].body

    unreadable = {"code": "image_corrupt", "detail": "no image could be read", "param": "images"}
    server.will(answer(32), server.json(unreadable, 422))
    code, out, _ = bpt("predict", *map(str, paths), "--prompt-set", "flowers")
    assert code == 1
    assert out.count("daisy") == 32
    assert out.count("no image could be read") == 8


def test_an_alias_is_moved_rolled_back_and_removed(server: Server, bpt: Any) -> None:
    alias = {"prompt_set": "flowers", "alias": "production", "version": 2, "moved_at": "2026-01-02T03:04:05Z"}
    server.will(server.json(alias), server.json(alias), server.json(alias), server.json(alias), server.raw(204))
    code, out, _ = bpt("prompt-sets", "alias", "flowers", "production", "2")
    assert (code, out.splitlines()[:2]) == (0, ["alias    flowers@production", "version  2"])
    bpt("prompt-sets", "alias", "flowers", "production", "2", "--expected-version", "1")
    bpt("prompt-sets", "alias", "flowers", "production", "2", "--expected-version", "0")
    code, out, _ = bpt("prompt-sets", "rollback", "flowers", "production", "--json")
    assert json.loads(out)["version"] == 2
    assert bpt("prompt-sets", "unalias", "flowers", "production") == (0, "", "")
    assert [(each.method, each.body and json.loads(each.body)) for each in server.received] == [
        ("PUT", {"version": 2}),
        ("PUT", {"version": 2, "expected_version": 1}),
        ("PUT", {"version": 2, "expected_version": None}),
        ("POST", b""),
        ("DELETE", b""),
    ]


def test_aliases_are_shown_with_prompt_sets_versions_and_their_history(server: Server, bpt: Any) -> None:
    time = "2026-01-02T03:04:05Z"
    aliases = {"production": 1, "staging": 2, "tests": 2}
    flowers = {"id": "ps_1", "name": "flowers", "latest_version": 2, "aliases": aliases, "created_at": time}
    version = {"prompt_set": "flowers", "artifact_sha256": "ab", "artifact_bytes": 8, "backbone": "vit"}
    version |= {"backbone_fingerprint": "f", "class_names": ["daisy"], "created_at": time}
    server.will(server.page(flowers))
    assert "production:1 staging:2 tests:2" in bpt("prompt-sets", "list")[1]
    server.will(server.json(flowers), server.page({**version, "version": 2}, {**version, "version": 1}))
    rows = [line.split() for line in bpt("prompt-sets", "show", "flowers")[1].splitlines()]
    assert rows[1][:3] == ["flowers:2", "staging", "tests"]
    assert rows[2][:2] == ["flowers:1", "production"]
    server.will(server.page({"number": 1, "from_version": None, "to_version": 2, "actor": "key_1", "moved_at": time}))
    head, row = bpt("prompt-sets", "history", "flowers", "production")[1].splitlines()
    assert head.split() == ["number", "from", "to", "moved", "by", "request", "gate", "overridden"]
    assert [*row.split()[:3], *row.split()[-3:]] == ["1", "-", "2", "key_1", "-", "-"]


def test_a_restarted_attempt_is_told_while_a_job_is_watched() -> None:
    told = StringIO()
    events = [
        {"attempt": 0, "type": "state", "data": {"state": "queued"}},
        {"attempt": 1, "type": "state", "data": {"state": "running", "attempt": 1}},
        {"attempt": 1, "type": "started", "data": {"device": "cpu", "resumed": False}},
        {"attempt": 1, "type": "state", "data": {"state": "queued", "reason": "the trainer was killed"}},
        {"attempt": 2, "type": "state", "data": {"state": "running", "attempt": 2}},
        {"attempt": 2, "type": "started", "data": {"device": "cpu", "resumed": True}},
        {"attempt": 2, "type": "state", "data": {"state": "succeeded"}},
    ]
    with JobWatch(Console(file=told, width=200), "flowers") as watch:
        last = watch.show_all(parse(JobEvent, {"number": at, **each}) for at, each in enumerate(events, 1))
    assert last is not None
    assert last.is_last
    assert (watch.attempts, watch.interruptions) == (2, ["the trainer was killed"])
    assert told.getvalue().splitlines() == [
        "  flowers: attempt 1 was interrupted: the trainer was killed; the job waits to be taken up again",
        "  flowers: attempt 2 goes on from the last checkpoint",
    ]


def test_a_pause_and_another_try_are_told_while_a_job_is_watched() -> None:
    console = Console(file=StringIO(), width=200)

    def event(number: int, kind: str, **data: Any) -> JobEvent:
        return parse(JobEvent, {"number": number, "attempt": 1, "type": kind, "data": data})

    with JobWatch(console, "flowers") as watch:
        watch.show_all(
            [
                event(1, "state", state="running"),
                event(2, "epoch", epoch=1, epochs=5, seconds=1.0),
                event(3, "state", state="pausing"),
                event(4, "state", state="paused"),
                event(5, "state", state="queued", **{"from": "paused"}),
                event(6, "state", state="failed", error={"code": "diverged", "detail": "no number"}),
                event(7, "state", state="queued", **{"from": "failed"}),
            ]
        )
    assert isinstance(console.file, StringIO)
    told = [line.strip() for line in console.file.getvalue().splitlines()]
    assert told[1:] == [
        "flowers: paused after epoch 1/5; it goes on when somebody resumes it (bpt jobs resume)",
        "flowers: resumed",
        "flowers: failed: no number (diverged)",
        "flowers: is tried again",
    ]
    assert watch.interruptions == []


def test_a_job_is_deleted(server: Server, bpt: Any) -> None:
    server.will(server.json(None, 204))
    code, out, _ = bpt("jobs", "delete", "job_1")
    assert (code, out, server.received[-1].method, server.received[-1].path) == (
        *(0, "", "DELETE"),
        "/v1/tuning-jobs/job_1",
    )


def test_jobs_are_paused_resumed_and_tried_again(server: Server, bpt: Any) -> None:
    for verb, state in (("pause", "pausing"), ("resume", "queued"), ("retry", "queued")):
        server.will(server.json(server.job(state=state)))
        code, out, _ = bpt("jobs", verb, "job_1")
        assert (code, server.received[-1].path) == (0, f"/v1/tuning-jobs/job_1/{verb}")
        assert state in out


def test_a_job_is_asked_for_with_a_budget(server: Server, bpt: Any) -> None:
    server.will(server.json(server.dataset(id="ds_1")), server.json(server.job(budget={"max_minutes": 7.5}), 201))
    code, out, _ = bpt("tune", "ds_1", "--prompt-set", "flowers", "--max-minutes", "7.5")
    assert code == 0
    assert json.loads(server.received[-1].body)["budget"] == {"max_minutes": 7.5}
    assert "7.5 minutes" in out


def test_what_a_job_that_failed_said_last_is_shown(server: Server, bpt: Any) -> None:
    error = {"code": "trainer_crashed", "detail": "it died", "log": ["Traceback", "\x1b[31mValueError: no"]}
    server.will(server.json(server.job(state="failed", error=error)))
    code, out, _ = bpt("jobs", "show", "job_1")
    assert code == 0
    first, second = out.splitlines()[-2:]
    assert (first.split(), second.split()) == (["log", "Traceback"], ["[31mValueError:", "no"])


def test_sizes_and_times_are_for_people() -> None:
    assert [size(999), size(1000), size(2_345_678), size(None)] == ["999 bytes", "1.0 kB", "2.3 MB", None]
    assert [duration(59.6), duration(61), duration(3661)] == ["1:00", "1:01", "1:01:01"]
