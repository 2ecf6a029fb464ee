"""The child's end of the protocol between a supervisor and the process that does one job.

Its arguments are JOB_FILE EVENTS_FD PARENT_PID; see worker/starter.py for how it starts. The child reads the job file
(JSON), works in the directory the file lies in, and writes one JSON object a line to EVENTS_FD:

    {"event": "epoch", "data": {...}, "checkpoint": "file"?, "attached": {"file", ...}?}
                                                                 something happened; the files are to be kept
    {"done": {...}}                                              the result; the child then exits 0
    {"failed": {"code", "detail", ...}}                          the input is at fault: trying again would not help

Anything else, an exit without a last word included, is a crash; of a status 75 the reason is a full disk
(worker/room.py). The child has no credentials, and it never outlives its supervisor: the kernel kills it
(PR_SET_PDEATHSIG) with its parent, the starter, and that one with the supervisor; and it exits when its standard input
closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from bpt_store.processes import end_with


class Child:
    def __init__(self, job: dict[str, Any], directory: Path, events: int) -> None:
        self.job = job
        self.directory = directory
        self._events = events

    @classmethod
    def begin(cls) -> Child:
        """Call first."""
        job_file, events, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        end_with(parent, signal.SIGKILL)
        threading.Thread(target=_exit_when_input_closes, daemon=True).start()
        return cls(json.loads(job_file.read_text()), job_file.parent, events)

    def torch_device(self) -> str:
        """Limit torch to the threads of the job file -> the device it names, a GPU for `auto` where there is one."""
        import torch

        from bpt_core.compute import device_named

        if self.job["threads"]:
            torch.set_num_threads(self.job["threads"])
        return device_named(self.job["device"])

    def event(
        self,
        name: str,
        data: dict[str, Any],
        *,
        checkpoint: str | None = None,
        attached: dict[str, Any] | None = None,
    ) -> None:
        """`attached` is a small `file`, which is kept in the database, and facts about it."""
        files = {"checkpoint": checkpoint, "attached": attached}
        self._write({"event": name, "data": data} | {name: given for name, given in files.items() if given})

    def done(self, result: dict[str, Any]) -> None:
        self._write({"done": result})

    def failed(self, code: str, detail: str, **facts: Any) -> None:
        self._write({"failed": {"code": code, "detail": detail, **facts}})

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._events, data) :]


def _exit_when_input_closes() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)
