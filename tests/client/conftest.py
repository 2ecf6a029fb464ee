"""A small real HTTP server that answers as a test tells it: for what the transport does when answers go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bpt_client.cli import main


@dataclass
class Received:
    method: str
    path: str
    headers: Message
    body: bytes


@dataclass
class Answer:
    """`chunks` are sent without a length, and the connection is closed after them; `cut` resets it instead."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] | None = None
    cut: bool = False


class Server:
    """Gives `answers` one after the other, the last one again and again; `received` are the requests.

    Tests get all they need from the fixture, for under --import-mode=importlib they cannot import this file.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[Answer] = [Answer()]
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.received.append(Received(self.command, self.path, self.headers, body))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                self.close_connection = answer.chunks is not None or answer.cut
                if answer.cut and answer.chunks is None:
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.chunks is None:
                    self.send_header("Content-Length", str(len(answer.body)))
                else:
                    self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for chunk in answer.chunks or [answer.body]:
                    framed = chunk if answer.chunks is None else b"%x\r\n%s\r\n" % (len(chunk), chunk)
                    self.wfile.write(framed)
                    self.wfile.flush()
                if answer.chunks is not None and not answer.cut:
                    self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815  # the names http.server looks for

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def will(self, *answers: Answer) -> None:
        self.answers = list(answers)

    @staticmethod
    def raw(status: int = 200, body: bytes = b"", *, cut: bool = False, **headers: str) -> Answer:
        """`cut` closes the connection instead of answering."""
        return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()}, cut=cut)

    @classmethod
    def json(cls, value: object, status: int = 200, retry_after: str | None = None) -> Answer:
        kind = "application/json" if status < 400 else "application/problem+json"
        headers = {"Content-Type": kind} | ({"Retry-After": retry_after} if retry_after else {})
        return Answer(status, json.dumps(value).encode(), headers)

    @classmethod
    def page(cls, *items: object, cursor: str | None = None) -> Answer:
        return cls.json({"data": list(items), "has_more": cursor is not None, "next_cursor": cursor})

    @staticmethod
    def events(*events: dict[str, Any], cut: bool = False) -> Answer:
        """A stream of events that ends in order, or breaks off."""
        chunks = [
            f"id: {each['number']}\nevent: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events
        ]
        return Answer(headers={"Content-Type": "text/event-stream"}, chunks=chunks, cut=cut)

    @staticmethod
    def event(number: int, kind: str = "epoch", attempt: int = 1, **data: Any) -> dict[str, Any]:
        created_at = "2026-01-02T03:04:05.678Z"
        return {"number": number, "attempt": attempt, "type": kind, "data": data, "created_at": created_at}

    @staticmethod
    def dataset(**given: Any) -> dict[str, Any]:
        known = {"id": "ds_1", "name": "flowers", "state": "validating", "created_at": "2026-01-02T03:04:05Z"}
        return {**known, **given}

    @staticmethod
    def job(**given: Any) -> dict[str, Any]:
        known = {"id": "job_1", "state": "running", "dataset": "ds_1", "prompt_set": "flowers", "backbone": "vit"}
        known["created_at"] = "2026-01-02T03:04:05Z"
        return {**known, "method": {"type": "bpt-bilinear"}, "hyperparameters": {"epochs": 3}, **given}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bpt(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line against the server -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("BPT_URL", server.url)
    monkeypatch.setenv("BPT_API_KEY", "bpt_key")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run
