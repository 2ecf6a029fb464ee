"""What a customer sent becomes a packed version, within limits on time and memory. See worker/starter.py for how it
starts.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from bpt_core.annotations import Columns
from bpt_core.confine import confine
from bpt_core.errors import DatasetError
from bpt_core.images import SHORT_SIDE
from bpt_core.packing import Base, Changes, PackSettings, pack
from bpt_core.placing import AUTO
from worker.child import Child

EVENT_SECONDS = 1.0  # at most one progress event in so long
OPEN_FILES = 256


class CpuLimitReached(Exception):
    """The soft limit on CPU time; a few seconds later the kernel kills."""


def main() -> None:
    child = Child.begin()
    job = child.job
    signal.signal(signal.SIGXCPU, _stop)
    # Programs: the decoders, which confine themselves further.
    confine(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"], open_files=OPEN_FILES, programs=True)
    packed_in = child.directory / "packed"
    packed_in.mkdir()
    base, changes, folder = job["base"], job["changes"], child.directory / "base"
    try:
        packed = pack(
            child.directory / job["source"] if job["source"] else None,
            packed_in,
            _settings(job),
            _Progress(child),
            base=Base([folder / name for name in base["shards"]], folder / base["items"], folder / base["thumbnails"])
            if base
            else None,
            changes=Changes(changes.get("relabel", {}), frozenset(changes.get("remove", ()))) if changes else None,
        )
    except DatasetError as error:
        child.failed(error.code, str(error), report=error.report)
        return
    except (CpuLimitReached, MemoryError) as error:
        reached = "CPU time" if isinstance(error, CpuLimitReached) else "memory"
        child.failed("image_decode_limit", f"reading the archive took more {reached} than is allowed", report={})
        return
    child.done(
        {
            "shards": [f"packed/{path.name}" for path in packed.shards],
            "items": f"packed/{packed.items.name}",
            "thumbnails": f"packed/{packed.thumbnails.name}",
            "class_names": list(packed.class_names),
            "task": packed.task,
            "report": packed.report,
        }
    )


def _settings(job: dict[str, Any]) -> PackSettings:
    options = job["options"]
    return PackSettings(
        task=options.get("task", AUTO),
        short_side=options.get("short_side", SHORT_SIDE),
        first_frame=options.get("first_frame", False),
        columns=Columns(**{name: options.get(f"{name}_column") or "" for name in ("file", "label", "split", "group")}),
        bad_image_fraction_limit=options["bad_images"],
        decoders=job["decoders"],
        decode_cpu_seconds=job["decode_cpu_seconds"],
        decode_memory_bytes=job["decode_memory_bytes"],
    )


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise CpuLimitReached


class _Progress:
    """An event now and then, and one at the end."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._told_at = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._told_at >= EVENT_SECONDS:
            self._told_at = now
            self._child.event("progress", {"done": done, "total": total})
