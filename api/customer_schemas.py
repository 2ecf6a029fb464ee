"""Customers, keys, usage and the audit log, over the wire."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from api.schemas import WHOLE, Moment, Name, Request
from bpt_store import ids, models
from bpt_store.audit import Action
from bpt_store.customers import CUSTOMER_SCOPES, Scope

_NO_LIMIT = "0: no limit"


class CustomerCreate(Request):
    name: Name


class CustomerChange(Request):
    """What is absent stays. A weight, limit or quota that is null becomes the service's own."""

    name: Name = Field("", examples=["acme"])
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="of his share of the workers; 1 where nothing is said"
    )
    running_jobs_limit: Annotated[int, Field(strict=True, ge=1, lt=2**31), WHOLE] | None = None
    queued_jobs_limit: Annotated[int, Field(strict=True, ge=0, lt=2**31), WHOLE] | None = None
    quota_datasets: Annotated[int, Field(strict=True, ge=0, lt=2**31), WHOLE] | None = None
    # What is exact as a number of JSON.
    quota_images: Annotated[int, Field(strict=True, ge=0, lt=2**53), WHOLE] | None = None
    quota_bytes: Annotated[int, Field(strict=True, ge=0, lt=2**53), WHOLE] | None = None
    requests_per_minute: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )
    images_per_minute: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )
    upload_bytes_per_day: Annotated[int, Field(strict=True, ge=0, lt=10**15), WHOLE] | None = Field(
        None, description=_NO_LIMIT
    )

    def changes(self) -> dict[str, Any]:
        """As customers.change takes them."""
        given = self.model_dump(exclude_unset=True)
        return given | ({"weight": 1.0} if given.get("weight", 1.0) is None else {})


class Customer(BaseModel):
    """A limit or quota that is null is the service's own."""

    id: str
    name: str
    suspended_at: datetime | None
    weight: float
    running_jobs_limit: int | None = Field(description="of one kind at a time")
    queued_jobs_limit: int | None = Field(description="unfinished jobs of one kind")
    quota_datasets: int | None
    quota_images: int | None
    quota_bytes: int | None
    requests_per_minute: int | None = Field(description=_NO_LIMIT)
    images_per_minute: int | None = Field(description=_NO_LIMIT)
    upload_bytes_per_day: int | None = Field(description=_NO_LIMIT)
    created_at: datetime

    @classmethod
    def of(cls, row: models.Customer) -> Self:
        return cls(
            id=ids.public(ids.CUSTOMER, row.id),
            name=row.name,
            suspended_at=row.suspended_at,
            weight=row.weight,
            running_jobs_limit=row.running_jobs_limit,
            queued_jobs_limit=row.queued_jobs_limit,
            quota_datasets=row.quota_datasets,
            quota_images=row.quota_images,
            quota_bytes=row.quota_bytes,
            requests_per_minute=row.requests_per_minute,
            images_per_minute=row.images_per_minute,
            upload_bytes_per_day=row.upload_bytes_per_day,
            created_at=row.created_at,
        )


class ApiKeyCreate(Request):
    customer: str = Field(examples=["cus_0199c0de000070008000000000000000"])
    name: Name
    scopes: list[Scope] = Field(default=list(CUSTOMER_SCOPES), min_length=1)
    expires_at: Moment | None = None


class AdminApiKeyCreate(Request):
    name: Name
    expires_at: Moment | None = None


class ApiKeyRotate(Request):
    overlap_seconds: int = Field(
        86400,
        ge=0,
        le=30 * 86400,
        description="so long the old key holds too, if it does not end before",
    )


class ApiKey(BaseModel):
    """`token` is there in the reply that makes the key and never again."""

    id: str
    customer: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    token: str | None = None

    @classmethod
    def of(cls, row: models.ApiKey, token: str | None = None) -> Self:
        return cls(
            id=ids.public(ids.KEY, row.id),
            customer=ids.public(ids.CUSTOMER, row.customer_id) if row.customer_id else None,
            name=row.name,
            scopes=row.scopes,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            token=token,
        )


class UsageDay(BaseModel):
    """What a customer has used on a day (UTC), as far as it is over."""

    customer: str
    day: date
    online_images: int = Field(description="predicted in requests, each as often as prompt sets were applied to it")
    batch_images: int = Field(description="predicted by batch predictions that succeeded on that day, counted likewise")
    tuning_seconds: float = Field(description="of workers on tuning jobs; an attempt counts when it ends")
    batch_seconds: float = Field(description="of workers on batch predictions; an attempt counts when it ends")
    stored_bytes: int | None = Field(description="kept when the day's sample was taken; null where there was none")

    @classmethod
    def of(cls, row: models.UsageDay) -> Self:
        return cls(
            customer=ids.public(ids.CUSTOMER, row.customer_id),
            day=row.day,
            online_images=row.online_images,
            batch_images=row.batch_images,
            tuning_seconds=round(row.tuning_seconds, 3),
            batch_seconds=round(row.batch_seconds, 3),
            stored_bytes=row.stored_bytes,
        )


class AuditEntry(BaseModel):
    """What was done to whom by which key. It holds ids, numbers and words of the service's, no text of a customer's."""

    id: str
    customer: str | None
    actor: str = Field(
        description="the key that was used, also an administrator's; all zeros: the service itself",
        examples=[f"key_{'0' * 32}"],
    )
    action: Action
    resource_type: str = Field(examples=["prompt_set"])
    resource: str = Field(examples=[f"ps_{'0' * 32}"])
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None = Field(
        description="X-Request-Id; one that the caller chose as sha256: and 32 digits of its SHA-256"
    )
    at: datetime

    @classmethod
    def of(cls, row: models.AuditEntry) -> Self:
        return cls(
            id=ids.public(ids.AUDIT, row.id),
            customer=ids.public(ids.CUSTOMER, row.customer_id) if row.customer_id else None,
            actor=ids.public(ids.KEY, row.actor),
            action=Action(row.action),
            resource_type=row.action.partition(".")[0],
            resource=row.resource,
            before=row.before,
            after=row.after,
            request_id=row.request_id,
            at=row.at,
        )
