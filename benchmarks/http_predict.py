"""Predictions over HTTP: what is left of the bare loop's speed, how long a request takes, and who waits for whom.

    python -m benchmarks.http_predict [--seconds 10] [--clients 8] [--images 8] [--json FILE]

Starts the whole service on loopback with data of its own, tunes two small prompt sets, and asks in closed loops: so
many clients, each sending its next request when the answer to the last is there. Service and clients share the
machine. The bare loop decodes the same JPEG files and predicts them with the same prompt sets in batches as large as
the service's, in this process, while the service is idle. Phases take turns: bare, HTTP, bare, HTTP, ...

Then fairness: a customer who sends one image at a time, alone, and beside another one who floods.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bpt_client import Client
from bpt_client.errors import Unavailable
from bpt_client.local_service import LocalService
from bpt_core import artifact, images, samples
from bpt_core.artifact import PromptSet
from bpt_core.backbones import load_backbone
from bpt_core.catalog import DEFAULT_BACKBONE
from bpt_core.predict import Predictor

BATCH_ROWS = 8  # the service's default on a CPU
METHODS = {"probe": "linear-probe", "tuned": "bpt-bilinear"}


@dataclass(frozen=True)
class Load:
    """One phase: `latencies` in seconds, sorted; `refused` are answers 503."""

    images_per_second: float
    latencies: list[float]
    refused: int = 0

    def percentile(self, percent: float) -> float:
        """In milliseconds."""
        at = min(len(self.latencies) - 1, int(percent / 100 * len(self.latencies)))
        return 1000 * self.latencies[at]


def jpegs(count: int, short_side: int) -> list[bytes]:
    """Drawn flowers, enlarged so that decoding costs what it costs with photos."""
    found = []
    for index in range(count):
        image, out = samples.draw(index % 10, index), io.BytesIO()
        scale = short_side / min(image.size)
        image.resize((round(image.width * scale), round(image.height * scale))).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def closed_loop(ask: Callable[[int], int], clients: int, seconds: float) -> Load:
    """`ask(turn)` sends a request and gives the number of images answered; 0 where it was refused."""
    end = time.perf_counter() + seconds

    def client(number: int) -> tuple[int, list[float], int]:
        done, latencies, refused = 0, [], 0
        turn = number
        while (begun := time.perf_counter()) < end:
            answered = ask(turn)
            refused += not answered
            done += answered
            latencies.append(time.perf_counter() - begun)
            turn += clients
        return done, latencies, refused

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(client, range(clients)))
    elapsed = time.perf_counter() - begun
    return Load(
        images_per_second=sum(done for done, _, _ in results) / elapsed,
        latencies=sorted(latency for _, latencies, _ in results for latency in latencies),
        refused=sum(refused for _, _, refused in results),
    )


def bare_loop(predictor: Predictor, files: Sequence[bytes], sets: Sequence[PromptSet], seconds: float) -> float:
    """Images per second: decoded by as many threads as the service has, predicted batch by batch."""
    end, done, begun = time.perf_counter() + seconds, 0, time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        source, wanted = cycle(files), cycle(sets)

        def decoded() -> list[object]:
            return list(pool.map(images.canonical, [next(source) for _ in range(BATCH_ROWS)]))

        while time.perf_counter() < end:
            predictor.predict(decoded(), [next(wanted) for _ in range(BATCH_ROWS)])  # type: ignore[arg-type]
            done += BATCH_ROWS
    return done / (time.perf_counter() - begun)


class Requests:
    """A customer's requests: `images` files each, every one under the next prompt set."""

    def __init__(self, client: Client, files: Sequence[bytes], images: int) -> None:
        self._client, self._files, self._images = client, files, images

    def __call__(self, turn: int) -> int:
        names = list(METHODS)
        chosen = [self._files[(turn * self._images + at) % len(self._files)] for at in range(self._images)]
        try:
            answer = self._client.predict([("image.jpg", data) for data in chosen], names[turn % len(names)])
        except Unavailable:
            return 0
        return sum(image.error is None for image in answer.data)


