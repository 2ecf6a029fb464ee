"""`python -m bpt_store.up --data-dir DIR`: the whole service on a single machine, restartable on its data.

PostgreSQL and Redis come from pip and listen on Unix sockets in the data directory's name only; the API is the one
thing on a port. What this process starts ends with it, however it ends; whatever of it dies is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from sqlalchemy import make_url

from bpt_store import processes
from bpt_store.embedded import EmbeddedError, EmbeddedServices, secret

READY_SECONDS = 120
STOP_SECONDS = 30
RESTART_SECONDS = 1
LOOK_SECONDS = 0.2


class Up:
    """The processes of one data directory."""

    def __init__(self, data_dir: Path, host: str, port: int) -> None:
        self._data_dir = data_dir.resolve()
        self._listener = socket.create_server((host, port))
        # uvicorn takes a socket it is handed for a Unix one and would leave Nagle's algorithm on: 40 ms a reply.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host, self._port = host, self._listener.getsockname()[1]
        self._services = EmbeddedServices(self._data_dir)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def run(self, ready_file: Path | None) -> None:
        """Start everything, tell when it is ready, keep it running until SIGINT or SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        with self._services:
            environment = {**os.environ, **environment_of(self._data_dir)}
            _say("PostgreSQL and Redis run")
            subprocess.run([sys.executable, "-m", "migrations"], env=environment, check=True)
            try:
                for name in self._commands():
                    self._start(name, environment)
                self._wait_until_ready()
                if ready_file is not None:
                    self._tell(ready_file)
                _say(f"bpt-service is ready: {self.url} (data in {self._data_dir}, logs in {self._data_dir / 'logs'})")
                self._watch(environment)
            finally:
                # All are asked at once; each then has the rest of the time.
                for process in self._children.values():
                    process.send_signal(signal.SIGTERM)
                for process in self._children.values():
                    processes.stop(process, patience_seconds=STOP_SECONDS)

    def _commands(self) -> dict[str, list[str]]:
        uvicorn = ["uvicorn", "--factory", "api.app:create_app", "--fd", str(self._listener.fileno())]
        return {
            "api": [*uvicorn, "--no-access-log", "--timeout-graceful-shutdown", "3"],
            "worker-ingest": worker_command("ingest"),
            "worker-tune": worker_command("tune"),
            "worker-batch": worker_command("batch_predict"),
            "sweep": ["worker.sweep"],
            "webhooks": ["worker.webhooks"],
        }

    def _start(self, name: str, environment: dict[str, str]) -> None:
        # Superuser and owner are for migrations; a process that serves has no business with them.
        served = {key: value for key, value in environment.items() if "SUPERUSER" not in key and "OWNER" not in key}
        with (self._data_dir / "logs" / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", *self._commands()[name]],
                env=served,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._listener.fileno()] if name == "api" else [],
                start_new_session=True,
                preexec_fn=processes.die_with_parent(signal.SIGTERM),
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._ended.is_set():
            for name, process in self._children.items():
                if process.poll() is not None:
                    raise EmbeddedError(f"{name} ended with status {process.returncode}; see logs/{name}.log")
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):  # noqa: S310  # our own URL
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"the API was not ready within {READY_SECONDS} seconds; see logs/api.log"
                    ) from None
            self._ended.wait(LOOK_SECONDS)

    def _watch(self, environment: dict[str, str]) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._revive_databases()
            for name, process in list(self._children.items()):
                if process.poll() is not None:
                    _say(f"{name} ended with status {process.returncode}; it is started again")
                    self._ended.wait(RESTART_SECONDS)
                    self._start(name, environment)

    def _revive_databases(self) -> None:
        try:
            self._services.check()
        except EmbeddedError as error:
            _say(f"{error}\nit is started again")
            self._ended.wait(RESTART_SECONDS)
            self._services.revive()

    def _tell(self, ready_file: Path) -> None:
        partial = ready_file.with_suffix(".partial")
        pids = {name: process.pid for name, process in self._children.items()}
        partial.write_text(json.dumps({"url": self.url, "pid": os.getpid(), "processes": pids}))
        partial.rename(ready_file)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ended.set()


def environment_of(data_dir: Path) -> dict[str, str]:
    """The settings of the service that keeps its data in `data_dir`, whether it runs or not."""
    services = EmbeddedServices(data_dir)
    superuser = make_url(services.superuser_url)

    def database_url(role: str) -> str:
        url = superuser.set(username=role, password=secret(data_dir, role), database="bpt")
        return url.render_as_string(hide_password=False)

    return {
        "BPT_SUPERUSER_DATABASE_URL": services.superuser_url,
        "BPT_OWNER_DATABASE_URL": database_url("bpt_owner"),
        "BPT_DATABASE_URL": database_url("bpt_customer"),
        "BPT_SYSTEM_DATABASE_URL": database_url("bpt_system"),
        "BPT_REDIS_URL": services.redis_url,
        "BPT_OBJECTS_URL": f"file://{data_dir.resolve() / 'objects'}",
        "BPT_WORK_DIRECTORY": str(data_dir.resolve() / "work"),
        "BPT_ROLE": "all",
    }


def worker_command(queue: str) -> list[str]:
    """The arguments of `python -m` for a worker of one queue; docker-compose.yml uses the same."""
    return [
        *("celery", "--app", "worker.app", "worker", "--queues", queue, "--hostname", f"{queue}@%h"),
        *("--concurrency", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bpt up", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    parser.add_argument("--ready-file", type=Path, help="written once everything runs: JSON with url, pid, processes")
    options = parser.parse_args(arguments)
    try:
        Up(options.data_dir, options.host, options.port).run(options.ready_file)
    except (EmbeddedError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"bpt up: {error}") from error


if __name__ == "__main__":
    main()
