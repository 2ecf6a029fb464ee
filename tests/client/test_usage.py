"""`bpt usage`, against a server that answers as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.client.conftest import Server

DAY: dict[str, Any] = {
    "customer": "cus_1",
    "day": "2026-11-23",
    "online_images": 1234,
    "batch_images": 7,
    "tuning_seconds": 61.5,
    "batch_seconds": 0.0,
    "stored_bytes": None,
}
TABLE = "customer,day,online_images\r\ncus_1,2026-11-23,1234\r\n"
Run = Callable[..., tuple[int, str, str]]


def test_usage_is_a_table_for_people_and_json_for_scripts(server: Server, bpt: Run) -> None:
    server.will(server.page(DAY))
    code, out, _ = bpt("usage", "--from", "2026-11-01", "--to", "2026-11-30")
    assert (code, "2026-11-23" in out, "1234" in out) == (0, True, True)
    assert server.received[0].path == "/v1/usage?limit=100&from=2026-11-01&to=2026-11-30"
    code, out, _ = bpt("usage", "--customer", "cus_1", "--json")
    assert (code, json.loads(out)) == (0, [DAY])
    assert server.received[1].path == "/v1/usage?limit=100&customer=cus_1"


def test_csv_is_passed_on_as_it_comes(server: Server, bpt: Run) -> None:
    server.will(server.raw(200, TABLE.encode(), Content_Type="text/csv; charset=utf-8"))
    assert bpt("usage", "--csv", "--from", "2026-11-01") == (0, TABLE, "")
    assert server.received[0].headers["Accept"] == "text/csv"
    assert server.received[0].path == "/v1/usage?from=2026-11-01"


def test_a_day_that_is_none_is_refused_before_anything_is_asked(server: Server, bpt: Run) -> None:
    assert bpt("usage", "--from", "yesterday")[0] == 2
    assert server.received == []
