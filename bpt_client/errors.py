"""What can go wrong, as one tree.

BptError                     everything this package raises on purpose
├── InputError               what the caller gave cannot be used: no such file, an empty folder, no key
├── ConnectionFailed         no answer, or half of one: the service may or may not have done what it was asked
├── UnexpectedAnswer         an answer this client cannot read; is it the service at all?
├── TransferCorrupt          bytes that arrived do not have the announced SHA-256
├── WebhookInvalid           what came is no webhook of the service's, or an old one
├── WaitedTooLong            it goes on, but the caller's patience is over
├── DatasetFailed            the dataset, or its version, waited for was refused: see `.dataset`
├── TuningFailed             the job waited for failed or was cancelled: see `.job`
├── BatchPredictionFailed    likewise
└── ApiError                 the service said no: status, code, detail, request_id, param, errors
    ├── Unauthenticated      401  no key, or none that holds
    ├── Forbidden            403  the key may not do this, or a quota is used up
    ├── NotFound             404  no such thing, or somebody else's
    ├── Conflict             409  not in the state it is in now
    ├── InvalidRequest       any other 4xx
    ├── TooManyRequests      429  see `.retry_after_seconds`
    └── ServerError          5xx
        └── Unavailable      502, 503, 504  see `.retry_after_seconds`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpt_client.models import BatchPrediction, DatasetContents, TuningJob


class BptError(Exception):
    pass


class InputError(BptError):
    pass


class ConnectionFailed(BptError):
    pass


class WebhookInvalid(BptError):
    pass


class UnexpectedAnswer(BptError):
    pass


class TransferCorrupt(BptError):
    pass


class WaitedTooLong(BptError):
    pass


class DatasetFailed(BptError):
    """`what` is how the message calls it: a dataset, or a version of one."""

    def __init__(self, dataset: DatasetContents, what: str) -> None:
        reason = f"{dataset.error.detail} ({dataset.error.code})" if dataset.error else "no reason was given"
        super().__init__(f"{what} failed: {reason}")
        self.dataset = dataset


class TuningFailed(BptError):
    def __init__(self, job: TuningJob) -> None:
        reason = f": {job.error.detail} ({job.error.code})" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{reason}")
        self.job = job


class BatchPredictionFailed(BptError):
    def __init__(self, job: BatchPrediction) -> None:
        reason = f": {job.error.detail} ({job.error.code})" if job.error else ""
        super().__init__(f"job {job.id} is {job.state}{reason}")
        self.job = job


class ApiError(BptError):
    """An answer with an error status, read as RFC 9457 problem+json where it is one.

    `code` is stable and meant for programs; `errors` names fields at fault, one object each;
    `retry_after_seconds` is what the service asked for, None where it did not.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        request_id: str | None = None,
        param: str | None = None,
        errors: tuple[Mapping[str, Any], ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(status, code, detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.param = param
        self.errors = errors
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        where = f", request {self.request_id}" if self.request_id else ""
        return f"{self.detail} ({self.status} {self.code}{where})"


class Unauthenticated(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class InvalidRequest(ApiError):
    pass


class TooManyRequests(ApiError):
    @property
    def passes(self) -> bool:
        """Whether to wait helps: too much in too short a time, and not a limit that holds until something is done."""
        return self.code != "queue_limit"


class ServerError(ApiError):
    pass


class Unavailable(ServerError):
    pass


def error_class(status: int) -> type[ApiError]:
    """The class for an HTTP status of 400 or above."""
    by_status: dict[int, type[ApiError]] = {
        401: Unauthenticated,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        429: TooManyRequests,
        502: Unavailable,
        503: Unavailable,
        504: Unavailable,
    }
    return by_status.get(status, ServerError if status >= 500 else InvalidRequest)
