"""`python -m worker.packer`: one untrusted archive becomes a packed dataset, within limits on CPU time and memory."""

from __future__ import annotations

import resource
import signal
from types import FrameType

from worker.child import Child


class CpuLimitReached(Exception):
    """The soft limit on CPU time; a few seconds later the kernel kills."""


def main() -> None:
    child = Child.begin()
    from bpt_core.errors import DatasetError
    from bpt_core.packing import PackSettings, pack

    job = child.job
    _limit(job["cpu_seconds"], job["memory_bytes"])
    shards = child.directory / "shards"
    shards.mkdir()

    def on_progress(done: int, total: int) -> None:
        child.event("progress", {"done": done, "total": total})

    try:
        packed = pack(
            child.directory / job["archive"],
            shards,
            PackSettings(task=job["task"], bad_image_fraction_limit=job["bad_image_fraction"]),
            on_progress,
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
            "shards": [f"shards/{path.name}" for path in packed.shards],
            "class_names": list(packed.class_names),
            "task": job["task"],
            "report": packed.report,
        }
    )


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise CpuLimitReached

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    main()
