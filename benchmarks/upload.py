"""What uploads cost beside a bare server that writes what it gets, and how much memory the API needs for them.

    python -m benchmarks.upload [--mib 1024] [--rounds 5] [--json FILE]

Starts the whole service on loopback and, as a process of its own on the same disk, a bare ASGI application under the
same uvicorn that writes each body to a file. The same client code sends the same random bytes to both, in turn: as one
request, and in parts as large as bpt_client makes them, two at a time as it does. Digests are computed before the clock
starts. Nobody calls fsync; after each turn, outside the measured time, all that is unwritten is written and what was
sent is deleted. The service's worker finds that the bytes are no archive, and is waited for before the next turn.

Memory is the resident size of the API process: the most that is seen during an upload, less what it was before the
first one (of a megabyte, not counted).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bpt_client import Client
from bpt_client.local_service import LocalService
from bpt_client.uploads import part_bytes

MIB = 1 << 20
PARTS_IN_FLIGHT = 2  # as bpt_client sends them
GOAL_RATIO, GOAL_MEMORY_MIB = 0.8, 16
_CHUNK_BYTES = 256 << 10
_SAMPLE_SECONDS = 0.02
_START_SECONDS = 30
_SINK_DIRECTORY = "BPT_SINK_DIRECTORY"


# --- the bare server -------------------------------------------------------------------------------------------


async def sink(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Writes every body to a file, named after the request's path, and always answers the same. DELETE empties it."""
    if scope["type"] != "http":
        return
    directory = Path(os.environ[_SINK_DIRECTORY])
    if scope["method"] == "DELETE":
        for path in directory.iterdir():
            path.unlink()
    name = scope["path"].strip("/").replace("/", "-")
    with (directory / name).open("wb") as file:
        more = True
        while more:
            message = await receive()
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
    body = b'{"id": "upl_bare", "state": "failed"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def running_sink(directory: Path) -> Iterator[str]:
    """Its URL."""
    directory.mkdir()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.upload:sink", "--no-access-log", "--port", "0"]
    environment = {**os.environ, _SINK_DIRECTORY: str(directory)}
    process = subprocess.Popen([*command, "--lifespan", "off"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = ""
        while "running on " not in told:
            told = process.stderr.readline()
            if not told:
                raise RuntimeError("the bare server ended")
        url = told.partition("running on ")[2].split()[0]
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=_START_SECONDS)


# --- what is sent ----------------------------------------------------------------------------------------------


class Body:
    """Random bytes, one part's worth again and again; their digests are known beforehand."""

    def __init__(self, size: int, part_bytes: int) -> None:
        self.size, self.part_bytes = size, part_bytes
        self._part = os.urandom(min(size, part_bytes))
        self.sizes = [part_bytes] * (size // part_bytes) + [size % part_bytes] * (size % part_bytes > 0)
        self.digests = {length: _digest(hashlib.sha256(self._part[:length]).digest()) for length in set(self.sizes)}
        whole = hashlib.sha256()
        for chunk in self.chunks(size):
            whole.update(chunk)
        self.digest = _digest(whole.digest())

    def chunks(self, size: int) -> Iterator[bytes]:
        """The first `size` bytes."""
        left = size
        while left:
            for start in range(0, min(left, len(self._part)), _CHUNK_BYTES):
                yield self._part[start : min(start + _CHUNK_BYTES, left)]
            left -= min(left, len(self._part))


def send_whole(http: httpx.Client, body: Body) -> str:
    """-> the dataset's id."""
    headers = {**_headers(body.size, body.digest), "Content-Type": "application/zip"}
    return _id(http.post("/v1/datasets?name=benchmark", content=body.chunks(body.size), headers=headers))


def send_parts(http: httpx.Client, body: Body) -> str:
    facts = {"media_type": "application/zip", "size_bytes": body.size, "part_bytes": body.part_bytes}
    upload = _id(http.post("/v1/uploads", json={"name": "benchmark", **facts}))

    def send(number: int, size: int) -> None:
        headers = _headers(size, body.digests[size])
        _id(http.put(f"/v1/uploads/{upload}/parts/{number}", content=body.chunks(size), headers=headers), None)

    with ThreadPoolExecutor(PARTS_IN_FLIGHT) as pool:
        list(pool.map(send, *zip(*enumerate(body.sizes, 1), strict=True)))
    return _id(http.post(f"/v1/uploads/{upload}/complete"))


def _headers(size: int, digest: str) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(size), "Content-Digest": digest}


def _digest(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _id(response: httpx.Response, name: str | None = "id") -> str:
    if not response.is_success:
        raise RuntimeError(f"{response.status_code}: {response.text}")
    return str(response.json()[name]) if name else ""


# --- measuring -------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One way to send: MiB/s of each round, and bytes by which the API's process grew."""

    bare: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)
    growth: list[int] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return median(ours / theirs for ours, theirs in zip(self.service, self.bare, strict=True))


class Watched:
    """The most memory a process has resident inside the block, in `bytes`."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._ended = process, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = process.memory_info().rss

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(_SAMPLE_SECONDS)
            self.bytes = max(self.bytes, self._process.memory_info().rss)


WAYS: dict[str, Callable[[httpx.Client, Body], str]] = {"one request": send_whole, "parts": send_parts}


def compare(
    service: httpx.Client,
    bare: httpx.Client,
    body: Body,
    rounds: int,
    process: psutil.Process,
    clean: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Both servers in turn, each way to send; `clean` is called with what the service made of it.

    Before, each gets a megabyte, which starts threads and connections. Memory is compared with what it is then.
    """
    found = {name: Measured() for name in WAYS}
    small = Body(min(MIB, body.size), body.part_bytes)
    for send in WAYS.values():
        send(bare, small)
        bare.delete("/nothing")
        clean(send(service, small))
    before = process.memory_info().rss
    for _ in range(rounds):
        for name, send in WAYS.items():
            found[name].bare.append(_timed(send, bare, body)[0])
            bare.delete("/nothing")  # else the next turn would have to truncate what is there
            os.sync()
            with Watched(process) as watched:
                rate, made = _timed(send, service, body)
            found[name].service.append(rate)
            found[name].growth.append(watched.bytes - before)
            clean(made)
            os.sync()
            advance()
    return found


def _timed(send: Callable[[httpx.Client, Body], str], http: httpx.Client, body: Body) -> tuple[float, str]:
    """MiB/s, and what was made."""
    begun = time.perf_counter()
    made = send(http, body)
    return body.size / MIB / (time.perf_counter() - begun), made


def api_process() -> psutil.Process:
    """The service's, among the processes that this one has started."""
    family = psutil.Process().children(recursive=True)
    (found,) = (each for each in family if "api.app:create_app" in each.cmdline())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="of each upload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    size = options.mib * MIB
    body = Body(size, part_bytes(size))
    with (
        TemporaryDirectory(prefix="bpt-upload-") as directory,
        Progress(console=Console(stderr=True), transient=True) as progress,
        LocalService(Path(directory) / "service") as service,
        running_sink(Path(directory) / "bare") as sink_url,
        Client(service.url, service.bootstrap()) as admin,
    ):
        key = admin.api_keys.create(admin.customers.create("benchmark").id, "benchmark").token
        assert key is not None
        task = progress.add_task("uploading", total=len(WAYS) * options.rounds)
        with (
            Client(service.url, key) as client,
            httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=120) as ours,
            httpx.Client(base_url=sink_url, timeout=120) as theirs,
        ):

            def clean(dataset_id: str) -> None:
                while not client.datasets.get(dataset_id).is_failed:
                    time.sleep(0.2)
                client.datasets.delete(dataset_id)
                objects = Path(directory) / "service" / "objects"
                while any(files for _, _, files in os.walk(objects)):
                    time.sleep(0.2)

            found = compare(ours, theirs, body, options.rounds, api_process(), clean, lambda: progress.advance(task))
    show(found, options.mib)
    if options.json:
        facts = {name: {**asdict(each), "ratio": each.ratio} for name, each in found.items()}
        options.json.write_text(json.dumps({"machine": platform.machine(), "mib": options.mib, **facts}, indent=1))


def show(found: dict[str, Measured], mib: int) -> None:
    title = f"uploads of {mib} MiB, {platform.machine()}, {os.cpu_count()} cores, median of the rounds"
    columns = ("sent as", "bare, MiB/s", "service, MiB/s", f"ratio (goal {GOAL_RATIO})")
    table = Table(*columns, f"API's memory, MiB more (goal {GOAL_MEMORY_MIB})", title=title, box=box.SIMPLE)
    for name, each in found.items():
        rates = f"{median(each.bare):.0f}", f"{median(each.service):.0f}"
        table.add_row(name, *rates, f"{each.ratio:.2f}", f"{max(each.growth) / MIB:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
