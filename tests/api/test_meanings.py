"""Every code that is raised anywhere has a meaning, and the page of them is the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.meanings import MEANINGS, OF_JOBS
from api.problems import STATUS, responses
from tests.errors_page import PAGE, page

ROOT = Path(__file__).parent.parent.parent
RAISED = re.compile(r'(?:code ?= ?|\b(?:Problem|Refused|failed)\(\s*)"([a-z]+(?:_[a-z]+)*)"')
NEVER_SEEN = {
    "bpt_error": "what all have in common",
    "store_error": "what all have in common",
    "limit_reached": "what all limits have in common",
    "lease_lost": "a worker's own",
    "checkpoint_corrupt": "a worker begins again without it",
    "checkpoint_mismatch": "a worker begins again without it",
}


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == page()


def test_every_code_of_a_reply_has_a_status_and_a_meaning() -> None:
    assert {*MEANINGS} == {*STATUS}
    assert not {*OF_JOBS} & {*STATUS}
    for code, meaning in (MEANINGS | OF_JOBS).items():
        assert re.fullmatch(r"[A-Z].+\.", meaning), code
        assert "|" not in meaning, code


@pytest.mark.parametrize("package", ["api", "worker", "bpt_store", "bpt_core"])
def test_every_code_that_is_raised_has_a_meaning(package: str) -> None:
    raised = {code for path in (ROOT / package).rglob("*.py") for code in RAISED.findall(path.read_text())}
    assert len(raised) > 5
    assert raised - {*MEANINGS, *OF_JOBS, *NEVER_SEEN} == set()


def test_the_openapi_says_what_each_code_means() -> None:
    example = responses("gate_not_passed")[409]["content"]["application/problem+json"]["examples"]["gate_not_passed"]
    assert example["summary"] == MEANINGS["gate_not_passed"]
