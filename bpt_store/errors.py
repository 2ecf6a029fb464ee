"""What bpt_store refuses, as facts; api/problems.py alone turns them into HTTP.

StoreError              has a stable `code`
├── NotFound            no such thing, or somebody else's: deliberately the same
├── Invalid             never, in whatever state
├── Conflict            not in the state it is in now
├── LimitReached        a limit of the customer's
├── RateLimited         a limit of the customer's, which lets the same through a while later
├── Unauthenticated     no key, or none that holds
├── Suspended           a key that holds, of a customer who is suspended
├── Damaged             what is stored is not what was stored
└── LeaseLost           a worker was replaced: stop, write nothing more
"""

from __future__ import annotations


class StoreError(Exception):
    code = "store_error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        if code is not None:
            self.code = code


class NotFound(StoreError):
    code = "not_found"


class Invalid(StoreError):
    code = "invalid_request"


class Conflict(StoreError):
    code = "conflict"


class LimitReached(StoreError):
    code = "limit_reached"


class RateLimited(StoreError):
    code = "rate_limited"

    def __init__(self, detail: str, retry_after_seconds: float) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Unauthenticated(StoreError):
    code = "unauthenticated"


class Suspended(StoreError):
    code = "customer_suspended"


class Damaged(StoreError):
    code = "artifact_integrity"


class LeaseLost(StoreError):
    code = "lease_lost"
