"""Tells a process that hangs from one that takes long.

An epoch may take hours in which a trainer says nothing; but all the while it uses the processor. One that neither says
anything nor computes for the whole of a limit hangs. (One that spins for ever computes, and is not found out.)
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_BUSY = 0.01  # of the time; whoever waits with a timeout uses less, whoever feeds a GPU more
_UTIME, _STIME = 11, 12  # in /proc/<pid>/stat, behind the name


class Stall:
    """Watches one process from now on."""

    def __init__(self, pid: int, limit_seconds: float) -> None:
        self._pid, self._limit = pid, limit_seconds
        self.heard()

    def heard(self) -> None:
        """It said something."""
        self._since, self._used = time.monotonic(), _cpu_seconds(self._pid)

    def hangs(self) -> bool:
        """Whether it has neither said nor computed anything for the whole of the limit."""
        if time.monotonic() - self._since < self._limit:
            return False
        if _cpu_seconds(self._pid) - self._used < _BUSY * self._limit:
            return True
        self.heard()
        return False


def _cpu_seconds(pid: int) -> float:
    """All threads' so far; 0 of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
