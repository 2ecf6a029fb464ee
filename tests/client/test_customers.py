"""What an administrator does from a shell, on the real service: limits, suspension, keys, audit log, deletion."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from bpt_client.cli import main
from tests.service import Customer, Service

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bpt(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """bpt(*arguments, key): a command line -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("BPT_URL", service.url)

    def run(*arguments: str, key: str = service.admin_key) -> tuple[int, str, str]:
        monkeypatch.setenv("BPT_API_KEY", key)
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def ask(bpt: Run) -> Callable[..., Any]:
    """ask(*arguments, key): what a command answers as JSON."""

    def run(*arguments: str, **key: str) -> Any:
        code, out, err = bpt(*arguments, "--json", **key)
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def customer(service: Service) -> Customer:
    return service.new_customer()


def test_limits_are_set_and_given_back_to_the_service(bpt: Run, ask: Callable[..., Any], customer: Customer) -> None:
    changed = ask("customers", "change", customer.id, "--weight", "2.5", "--quota-images", "7")
    assert (changed["weight"], changed["quota_images"], changed["quota_bytes"]) == (2.5, 7, None)
    changed = ask("customers", "change", customer.id, "--requests-per-minute", "0", "--upload-bytes-per-day", "5")
    assert [changed[rate] for rate in ("requests_per_minute", "images_per_minute", "upload_bytes_per_day")] == [
        *(0, None, 5)
    ]
    changed = ask("customers", "change", customer.id, "--quota-images", "default")
    assert (changed["weight"], changed["quota_images"]) == (2.5, None)
    assert ask("customers", "show", customer.id) == changed
    for wrong in (("--weight", "heavy"), ("--weight", "0"), ()):
        assert bpt("customers", "change", customer.id, *wrong)[0] == 1


def test_a_customer_is_suspended_resumed_and_deleted(bpt: Run, customer: Customer, service: Service) -> None:
    def listed() -> tuple[int, str, str]:
        return bpt("datasets", "list", key=customer.key)

    assert bpt("customers", "suspend", customer.id)[0] == 0
    assert (listed()[0], "customer_suspended" in listed()[2]) == (1, True)
    assert bpt("customers", "resume", customer.id)[0] == 0
    assert listed()[0] == 0
    code, _, err = bpt("customers", "delete", customer.id, "--name", "another")
    assert (code, "name_mismatch" in err) == (1, True)
    with service.client(service.admin_key) as admin:
        name = admin.get(f"/v1/customers/{customer.id}").json()["name"]
    assert bpt("customers", "delete", customer.id, "--name", name)[0] == 0
    assert "401 unauthenticated" in listed()[2]


def test_a_key_is_rotated(bpt: Run, ask: Callable[..., Any], customer: Customer) -> None:
    made = ask("keys", "rotate", customer.key_id, "--overlap-hours", "0")
    assert bpt("datasets", "list", key=customer.key)[0] == 1
    assert bpt("datasets", "list", key=made["token"])[0] == 0
    code, out, _ = bpt("keys", "list", "--customer", customer.id)
    assert code == 0
    assert made["id"] in out
    assert made["token"] not in out


def test_the_audit_log_is_read_by_the_customer_and_by_administrators(
    bpt: Run, ask: Callable[..., Any], customer: Customer
) -> None:
    bpt("customers", "change", customer.id, "--weight", "2")
    own = ask("audit-log", key=customer.key)
    assert [entry["action"] for entry in own] == ["customer.changed", "api_key.created", "customer.created"]
    assert (own[0]["before"], own[0]["after"]) == ({"weight": 1.0}, {"weight": 2.0})
    assert ask("audit-log", "--customer", customer.id) == own
    assert ask("audit-log", "--action", "api_key.created", key=customer.key) == [own[1]]
    tomorrow = (datetime.now() + timedelta(days=1)).isoformat(timespec="seconds")
    assert ask("audit-log", "--since", tomorrow, key=customer.key) == []
    code, out, _ = bpt("audit-log", key=customer.key)
    assert code == 0
    assert "weight=1.0" in out
