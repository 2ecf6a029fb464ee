"""A version learned once more by the running service: the same bytes, until its lineage is tampered with."""

from __future__ import annotations

from typing import Any

from tests import archives
from tests.service import Customer, Service


def reproduced(customer: Customer) -> dict[str, Any]:
    with customer.http() as http:
        reply = http.post("/v1/prompt-sets/flowers/versions/1/reproduce")
    assert reply.status_code == 201, reply.text
    job = customer.finished(reply.json())
    assert job["state"] == "succeeded", job
    found: dict[str, Any] = job["reproduction"]
    return found


def test_a_version_comes_out_bit_for_bit_and_with_another_seed_it_does_not(service: Service) -> None:
    customer = service.new_customer()
    first = customer.finished(customer.tune(customer.upload(archives.flowers(), "flowers")))
    assert first["state"] == "succeeded", first
    same = reproduced(customer)
    assert (same["verdict"], same["agreement"]) == ("identical", 1.0)
    assert all(each["is_equal"] for each in same["tensors"].values())
    assert same["then"] == same["now"]
    assert same["now"]["artifact_sha256"] == first["result"]["artifact_sha256"]
    service.rows(
        "UPDATE jobs SET payload = jsonb_set(payload, '{recipe,seed}', '1') "
        "WHERE customer_id = :customer AND NOT payload ? 'reproduces' RETURNING 1",
        customer=customer.uuid,
    )
    other = reproduced(customer)
    assert other["verdict"] == "different"
    assert not other["tensors"]["prompts"]["is_equal"]
    assert other["now"]["artifact_sha256"] != other["then"]["artifact_sha256"] == same["then"]["artifact_sha256"]
    with customer.http() as http:
        assert http.get("/v1/prompt-sets/flowers").json()["latest_version"] == 1
