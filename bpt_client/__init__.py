"""bpt_client talks to the service: `Client` for programs, the `bpt` command for people."""

from bpt_client.client import Client
from bpt_client.errors import (
    ApiError,
    BptError,
    Conflict,
    ConnectionFailed,
    DatasetFailed,
    Forbidden,
    InputError,
    InvalidRequest,
    NotFound,
    ServerError,
    TooManyRequests,
    TransferCorrupt,
    TuningFailed,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    WaitedTooLong,
)

__all__ = [
    "ApiError",
    "BptError",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DatasetFailed",
    "Forbidden",
    "InputError",
    "InvalidRequest",
    "NotFound",
    "ServerError",
    "TooManyRequests",
    "TransferCorrupt",
    "TuningFailed",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "WaitedTooLong",
]
