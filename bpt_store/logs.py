"""JSON logs, one object a line, with the request or job they belong to, and without secrets."""

from __future__ import annotations

import logging
import re
import sys
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
job_id: ContextVar[str | None] = ContextVar("job_id", default=None)


# An API key or a webhook's secret, wherever it came in: a path that somebody pasted a key into, a row in an error.
_SECRET = re.compile(r"(bpt_[0-9a-f]{32}_|whsec_)[\w+/=-]+")


class _Formatter(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1...", super().format(record))


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, variable in (("request_id", request_id), ("job_id", job_id)):
            value = variable.get()
            if value is not None:
                setattr(record, name, value)
        return True


def configure(level: str) -> None:
    """Send every log line of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    handler.addFilter(_Context())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # api/middleware.py logs requests itself, with their ids
    for name in ("uvicorn", "uvicorn.error"):  # set up by uvicorn before it asked for the application
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
