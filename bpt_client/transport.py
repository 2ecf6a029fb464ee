"""One HTTP connection pool: answers become JSON or an error of errors.py; what is safe to repeat is tried again."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx

from bpt_client.errors import (
    ApiError,
    Conflict,
    ConnectionFailed,
    InputError,
    TooManyRequests,
    Unavailable,
    UnexpectedAnswer,
    error_class,
)
from bpt_client.models import Json, parse

T = TypeVar("T")

PAGE_SIZE = 100
_ATTEMPTS = 4
_BACKOFF_SECONDS = 0.2  # doubles each time
_LONGEST_RETRY_AFTER_SECONDS = 10.0  # asked to wait longer than that, the caller should know


class Transport:
    """Speaks to one service with one key; may be shared between threads."""

    def __init__(self, base_url: str, api_key: str, timeout: float) -> None:
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InputError(f"not a URL: {base_url!r}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"not a URL of a service: {base_url!r}, it should look like http://127.0.0.1:8000")
        headers = {"Accept": "application/json", "User-Agent": "bpt-client"}
        if api_key:
            # Whatever is no ASCII cannot be a key, and would fail deep inside httpx.
            if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
                raise InputError("the API key has characters that no key has")
            headers["Authorization"] = f"Bearer {api_key}"
        self.timeout = timeout
        # A proxy from the environment has no business with a service on this very machine.
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, trust_env=not _is_loopback(url.host), follow_redirects=False
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> httpx.Response:
        """A GET, tried again when the service cannot be reached or says 502, 503, 504 or that it was too fast."""
        return _again(lambda: self.once("GET", path, params=params))

    def post(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        **request: Any,
    ) -> httpx.Response:
        """A POST that the service knows by its Idempotency-Key: tried again like a GET, and done once.

        `content` gives the body anew for each try.
        """
        known = {**(headers or {}), "Idempotency-Key": uuid4().hex}

        def attempt() -> httpx.Response:
            return self.once("POST", path, headers=known, content=content() if content else None, **request)

        return _again(attempt)

    def once(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request, never repeated: an answer that got lost may stand for something that was done."""
        with _connection_errors(self._http.base_url):
            response = self._http.request(method, path, **{k: v for k, v in request.items() if v is not None})
        if response.is_success:
            return response
        raise api_error(response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str], read_timeout: float) -> Iterator[Iterator[bytes]]:
        """The chunks of a GET's body as they come in; silence of `read_timeout` seconds is ConnectionFailed."""
        timeout = httpx.Timeout(self.timeout, read=read_timeout)
        with (
            _connection_errors(self._http.base_url),
            self._http.stream("GET", path, headers=dict(headers), timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
                raise api_error(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if kind != headers.get("Accept", kind):
                raise UnexpectedAnswer(f"{path}: asked for {headers['Accept']}, got {kind or 'no content type'}")
            yield response.iter_bytes()

    def fetch(self, kind: type[T], path: str, params: Mapping[str, Any] | None = None) -> T:
        return parse(kind, decode(self.get(path, params)))

    def send(self, kind: type[T], path: str, body: Mapping[str, Any] | None = None) -> T:
        """POST a JSON body; fields that are None are left out, so that the service's defaults hold."""
        given = None if body is None else {name: value for name, value in body.items() if value is not None}
        return parse(kind, decode(self.post(path, json=given)))

    def pages(self, kind: type[T], path: str, params: Mapping[str, Any] | None = None) -> Iterator[T]:
        """Every item of a list, fetched a page at a time as the iterator is drawn on."""
        query = {"limit": PAGE_SIZE, **{name: value for name, value in (params or {}).items() if value is not None}}
        while True:
            page = decode(self.get(path, query))
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise UnexpectedAnswer(f"{path}: not a list of items")
            yield from (parse(kind, item) for item in page["data"])
            cursor = page.get("next_cursor")
            if not page.get("has_more") or cursor is None or cursor == query.get("after"):
                return
            query["after"] = cursor


def _again(attempt: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer to what is safe to repeat, after some tries where that may help."""
    pause = _BACKOFF_SECONDS
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except ConnectionFailed:
            time.sleep(pause)
        except (Unavailable, TooManyRequests) as error:
            if isinstance(error, TooManyRequests) and not error.passes:
                raise
            wished = error.retry_after_seconds or 0.0
            if wished > _LONGEST_RETRY_AFTER_SECONDS:
                raise
            time.sleep(max(pause, wished))
        except Conflict as error:
            # An earlier try, whose answer got lost, is not at its end.
            if error.code != "idempotency_in_progress":
                raise
            time.sleep(pause)
        pause *= 2
    return attempt()


def decode(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise UnexpectedAnswer(
            f"{response.request.url} answered something that is not JSON: {response.text:.100}"
        ) from error


def api_error(response: httpx.Response) -> ApiError:
    """The error an answer stands for; one that is no problem+json (a proxy's, say) gets the code `http_<status>`."""
    try:
        body = json.loads(response.content)
    except ValueError:
        body = {}
    problem: Json = body if isinstance(body, dict) else {}
    errors = problem.get("errors")
    given: Sequence[Any] = errors if isinstance(errors, list) else ()
    return error_class(response.status_code)(
        response.status_code,
        _text(problem.get("code")) or f"http_{response.status_code}",
        _text(problem.get("detail")) or _text(problem.get("title")) or response.reason_phrase or "no reason given",
        request_id=_text(problem.get("request_id")) or response.headers.get("x-request-id"),
        param=_text(problem.get("param")),
        errors=tuple(each for each in given if isinstance(each, dict)),
        retry_after_seconds=_retry_after_seconds(response.headers.get("retry-after")),
    )


def segment(name: str) -> str:
    """A path segment. Empty or dotted ones would name another resource, so they are refused here."""
    if name in ("", ".", ".."):
        raise InputError(f"{name!r} is no name")
    return quote(name, safe="")


def json_object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"expected an object, got {value!r:.100}")
    return value


def deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout


@contextmanager
def _connection_errors(url: httpx.URL) -> Iterator[None]:
    where = str(url).rstrip("/")
    try:
        yield
    except httpx.ConnectError as error:
        raise ConnectionFailed(f"cannot reach {where}: {error}") from error
    except httpx.TimeoutException as error:
        raise ConnectionFailed(f"{where} did not answer in time") from error
    except httpx.TransportError as error:
        raise ConnectionFailed(f"the connection to {where} broke: {error}") from error
    except httpx.DecodingError as error:
        raise UnexpectedAnswer(f"{where} sent a body that cannot be unpacked: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _retry_after_seconds(value: str | None) -> float | None:
    """Seconds are understood, dates are not: they would need both clocks to agree."""
    return float(value) if value is not None and value.strip().isdigit() else None
