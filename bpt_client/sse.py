"""Server-sent events: bytes in, messages out.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Not str.splitlines(), nor httpx's iter_lines(): those also break at U+2028 and the like, which JSON may hold raw.
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Message:
    """`id` is None where this very message has none."""

    data: str
    event: str = "message"
    id: str | None = None


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """Messages as soon as their blank line has arrived; one cut off by the end of the stream is dropped."""
    data: list[str] = []
    event, number = "", None
    for raw in _lines(chunks):
        line = raw.decode(errors="replace")
        if not line:
            if data:
                yield Message("\n".join(data), event or "message", number)
            data, event, number = [], "", None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            number = value
        # A line that starts with a colon is a comment, sent to keep the connection open; others are unknown.


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        start = 0
        for end in _LINE_END.finditer(rest):
            # A last \r may be the first half of \r\n: the next chunk will tell.
            if end.group() == b"\r" and end.end() == len(rest):
                break
            yield rest[start : end.start()]
            start = end.end()
        rest = rest[start:]
