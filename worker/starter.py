"""Starts the process of each job as a copy of one that has imported what it needs, which takes seconds.

    supervisor ── exec ──▶ `python -m worker.starter worker.trainer` ── fork ──▶ one trainer for each job

The starter knows nothing of any job, has no credentials, and runs nothing: no CUDA, which does not survive a fork, and
no threads of ours. It ends with its supervisor, and what it has started ends with it: the kernel sees to both.

Supervisor and starter talk over a socket, one question at a time:

    start JOB_FILE, and three files: input, log, events     -> the number of the new process
    wait                                                    -> its exit status, as subprocess has it

An ended process keeps its number until it was waited for: what is sent to that number reaches nobody else.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from bpt_store.processes import die_with_parent, show_as
from worker import room

_MESSAGE_BYTES = 1 << 16
_END_SECONDS = 5.0  # from SIGKILL to the end of a process
# A child gets what it needs to compute and nothing that opens a door.
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "HF_", "TORCH_")


class StarterLost(Exception):
    """The starter ended, and what it had started with it."""


class Starter:
    """Starts processes that run `main` of a module. The starter itself starts with the first one."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._popen: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self, job_file: Path, *, log: BinaryIO, events: int) -> Started:
        """A process that does this job, as worker/child.py describes it. Raises StarterLost, OSError."""
        if self._popen is None or self._popen.poll() is not None:
            self._exec()
        assert self._socket is not None
        read_end, write_end = os.pipe()
        try:
            question = f"start {job_file}".encode()
            socket.send_fds(self._socket, [question], [read_end, log.fileno(), events])
            return Started(self, self.answer(None), write_end)
        except (OSError, StarterLost) as error:
            os.close(write_end)
            self.close()
            raise StarterLost("the process that starts others does not answer") from error
        finally:
            os.close(read_end)

    def close(self) -> None:
        """End the starter, and what it has started."""
        if self._socket is not None:
            self._socket.close()
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
        self._popen = self._socket = None

    def _exec(self) -> None:
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "worker.starter", self._module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                preexec_fn=die_with_parent(signal.SIGKILL),
                start_new_session=True,
            )

    def ask_for_the_end(self) -> None:
        """Raises StarterLost."""
        assert self._socket is not None
        try:
            self._socket.send(b"wait")
        except OSError as error:
            raise StarterLost("the process that starts others ended") from error

    def answer(self, seconds: float | None) -> int:
        """Raises TimeoutError, StarterLost."""
        assert self._socket is not None
        self._socket.settimeout(seconds)
        try:
            answer = self._socket.recv(_MESSAGE_BYTES)
        except ConnectionError:
            answer = b""
        if not answer:
            raise StarterLost("the process that starts others ended")
        return int(answer)


class Started:
    """A process, seen by the supervisor; it leads a process group. It ends by itself when its input closes."""

    def __init__(self, starter: Starter, number: int, write_end: int) -> None:
        self._starter = starter
        self._input = write_end
        self._pidfd = os.pidfd_open(number)
        self.pid = number
        self.status: int | None = None
        self._asked = self._is_closed = False

    def wait(self, seconds: float) -> int:
        """Its exit status; nothing of its group is left. Raises TimeoutError, StarterLost."""
        if not self._asked:
            self._asked = True
            self._starter.ask_for_the_end()
        if self.status is None:
            self.status = self._starter.answer(seconds)
        return self.status

    def kill(self) -> None:
        """At once; for any thread, before `stop`."""
        self._signal(signal.SIGKILL)

    def stop(self, patience_seconds: float) -> None:
        """Ask the process to end, wait so long, then kill it, or its starter if even that does not help."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self.status is None:
                self._signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    self.wait(patience_seconds)
            if self.status is None:
                self._signal(signal.SIGKILL)
                self.wait(_END_SECONDS)
        except (TimeoutError, StarterLost):
            self._starter.close()
        finally:
            os.close(self._pidfd)
            os.close(self._input)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


# --- the starter's own process -----------------------------------------------------------------------------------


def main() -> None:
    name, questions = sys.argv[1], socket.socket(fileno=int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    module = importlib.import_module(name)
    starter, child = os.getpid(), 0
    while True:
        message, files, _, _ = socket.recv_fds(questions, _MESSAGE_BYTES, 3)
        question, _, argument = message.decode().partition(" ")
        if question == "start":
            child = os.fork()
            if child == 0:
                questions.close()
                _settle(name, files[:2])
                sys.argv = [name, argument, str(files[2]), str(starter)]
                _run(module)
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(0)  # putting torch away properly takes a second, for nothing
            for file in files:
                os.close(file)
            questions.send(str(child).encode())
        elif question == "wait":
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            with suppress(ProcessLookupError):  # whatever is left of its group
                os.killpg(child, signal.SIGKILL)
            questions.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        else:  # the supervisor has closed its end
            return


def _run(module: ModuleType) -> None:
    try:
        module.main()
    except OSError as error:
        if not room.is_missing(error):
            raise
        try:
            traceback.print_exc()
        finally:  # even where there is no room for the log
            os._exit(room.EXIT_STATUS)


def _settle(module: str, files: list[int]) -> None:
    """As if exec'd: a group of its own, its own input, output and name."""
    os.setsid()
    for number, file in ((0, files[0]), (1, files[1]), (2, files[1])):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    show_as(module.rpartition(".")[2])


if __name__ == "__main__":
    main()
