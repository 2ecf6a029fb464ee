"""The Python client: one class, a group of verbs for each resource.

    with Client("http://127.0.0.1:8000", "bpt_...") as client:
        dataset = client.datasets.upload("flowers/")
        client.datasets.wait(dataset.id)
        job = client.tuning_jobs.create(dataset.id, prompt_set="flowers")
        for event in client.tuning_jobs.follow(job.id):
            print(event.type, event.data)
        answer = client.predict(["rose.jpg"], "flowers")

Every call may raise ApiError, ConnectionFailed and UnexpectedAnswer (see errors.py); docstrings name what comes
on top. Only GETs are ever repeated by themselves.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import urlencode

from bpt_client.batch_predictions import BatchPredictions
from bpt_client.datasets import Datasets
from bpt_client.errors import InputError
from bpt_client.models import ApiKey, AuditEntry, Backbone, Customer, Method, Prediction, UsageDay, parse
from bpt_client.prompt_sets import PromptSets
from bpt_client.transport import Transport, decode, segment
from bpt_client.tuning_jobs import TuningJobs
from bpt_client.webhooks import Webhooks

Image = str | Path | tuple[str, bytes]
"""A file's path, or (name, content)."""


class Client:
    """Talks to one service with one key; a context manager. Threads may share it.

    `timeout` is in seconds, for connecting and for each silence within an answer. InputError for a URL or a
    key that cannot be one.
    """

    def __init__(self, base_url: str, api_key: str, *, timeout: float = 30.0) -> None:
        self._transport = Transport(base_url, api_key, timeout)
        self.customers = Customers(self._transport)
        self.api_keys = ApiKeys(self._transport)
        self.admin_keys = AdminKeys(self._transport)
        self.datasets = Datasets(self._transport)
        self.tuning_jobs = TuningJobs(self._transport)
        self.prompt_sets = PromptSets(self._transport)
        self.batch_predictions = BatchPredictions(self._transport)
        self.webhooks = Webhooks(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def backbones(self) -> Iterator[Backbone]:
        return self._transport.pages(Backbone, "/v1/backbones")

    def methods(self) -> Iterator[Method]:
        return self._transport.pages(Method, "/v1/methods")

    def audit_log(
        self,
        customer_id: str | None = None,
        *,
        action: str | None = None,
        resource: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[AuditEntry]:
        """What was done, newest first; an administrator says of which customer, who may be deleted.

        `action` is for example "prompt_set.alias.moved", `resource` and `actor` are ids. Times know their zone.
        """
        path = "/v1/audit-log" if customer_id is None else f"/v1/customers/{segment(customer_id)}/audit-log"
        times = {"since": since, "until": until}
        given = {name: None if time is None else time.isoformat() for name, time in times.items()}
        return self._transport.pages(AuditEntry, path, {"action": action, "resource": resource, "actor": actor} | given)

    def usage(
        self, customer_id: str | None = None, *, first: date | None = None, last: date | None = None
    ) -> Iterator[UsageDay]:
        """What was used from the first day to the last (UTC), newest first; an administrator may leave out whose."""
        return self._transport.pages(UsageDay, "/v1/usage", _usage_query(customer_id, first, last))

    def usage_csv(
        self, customer_id: str | None = None, *, first: date | None = None, last: date | None = None
    ) -> Iterator[str]:
        """The same as a table, piece by piece."""
        query = {name: value for name, value in _usage_query(customer_id, first, last).items() if value is not None}
        path = f"/v1/usage?{urlencode(query)}"
        with self._transport.stream(path, {"Accept": "text/csv"}, self._transport.timeout) as chunks:
            for chunk in chunks:
                yield chunk.decode("ascii")

    def predict(
        self,
        images: Sequence[Image],
        prompt_sets: str | Sequence[str],
        *,
        top_k: int = 3,
        threshold: float | None = None,
        return_features: bool = False,
    ) -> Prediction:
        """Classify images in one request, each by every prompt set: "name" (newest version), "name:3", "name@alias".

        `threshold` is the least score for a label to apply, by default what was fitted in tuning. An image that
        cannot be read does not spoil the others: look at its `error`. Where no image can be read the service
        refuses the whole. InputError for no images, or a file that cannot be opened.
        """
        if not images:
            raise InputError("there are no images to predict")
        with ExitStack() as files:
            parts = [("images", _image_part(image, files)) for image in images]
            form: dict[str, str | list[str]] = {
                "prompt_sets": [prompt_sets] if isinstance(prompt_sets, str) else [*prompt_sets],
                "top_k": str(top_k),
                "return_features": str(return_features).lower(),
            }
            if threshold is not None:
                form["threshold"] = str(threshold)
            return parse(Prediction, decode(self._transport.once("POST", "/v1/predictions", data=form, files=parts)))


class Customers:
    """Needs an administrator's key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str) -> Customer:
        return self._transport.send(Customer, "/v1/customers", {"name": name})

    def list(self) -> Iterator[Customer]:
        return self._transport.pages(Customer, "/v1/customers")

    def get(self, customer_id: str) -> Customer:
        return self._transport.fetch(Customer, f"/v1/customers/{segment(customer_id)}")

    def change(self, customer_id: str, **changes: str | float | None) -> Customer:
        """`name`, `weight`, `running_jobs_limit`, `queued_jobs_limit`, `quota_datasets`, `quota_images`, `quota_bytes`,
        `requests_per_minute`, `images_per_minute`, `upload_bytes_per_day`; what is not given stays, and None is the
        service's own."""
        answer = self._transport.once("PATCH", f"/v1/customers/{segment(customer_id)}", json=changes)
        return parse(Customer, decode(answer))

    def suspend(self, customer_id: str) -> Customer:
        """The customer's keys are refused from now on, and queued jobs wait."""
        return self._transport.send(Customer, f"/v1/customers/{segment(customer_id)}/suspend")

    def resume(self, customer_id: str) -> Customer:
        return self._transport.send(Customer, f"/v1/customers/{segment(customer_id)}/resume")

    def delete(self, customer_id: str, name: str) -> None:
        """With all that is the customer's, for good. `name` must be the customer's name."""
        self._transport.once("DELETE", f"/v1/customers/{segment(customer_id)}", params={"name": name})


class _Keys:
    """Needs an administrator's key."""

    _path: str

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, key_id: str) -> ApiKey:
        return self._transport.fetch(ApiKey, f"{self._path}/{segment(key_id)}")

    def rotate(self, key_id: str, *, overlap_seconds: int | None = None) -> ApiKey:
        """A new key that may do the same, with its `token`; the old one holds for `overlap_seconds` more, by default
        a day."""
        body = {"overlap_seconds": overlap_seconds}
        return self._transport.send(ApiKey, f"{self._path}/{segment(key_id)}/rotate", body)

    def revoke(self, key_id: str) -> ApiKey:
        return self._transport.send(ApiKey, f"{self._path}/{segment(key_id)}/revoke")


class ApiKeys(_Keys):
    """Customers' keys."""

    _path = "/v1/api-keys"

    def create(
        self,
        customer_id: str,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> ApiKey:
        """The answer's `token` is the secret; it cannot be had again. Without scopes the service chooses."""
        body = {
            "customer": customer_id,
            "name": name,
            "scopes": None if scopes is None else [*scopes],
            "expires_at": _moment(expires_at),
        }
        return self._transport.send(ApiKey, self._path, body)

    def list(self, customer_id: str) -> Iterator[ApiKey]:
        return self._transport.pages(ApiKey, self._path, {"customer": customer_id})


def _usage_query(customer_id: str | None, first: date | None, last: date | None) -> dict[str, str | None]:
    days = {"from": first, "to": last}
    return {"customer": customer_id} | {name: None if day is None else day.isoformat() for name, day in days.items()}


class AdminKeys(_Keys):
    """Those of administrators. The last that has no end stays: Conflict `last_admin_key`."""

    _path = "/v1/admin/api-keys"

    def create(self, name: str, *, expires_at: datetime | None = None) -> ApiKey:
        """The answer's `token` is the secret; it cannot be had again."""
        body = {"name": name, "expires_at": _moment(expires_at)}
        return self._transport.send(ApiKey, self._path, body)

    def list(self) -> Iterator[ApiKey]:
        return self._transport.pages(ApiKey, self._path)

    def audit_log(self) -> Iterator[AuditEntry]:
        """What was done to these keys, newest first."""
        return self._transport.pages(AuditEntry, "/v1/admin/audit-log")


def _moment(time: datetime | None) -> str | None:
    """With a zone, the local one where none is said."""
    return None if time is None else time.astimezone().isoformat()


def _image_part(image: Image, files: ExitStack) -> tuple[str, BinaryIO | bytes, str]:
    """(name, content, media type) as httpx wants it; files stay open until `files` closes."""
    content: BinaryIO | bytes
    if isinstance(image, tuple):
        name, content = image
    else:
        name = Path(image).name
        try:
            content = files.enter_context(Path(image).open("rb"))  # noqa: SIM115  # `files` closes it
        except OSError as error:
            raise InputError(f"cannot read {image}: {error.strerror}") from error
    return name, content, mimetypes.guess_type(name)[0] or "application/octet-stream"