def new_customer(service: LocalService, admin: Client, name: str, archive: Path) -> str:
    """With the prompt sets tuned -> its key."""
    key = admin.api_keys.create(admin.customers.create(name).id, "benchmark").token
    assert key is not None
    with Client(service.url, key) as client:
        dataset = client.datasets.wait(client.datasets.upload(archive).id)
        jobs = [
            client.tuning_jobs.create(dataset.id, prompt_set, method=method, hyperparameters={"epochs": 1, "views": 1})
            for prompt_set, method in METHODS.items()
        ]
        for job in jobs:
            client.tuning_jobs.wait(job.id)
    return key


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=8, help="that ask at once")
    parser.add_argument("--images", type=int, default=8, help="in one request")
    parser.add_argument("--short-side", type=int, default=256, help="pixels of the JPEG files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    files = jpegs(64, options.short_side)
    rows: list[tuple[str, str]] = []
    with (
        TemporaryDirectory(prefix="bpt-http-") as directory,
        Progress(console=Console(stderr=True), transient=True) as progress,
        LocalService(Path(directory) / "service") as service,
        Client(service.url, service.bootstrap()) as admin,
    ):
        task = progress.add_task("tuning prompt sets", total=2 * options.rounds + 4)
        archive = Path(directory) / "flowers.zip"
        samples.write_archive(archive, train=3, val=1, test=1)
        keys = [new_customer(service, admin, name, archive) for name in ("one", "other")]
        with Client(service.url, keys[0], timeout=120) as one, Client(service.url, keys[1], timeout=120) as other:
            predictor = Predictor(load_backbone(DEFAULT_BACKBONE))
            sets = [artifact.from_bytes(one.prompt_sets.artifact(name)) for name in METHODS]
            bare_loop(predictor, files, sets, 1)
            ask = Requests(one, files, options.images)
            closed_loop(ask, options.clients, 1)
            progress.update(task, description="throughput", advance=1)
            bare, http = [], []
            for _ in range(options.rounds):
                bare.append(bare_loop(predictor, files, sets, options.seconds))
                progress.advance(task)
                http.append(closed_loop(ask, options.clients, options.seconds))
                progress.advance(task)
            progress.update(task, description="one image at a time")
            single = Requests(other, files, 1)
            alone = closed_loop(single, 1, options.seconds)
            progress.update(task, description="beside a flood", advance=1)
            flood = ThreadPoolExecutor(1).submit(
                closed_loop, Requests(one, files, 64), options.clients, 2 * options.seconds
            )
            time.sleep(options.seconds / 2)  # until the queues are full
            beside = closed_loop(single, 1, options.seconds)
            flooding = flood.result()
            progress.advance(task, 2)
    share = median(load.images_per_second / rate for load, rate in zip(http, bare, strict=True))
    batch_seconds = BATCH_ROWS / median(bare)
    typical = sorted(http, key=lambda load: load.images_per_second)[len(http) // 2]
    rows += [
        ("bare loop", f"{median(bare):.0f} images/s"),
        ("over HTTP", f"{typical.images_per_second:.0f} images/s"),
        ("over HTTP, of the bare loop (goal 0.90 when cores suffice)", f"{share:.2f}"),
        *_latency(f"{options.clients} clients, {options.images} images a request", typical),
        *_latency("one customer alone, 1 image a request", alone),
        *_latency("the same beside a flood of 64 images a request", beside),
        ("the flood meanwhile", f"{flooding.images_per_second:.0f} images/s, {flooding.refused} refused"),
        ("a full batch alone takes", f"{1000 * batch_seconds:.0f} ms"),
    ]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    table = Table(title=f"{DEFAULT_BACKBONE}, {machine}", box=box.SIMPLE, show_header=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        loads = {"http": typical, "alone": alone, "beside": beside, "flood": flooding}
        facts = {"machine": machine, "bare": bare, "share": share}
        options.json.write_text(json.dumps({**facts, **{name: asdict(load) for name, load in loads.items()}}, indent=1))


def _latency(what: str, load: Load) -> list[tuple[str, str]]:
    p50, p95, p99 = (load.percentile(percent) for percent in (50, 95, 99))
    return [(what, f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms (p99/p50 {p99 / p50:.2f})")]


if __name__ == "__main__":
    main(sys.argv[1:])
