"""docs/errors.md, made from the codes: `python -m tests.errors_page` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from api.meanings import MEANINGS, OF_JOBS
from api.problems import STATUS

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"

BEGIN = """# Errors

<!-- made by `python -m tests.errors_page` -->

Every error is a problem document (RFC 9457, `application/problem+json`): `status`, `title` and `detail` for people, and
for programs a `code` that stays the same. `param` and `errors` name the fields that are wrong, `request_id` finds the
request in our logs. Below `/v2` errors look as the Open Inference Protocol has them, `{"error": "..."}`, with 400 in
place of 422.

A request that met 429 or 503 may be sent again after the seconds in `Retry-After`, one that met 500 or 504 soon, and
one that met 409 once what stands in its way has changed; any other has to be changed itself.

## Codes of replies

"""
JOBS = """
## Codes of jobs

A job that failed, and a version of a dataset, has an `error` with one of these codes, or one of those above. What is
wrong with single images of a dataset is in its report, with the same codes; its findings explain themselves.

"""


def page() -> str:
    replies = _table(
        ("code", "status"), ((f"`{code}`", str(status), MEANINGS[code]) for code, status in STATUS.items())
    )
    return BEGIN + replies + JOBS + _table(("code",), ((f"`{code}`", OF_JOBS[code]) for code in sorted(OF_JOBS)))


def _table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    head = (*names, "what it means and what to do")
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
