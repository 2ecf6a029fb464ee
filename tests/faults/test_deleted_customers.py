"""A customer is deleted while a job of his runs: the job stops, and no row or object of his is left."""

from __future__ import annotations

from typing import Any

from bpt_store.models import Base
from tests import archives
from tests.service import Customer, Service, eventually

LONG: dict[str, Any] = {"hyperparameters": {"epochs": 5000, "views": 1}}
PSEUDONYMOUS = {"doomed_objects", "audit_log"}  # ids only: what is looked for once more, and what was done


def has_checkpoint(customer: Customer, job: dict[str, Any]) -> bool:
    prefix = f"jobs/{job['id'].removeprefix('job_')}/"
    return any(key.startswith(prefix) for key in customer.service.objects())


def rows_of(service: Service, customer: Customer) -> set[str]:
    """Tables with a row of the customer's."""
    found = set()
    for table in Base.metadata.tables.values():
        column = "id" if table.name == "customers" else "customer_id"
        if service.rows(f"SELECT 1 FROM {table.name} WHERE {column} = :id LIMIT 1", id=customer.uuid):
            found.add(table.name)
    return found


def test_a_customer_deleted_while_a_job_runs_leaves_nothing(service: Service) -> None:
    customer, other = service.new_customer(), service.new_customer()
    kept = other.upload(archives.flowers())
    dataset = customer.upload(archives.flowers())
    job = customer.tune(dataset, **LONG)
    eventually(lambda: has_checkpoint(customer, job) or None, what="a checkpoint")
    with service.client(service.admin_key) as admin:
        name = admin.get(f"/v1/customers/{customer.id}").json()["name"]
        assert admin.delete(f"/v1/customers/{customer.id}", params={"name": name}).status_code == 204
    assert rows_of(service, customer) <= PSEUDONYMOUS
    with customer.http() as http:
        assert http.get("/v1/tuning-jobs").status_code == 401
    eventually(lambda: service.processes("worker.trainer")[1:] == [] or None, seconds=10, what="the end of the trainer")
    ids = [each["id"].partition("_")[2] for each in (dataset, job)]

    def nothing_is_left() -> bool | None:
        left = [key for key in service.objects() if any(each in key for each in ids)]
        due = service.rows(
            "SELECT 1 FROM doomed_objects WHERE customer_id = :id AND not_before < now()", id=customer.uuid
        )
        return True if not left and not due else None

    eventually(nothing_is_left, seconds=30, what="the end of all objects")
    assert rows_of(service, customer) <= PSEUDONYMOUS
    assert list((service.data_dir / "work").glob(f"{ids[1]}-*")) == []
    assert other.finished(other.tune(kept))["state"] == "succeeded"
