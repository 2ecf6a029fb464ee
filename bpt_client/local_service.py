"""The whole service as a child process: started, watched and ended by the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Self

from bpt_client.errors import BptError

_START_SECONDS = 300.0  # the first start makes a database and imports torch, perhaps from a cold disk
_STOP_SECONDS = 75.0  # workers, then the databases, each have 30 s to end in order
_POLL_SECONDS = 0.1
_LOG_LINES = 15
_EXISTS_ALREADY = 3  # exit code of `bpt_store.admin bootstrap`


class LocalServiceFailed(BptError):
    """The service could not be started, or ended by itself; tells the last lines of its log."""


class LocalService:
    """`python -m bpt_store.up` on any free port; a context manager that leaves no process behind.

    Only in the main thread: when the service ends by itself, LocalServiceFailed is raised there at once,
    whatever that thread is waiting for.
    """

    url: str

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.log = data_dir / "logs" / "service.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        make_data_dir(self._data_dir)
        ready = self._data_dir / "logs" / "service.ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bpt_store.up", "--data-dir", str(self._data_dir)]
        command += ["--host", "127.0.0.1", "--port", "0", "--ready-file", str(ready)]
        try:
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C reaches a terminal's whole group, and the service shall hear it once, from us.
                    start_new_session=True,
                )
            signal.signal(signal.SIGCHLD, self._on_child)
            self.url = self._wait_until(ready)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, wait; kill it after 75 s, or at once at another Ctrl-C."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = self._process
        if process is None or process.returncode is not None:
            return
        in_a_hurry: list[int] = []
        handlers = {
            number: signal.signal(number, lambda received, _: in_a_hurry.append(received))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            # waitid with WNOWAIT leaves a zombie, so that the process's number, which is its group's, stays its own.
            os.kill(process.pid, signal.SIGINT)
            end = time.monotonic() + _STOP_SECONDS
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                if in_a_hurry or time.monotonic() >= end:
                    break
                time.sleep(_POLL_SECONDS)
            # What it started has sessions of its own and dies with it; this is for what has not got that far.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def wait(self) -> None:
        """Until Ctrl-C, which is KeyboardInterrupt, or LocalServiceFailed."""
        while True:
            self._check()
            time.sleep(1)

    def bootstrap(self) -> str:
        """The first administrator's key. LocalServiceFailed if there was one already: it is told only once."""
        command = [sys.executable, "-m", "bpt_store.admin", "bootstrap", "--data-dir", str(self._data_dir)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == _EXISTS_ALREADY:
            raise LocalServiceFailed(
                f"{self._data_dir} has an administrator's key that the demo does not know: "
                "remove that directory, or give another one with --data-dir"
            )
        found = re.search(r"\bbpt_\w[\w-]*", done.stdout)
        if done.returncode or not found:
            raise LocalServiceFailed(f"no administrator's key could be made: {(done.stderr or done.stdout).strip()}")
        return found.group()

    def _wait_until(self, ready: Path) -> str:
        end = time.monotonic() + _START_SECONDS
        while not ready.exists():
            self._check()
            if time.monotonic() >= end:
                raise LocalServiceFailed(f"the service was not ready after {_START_SECONDS:.0f} s; see {self.log}")
            time.sleep(_POLL_SECONDS)
        url: str = json.loads(ready.read_text())["url"]
        return url

    def _on_child(self, _number: int, _frame: FrameType | None) -> None:
        self._check()

    def _check(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
            told = "".join(f"\n    {line}" for line in lines)
            raise LocalServiceFailed(f"the service ended with status {status}; the end of {self.log}:{told}")


def make_data_dir(data_dir: Path) -> None:
    """Make it, and logs/ in it, for ourselves alone.

    As root everyone may pass through the directory: PostgreSQL then runs as `nobody` and has to reach its own.
    """
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if not data_dir.exists():
        data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
    (data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
