"""Uploads in parts, against a small HTTP server that keeps parts as the service does, and has faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpt_client import errors, uploads
from bpt_client.archives import content_of
from bpt_client.client import Client
from bpt_client.dataset_models import Upload

PART = 1000
DATASET = {"id": "ds_1", "name": "flowers", "state": "validating", "created_at": "2026-01-02T03:04:05Z"}
VERSION = {"dataset": "ds_1", "number": 2, "state": "validating", "created_at": "2026-01-02T03:04:05Z"}
Fault = int | str
"""A status to answer with; "unheard" loses the request, "unanswered" only the answer, "broken" reads half a body."""


class Service:
    """`asked` are requests as "PUT 2" or "POST complete"; `faults` says by these names what happens to the next ones.

    A part that is not what its digest says, or no part at all, fails the test by way of `wrong`.
    """

    def __init__(self) -> None:
        self.uploads: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.parts: dict[int, bytes] = {}
        self.asked: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        self.wrong: list[str] = []
        self.at_once = self.most_at_once = 0
        self.on_part: Callable[[int], None] = lambda number: None
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def serve(self) -> None:
                service.serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = serve  # noqa: N815  # the names http.server looks for

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def whole(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))

    def put(self) -> list[int]:
        """Numbers of the parts that were sent, in order of arrival."""
        return [int(each.split()[1]) for each in self.asked if each.startswith("PUT")]

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        verb, path = request.command, request.path
        name = f"{verb} {re.sub('.*/', '', path)}"
        fault: Fault | None = None
        with self._lock:
            self.asked.append(name)
            if self.faults.get(name):
                fault = self.faults[name].pop(0)
        length = int(request.headers.get("Content-Length", 0))
        if fault in ("unheard", "broken"):
            request.rfile.read(0 if fault == "unheard" else length // 2)
            request.close_connection = True
            return
        body = request.rfile.read(length)
        if len(body) < length:  # whoever sent it has given up
            request.close_connection = True
            return
        if isinstance(fault, int):
            code = "checksum_mismatch" if fault == 422 else "x"
            self.answer(request, fault, {"code": code, "detail": "no"})
            return
        answer = self.do(verb, path, body, request.headers.get("Content-Digest", ""))
        if fault == "unanswered":
            request.close_connection = True
            return
        self.answer(request, *answer)

    def answer(self, request: BaseHTTPRequestHandler, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def do(self, verb: str, path: str, body: bytes, digest: str) -> tuple[int, Any]:
        if verb == "PUT":
            return self.keep(int(path.rpartition("/")[2]), body, digest)
        if verb == "DELETE":
            self.uploads.clear()
            return 200, {}
        if path.endswith("/complete"):
            upload = self.uploads[path.split("/")[-2]]
            if json.loads(body) != {"sha256": hashlib.sha256(self.whole).hexdigest()}:
                self.wrong.append("the whole")
            upload["state"] = "complete"
            return 201, VERSION if "dataset" in upload else DATASET
        if verb == "POST":
            self.created.append(json.loads(body))
            number = f"upl_{len(self.created)}"
            self.uploads[number] = {**json.loads(body), "id": number, "state": "open"}
            return 201, {**self.uploads[number], "parts": []}
        if path.startswith("/v1/uploads?"):
            return 200, {"data": list(self.uploads.values()), "has_more": False, "next_cursor": None}
        upload = self.uploads[path.rpartition("/")[2]]
        parts = [
            {"number": number, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for number, data in self.parts.items()
        ]
        return 200, {**upload, "parts": parts}

    def keep(self, number: int, body: bytes, digest: str) -> tuple[int, Any]:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.on_part(number)
        expected = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if digest != f"sha-256=:{expected}:":
            self.wrong.append(f"part {number}")
        with self._lock:
            self.at_once -= 1
            self.parts[number] = body
        return 200, {}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(uploads, "PART_BYTES", PART)
    monkeypatch.setattr(uploads, "LARGE_PART_BYTES", 2 * PART)
    monkeypatch.setattr(uploads, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("bpt_client.transport._BACKOFF_SECONDS", 0.0)
    service = Service()
    yield service
    service.stop()
    assert not service.wrong


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, "bpt_key", timeout=5) as client:
        yield client


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four parts and a half."""
    path = tmp_path / "flowers.zip"
    path.write_bytes(b"PK\x03\x04" + os.urandom(4 * PART + PART // 2 - 4))
    return path


def test_a_large_file_arrives_in_parts(service: Service, client: Client, archive: Path) -> None:
    sent: list[tuple[int, int]] = []
    dataset = client.datasets.upload(
        archive, name="roses", task="multi-label", on_sent=lambda *count: sent.append(count)
    )
    assert dataset.id == "ds_1"
    assert service.whole == archive.read_bytes()
    assert sorted(service.put()) == [1, 2, 3, 4, 5]
    assert {len(service.parts[number]) for number in (1, 2, 3, 4)} == {PART}
    (asked,) = service.created
    assert len(asked.pop("fingerprint")) <= 200
    facts = {"media_type": "application/zip", "size_bytes": archive.stat().st_size, "part_bytes": PART}
    assert asked == {"name": "roses", "task": "multi-label", **facts}
    assert [count for count, _ in sent] == sorted(count for count, _ in sent)
    assert sent[-1] == (archive.stat().st_size, archive.stat().st_size)


def test_a_file_of_whole_parts_has_no_empty_one_at_its_end(service: Service, client: Client, archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[: 2 * PART])
    client.datasets.upload(archive)
    assert sorted(service.put()) == [1, 2]


def test_a_large_folder_is_sent_without_being_written_anywhere(
    service: Service, client: Client, tmp_path: Path
) -> None:
    for name in ("lily/a.jpg", "daisy/a.jpg"):
        (tmp_path / "flowers" / name).parent.mkdir(parents=True)
        (tmp_path / "flowers" / name).write_bytes(os.urandom(2500))
    client.datasets.upload(tmp_path / "flowers")
    assert service.created[0]["media_type"] == "application/x-tar"
    assert service.whole == b"".join(content_of(tmp_path / "flowers").chunks())
    assert service.created[0]["size_bytes"] == len(service.whole)


def test_two_parts_at_most_are_on_their_way(service: Service, client: Client, archive: Path) -> None:
    three = threading.Barrier(3)

    def on_part(number: int) -> None:
        with suppress(threading.BrokenBarrierError):  # once it is broken nobody waits any more
            three.wait(0.3)

    service.on_part = on_part
    client.datasets.upload(archive)
    assert service.most_at_once == 2


def test_what_has_arrived_is_not_sent_again(
    service: Service, client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_ATTEMPTS", 2)
    service.faults["PUT 3"] = ["unheard", "broken"]
    with pytest.raises(errors.ConnectionFailed):
        client.datasets.upload(archive)
    arrived = set(service.parts)
    assert {1, 2} <= arrived
    assert 3 not in arrived
    service.asked.clear()
    sent: list[int] = []
    assert client.datasets.upload(archive, on_sent=lambda count, _: sent.append(count)).id == "ds_1"
    assert set(service.put()) == {1, 2, 3, 4, 5} - arrived
    assert len(service.put()) == 5 - len(arrived)
    assert service.whole == archive.read_bytes()
    assert len(service.created) == 1
    assert sent[-1] == archive.stat().st_size


def test_a_part_that_is_another_now_is_sent_again(service: Service, client: Client, archive: Path) -> None:
    service.faults["POST complete"] = [409]
    with pytest.raises(errors.Conflict):
        client.datasets.upload(archive)
    service.parts[2] = bytes(PART)
    service.asked.clear()
    client.datasets.upload(archive)
    assert service.put() == [2]


def test_another_name_file_or_option_is_another_upload(service: Service, client: Client, archive: Path) -> None:
    tries: list[Callable[[], object]] = [
        lambda: client.datasets.upload(archive),
        lambda: client.datasets.upload(archive),
        lambda: client.datasets.upload(archive, name="roses"),
        lambda: client.datasets.upload(archive, short_side=64),
        lambda: client.datasets.upload(archive, metadata={"season": "spring"}),
        lambda: client.datasets.add("ds_1", archive),
        lambda: client.datasets.add("ds_2", archive),
        lambda: client.datasets.add("ds_2", archive, base=3),
    ]
    for send in tries:
        service.faults["POST complete"] = [409]
        with pytest.raises(errors.Conflict):
            send()
    assert len(service.created) == len({each["fingerprint"] for each in service.created}) == len(tries) - 1
    os.utime(archive, ns=(1, 1))
    service.faults["POST complete"] = [409]
    with pytest.raises(errors.Conflict):
        client.datasets.upload(archive)
    assert len(service.created) == len(tries)


def test_an_upload_that_is_complete_is_not_taken_up_again(service: Service, client: Client, archive: Path) -> None:
    client.datasets.upload(archive)
    client.datasets.upload(archive)
    assert len(service.created) == 2


@pytest.mark.parametrize("fault", ["unheard", "unanswered", "broken", 500, 503, 429, 422])
def test_a_part_is_sent_again_where_that_may_help(
    service: Service, client: Client, archive: Path, fault: Fault
) -> None:
    service.faults = {"PUT 2": [fault], "PUT 5": [fault, fault]}
    sent: list[int] = []
    client.datasets.upload(archive, on_sent=lambda count, _: sent.append(count))
    assert sorted(service.put()) == [1, 2, 2, 3, 4, 5, 5, 5]
    assert service.whole == archive.read_bytes()
    assert sent[-1] == max(sent) == archive.stat().st_size


@pytest.mark.parametrize("request_name", ["POST uploads", "POST complete"])
@pytest.mark.parametrize("fault", ["unheard", "unanswered", 502])
def test_beginning_and_completing_are_repeated_without_being_done_twice(
    service: Service, client: Client, archive: Path, request_name: str, fault: Fault
) -> None:
    service.faults[request_name] = [fault]
    assert client.datasets.upload(archive).id == "ds_1"
    assert service.asked.count(request_name) == (1 if (request_name, fault) == ("POST uploads", "unanswered") else 2)
    assert len(service.created) == 1


def test_tries_come_to_an_end_and_the_upload_stays(service: Service, client: Client, archive: Path) -> None:
    service.faults["PUT 2"] = [503] * 100
    with pytest.raises(errors.Unavailable):
        client.datasets.upload(archive)
    assert service.put().count(2) == uploads._ATTEMPTS
    assert service.uploads


@pytest.mark.parametrize(("status", "error"), [(403, errors.Forbidden), (413, errors.InvalidRequest)])
def test_what_the_service_refuses_is_not_repeated_and_leaves_nothing(
    service: Service, client: Client, archive: Path, status: int, error: type[errors.ApiError]
) -> None:
    service.faults["PUT 2"] = [status] * 100
    with pytest.raises(error):
        client.datasets.upload(archive)
    assert service.put().count(2) == 1
    assert "POST complete" not in service.asked
    assert not service.uploads


def test_a_part_that_failed_for_good_ends_the_pauses_of_others(
    service: Service, client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_PAUSE_SECONDS", 1000.0)
    service.faults = {"PUT 1": [503], "PUT 2": [403]}
    with pytest.raises(errors.Forbidden):
        client.datasets.upload(archive)
    assert sorted(service.put())[:2] == [1, 2]


class Pauses(threading.Event):
    """Never set; keeps how long it was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout)
        return False


def test_pauses_grow_and_are_as_long_as_the_service_wishes() -> None:
    wished = [None, None, 7.0, None, 60.0, None]

    def refuse() -> None:
        raise errors.Unavailable(503, "overloaded", "later", retry_after_seconds=wished.pop(0))

    pauses = Pauses()
    with pytest.raises(errors.Unavailable):
        uploads._again(refuse, pauses)
    assert pauses.seconds == [0.5, 1.0, 7.0, 4.0, 60.0]
    wished = [61.0, None]
    with pytest.raises(errors.Unavailable):
        uploads._again(refuse, pauses)
    assert wished == [None]


@pytest.mark.parametrize(
    ("code", "pauses_made"), [("rate_limited", [9.0] * 5), ("queue_limit", []), ("http_429", [9.0] * 5)]
)
def test_too_much_in_too_short_a_time_is_waited_for_and_a_limit_that_stays_is_not(
    code: str, pauses_made: list[float]
) -> None:
    def refuse() -> None:
        raise errors.TooManyRequests(429, code, "no", retry_after_seconds=9.0)

    pauses = Pauses()
    with pytest.raises(errors.TooManyRequests):
        uploads._again(refuse, pauses)
    assert pauses.seconds == pauses_made


def test_nothing_more_of_a_part_is_sent_once_another_has_failed(
    service: Service, client: Client, archive: Path
) -> None:
    upload = Upload("upl_1", "open", PART)
    stopped = threading.Event()
    parts = uploads._Parts(
        client.datasets._transport,
        "/v1/uploads/upl_1",
        upload,
        content_of(archive),
        uploads.Progress(PART, lambda sent, total: stopped.set()),
        stopped,
    )
    with pytest.raises(uploads._Stopped):
        parts._send(1, bytes(uploads._CHUNK_BYTES + 1))
    assert not service.parts


def test_a_file_that_changes_meanwhile_is_refused_and_leaves_nothing(
    service: Service, client: Client, archive: Path
) -> None:
    service.on_part = lambda number: os.utime(archive, ns=(1, 1))
    with pytest.raises(errors.InputError, match="changed while it was sent"):
        client.datasets.upload(archive)
    assert "POST complete" not in service.asked
    assert not service.uploads


def test_more_images_for_a_dataset_become_its_next_version(service: Service, client: Client, archive: Path) -> None:
    version = client.datasets.add("ds_1", archive, base=1)
    assert (version.dataset, version.number) == ("ds_1", 2)
    assert (service.created[0]["dataset"], service.created[0]["base"]) == ("ds_1", 1)
    assert "name" not in service.created[0]


def test_metadata_makes_even_a_small_upload_one_in_parts(service: Service, client: Client, tmp_path: Path) -> None:
    (tmp_path / "small.zip").write_bytes(b"PK\x03\x04")
    client.datasets.upload(tmp_path / "small.zip", metadata={"season": "spring"})
    assert service.created[0]["metadata"] == {"season": "spring"}
    assert service.whole == b"PK\x03\x04"


def test_parts_grow_where_there_would_be_many_but_not_for_ever(service: Service, client: Client, archive: Path) -> None:
    sizes = [1, 8 * PART, 8 * PART + 1, 16 * PART, 99 * PART, 10_000 * 2 * PART, 10_000 * 2 * PART + 1]
    grown = [PART, PART, PART + 1, 2 * PART, 2 * PART, 2 * PART, 2 * PART + 1]
    assert [uploads.part_bytes(size) for size in sizes] == grown
    content = replace(content_of(archive), size=12 * PART)
    uploads.send_in_parts(client.datasets._transport, {"name": "large"}, content, None)
    assert service.created[0]["part_bytes"] == PART + PART // 2


def test_an_upload_goes_on_with_the_size_of_parts_that_it_was_begun_with(
    service: Service, client: Client, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.faults["PUT 3"] = [503] * uploads._ATTEMPTS
    with pytest.raises(errors.Unavailable):
        client.datasets.upload(archive)
    there = {*service.parts}
    assert there
    service.asked.clear()
    monkeypatch.setattr(uploads, "PART_BYTES", PART + 7)
    client.datasets.upload(archive)
    assert {*service.put()} == {1, 2, 3, 4, 5} - there
    assert service.whole == archive.read_bytes()
    assert [len(service.parts[number]) for number in range(1, 6)] == [PART] * 4 + [PART // 2]


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_same_bytes_all_but_the_last_of_one_size(chunks: list[bytes], size: int) -> None:
    pieces = list(uploads._cut(iter(chunks), size))
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)
