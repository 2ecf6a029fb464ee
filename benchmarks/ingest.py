"""Ingest: how much of the bare decoding speed is left, and what memory grows with.

    python -m benchmarks.ingest [--images 10000] [--rounds 3] [--archive FILE.zip] [--json FILE]

The bare loop decodes the files of an archive that lie in memory and encodes their pixels again, in as many processes
as there are cores, and does nothing else. Beside it, in turn, the process that ingests: started and confined as a
worker does it, from the archive on the disk to shards, index, thumbnails and report. Without --archive the pictures
are drawn flowers of 64 pixels, each shifted, mirrored and lit in its own way.

Peak memory is that of the ingesting process, with a fourth of the images and with all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import selectors
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from bpt_core import images, samples
from worker.starter import Starter

CORES = len(os.sched_getaffinity(0))
SIDE = 64  # pixels
DRAWN = 400  # flowers that are drawn; the rest are variations
LOOK_SECONDS = 0.02  # how often memory is looked at
CHUNK = 64  # files that one task of the bare loop takes


@dataclass(frozen=True)
class Ingest:
    """One run of the ingesting process."""

    images: int
    seconds: float
    peak_bytes: int  # of the process, without its decoders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many are drawn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--archive", type=Path, help="a zip of your own in place of drawn images")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="bpt-ingest-") as directory:
        whole = options.archive or _drawn(Path(directory) / "all.zip", options.images)
        part = _quarter(whole, Path(directory) / "quarter.zip")
        results = measure(whole, part, Path(directory), options.rounds)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


def measure(whole: Path, part: Path, directory: Path, rounds: int) -> dict[str, Any]:
    """Bare loop and ingest in turn, medians; then the quarter, for its memory."""
    starter = Starter("worker.packer")
    ingest(part, directory / "first", starter)  # a worker imports once; so does the bare loop, before its clock starts
    bare: list[float] = []
    runs: list[Ingest] = []
    for number in range(rounds):
        bare.append(bare_images_per_second(whole))
        runs.append(ingest(whole, directory / f"run-{number}", starter))
    small = ingest(part, directory / "quarter", starter)
    starter.close()
    speed = median(run.images / run.seconds for run in runs)
    return {
        "images": runs[0].images,
        "cores": CORES,
        "python": platform.python_version(),
        "bare_images_per_second": median(bare),
        "ingest_images_per_second": speed,
        "ratio": speed / median(bare),
        "whole": asdict(runs[-1]),
        "quarter": asdict(small),
        "bytes_per_image": (runs[-1].peak_bytes - small.peak_bytes) / max(1, runs[-1].images - small.images),
    }


def bare_images_per_second(archive: Path) -> float:
    """Decoding and encoding alone, the files in memory, on all cores."""
    files = [data for _, data in _files(archive)]
    chunks = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_recoded, [chunk[:1] for chunk in chunks[: 4 * CORES]]))  # processes are up
        begun = time.perf_counter()
        list(pool.map(_recoded, chunks))
        return len(files) / (time.perf_counter() - begun)


def ingest(archive: Path, directory: Path, starter: Starter) -> Ingest:
    """The process of an ingest job as a worker starts it, from its start to its end."""
    directory.mkdir()
    (directory / "source").symlink_to(archive.absolute())
    job = {
        "source": "source",
        "base": None,
        "changes": None,
        "options": {"bad_images": 0.05},
        "decoders": CORES,
        "decode_cpu_seconds": 20,
        "decode_memory_bytes": 1 << 30,
        "cpu_seconds": 3600,
        "memory_bytes": 4 << 30,
    }
    (directory / "job.json").write_text(json.dumps(job))
    read_end, write_end = os.pipe()
    begun = time.perf_counter()
    with (directory / "log").open("wb") as log:
        process = starter.start(directory / "job.json", log=log, events=write_end)
    os.close(write_end)
    lines, peak_bytes = b"", 0
    with selectors.DefaultSelector() as selector, os.fdopen(read_end, "rb", 0) as events:
        selector.register(events, selectors.EVENT_READ)
        while True:
            peak_bytes = _peak_bytes(process.pid) or peak_bytes
            if selector.select(LOOK_SECONDS):
                if not (read := events.read(1 << 16)):
                    break
                lines += read
    seconds = time.perf_counter() - begun
    process.stop(1)
    last = json.loads(lines.splitlines()[-1])
    if "done" not in last:
        raise SystemExit(f"the ingest failed: {last}")
    count = last["done"]["report"]["images"]["packed"]
    return Ingest(count, seconds, peak_bytes)


def _peak_bytes(pid: int) -> int:
    """Of resident memory; 0 where the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def show(results: dict[str, Any]) -> None:
    table = Table("", "figure", box=box.SIMPLE, title=f"{results['images']:,} images, {results['cores']} cores")
    table.add_row("bare decoding and encoding, images/s", f"{results['bare_images_per_second']:,.0f}")
    table.add_row("ingest, images/s", f"{results['ingest_images_per_second']:,.0f}")
    table.add_row("ratio", f"{results['ratio']:.2f}")
    for name in ("quarter", "whole"):
        run = results[name]
        table.add_row(f"peak memory, {run['images']:,} images", f"{run['peak_bytes'] / 1e6:,.0f} MB")
    table.add_row("memory per further image", f"{results['bytes_per_image']:,.0f} bytes")
    Console().print(table)


def _recoded(files: list[bytes]) -> int:
    return sum(len(images.encode(images.canonical(data))) for data in files)


def _files(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as source:
        for name in source.namelist():
            if not name.endswith("/"):
                yield name, source.read(name)


def _drawn(path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    drawn = [np.asarray(samples.draw(index % 10, index).resize((SIDE, SIDE))) for index in range(min(DRAWN, count))]
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            pixels = drawn[index % len(drawn)]
            pixels = np.roll(pixels, tuple(rng.integers(0, SIDE, 2)), axis=(0, 1))
            pixels = pixels[:, :: rng.choice((-1, 1))]
            lit = np.clip(pixels * rng.uniform(0.7, 1.3) + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(lit).save(out, "JPEG", quality=90)
            archive.writestr(f"{index % 10}/{index}.jpg", out.getvalue())
    return path


def _quarter(whole: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(_files(whole)):
            if number % 4 == 0:
                archive.writestr(name, data)
    return path


if __name__ == "__main__":
    main()
