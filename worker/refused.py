"""What a supervisor finds out about a job's input before a child sees it."""

from __future__ import annotations


class Refused(Exception):
    """The input is at fault: the job fails with `code`, and trying again would not help."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
