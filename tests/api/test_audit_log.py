"""The audit log over HTTP: every operation that changes something leaves an entry, and who may read which."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.app import create_app
from bpt_core import artifact
from bpt_core.methods import Method
from bpt_core.recipe import Recipe
from bpt_store import audit, checkpoints, customers, ids, jobs, prompt_sets
from bpt_store.audit import Action, Filters
from bpt_store.checkpoints import Left
from bpt_store.customers import CUSTOMER_SCOPES, Scope
from bpt_store.db import Database
from bpt_store.models import AuditEntry, Dataset, DatasetState, DatasetVersion, JobKind
from bpt_store.prompt_sets import Publication
from bpt_store.settings import Role, Settings
from tests.published import probe

CHANGES = ("post", "put", "patch", "delete")
WITHOUT_ENTRY = {
    ("post", "/v1/predictions"): "changes nothing; usage counts it",
    ("post", "/v1/prompt-sets/{name}/versions/{version}/gate-checks"): "a batch prediction, told as one",
    ("put", "/v1/uploads/{upload_id}/parts/{number}"): "the upload has entries for its beginning and its end",
}
ZIP = {"Content-Type": "application/zip"}
NAMES = ("acme", "birds", "production", "a new name", "my key")  # what customers call things


@dataclass
class Story:
    """Requests one after another; of each that changes something the last entry must tell."""

    client: TestClient
    database: Database
    customer_id: UUID
    tokens: dict[str, str]
    told: set[tuple[str, str]] = field(default_factory=set)

    def do(self, verb: str, path: str, action: Action | None, *, who: str = "customer", **more: Any) -> Any:
        """`path` as in the OpenAPI, its parameters among `more` -> what is answered."""
        names = {name: more.pop(name) for name in [*more] if "{" + name + "}" in path}
        headers = {"Authorization": f"Bearer {self.tokens[who]}", **more.pop("headers", {})}
        before = len(self.entries())
        reply = self.client.request(verb, path.format(**names), headers=headers, **more)
        assert reply.is_success, (verb, path, reply.text)
        fresh = self.entries()[before:]
        if action is not None:
            assert [(entry.action, entry.request_id) for entry in fresh] == [(action, reply.headers["X-Request-Id"])]
            self.told.add((verb, path))
        else:
            assert fresh == []
        return reply.json() if reply.content else None

    def entries(self, customer: str | None = None) -> list[AuditEntry]:
        whose = ids.parse(ids.CUSTOMER, customer) if customer else None
        with self.database.system() as session:
            query = audit.entries(whose or self.customer_id, Filters())
            return list(session.scalars(query.order_by(AuditEntry.id)))


@pytest.fixture
def story(settings: Settings, database: Database, customer_id: UUID) -> Iterator[Story]:
    with database.system() as session:
        tokens = {
            "admin": customers.create_key(session, None, "administrator", [Scope.ADMIN])[1],
            "customer": customers.create_key(session, customer_id, "my key", CUSTOMER_SCOPES)[1],
            "reader": customers.create_key(session, customer_id, "my key", [Scope.JOBS_READ])[1],
        }
    with TestClient(create_app(settings.model_copy(update={"role": Role.API}))) as client:
        yield Story(client, database, customer_id, tokens)


@pytest.fixture
def dataset(database: Database, customer_id: UUID) -> str:
    with database.customer(customer_id) as session:
        row = Dataset(customer_id=customer_id, name="birds", state=DatasetState.READY, latest=1)
        session.add(row)
        session.flush()
        splits = {"train": 20, "val": 5, "test": 5}
        version = DatasetVersion(customer_id=customer_id, dataset_id=row.id, number=1, state=DatasetState.READY)
        version.task, version.class_names, version.images, version.splits = "single-label", ["a", "b"], 30, splits
        session.add(version)
        return ids.public(ids.DATASET, row.id)


def tell_of_customers(story: Story) -> None:
    customer, act = {"customer_id": ids.public(ids.CUSTOMER, story.customer_id), "who": "admin"}, "/v1/customers"
    story.do("patch", act + "/{customer_id}", Action.CUSTOMER_CHANGED, **customer, json={"name": "a new name"})
    story.do("post", act + "/{customer_id}/suspend", Action.CUSTOMER_SUSPENDED, **customer)
    story.do("post", act + "/{customer_id}/resume", Action.CUSTOMER_RESUMED, **customer)
    body = {"customer": customer["customer_id"], "name": "my key"}
    key = story.do("post", "/v1/api-keys", Action.KEY_CREATED, who="admin", json=body)["id"]
    story.do("post", "/v1/api-keys/{key_id}/rotate", Action.KEY_ROTATED, who="admin", key_id=key)
    story.do("post", "/v1/api-keys/{key_id}/revoke", Action.KEY_REVOKED, who="admin", key_id=key)
    story.client.headers["Authorization"] = f"Bearer {story.tokens['admin']}"
    made = story.client.post("/v1/customers", json={"name": "acme 2"}).json()["id"]
    assert [entry.action for entry in story.entries(made)] == ["customer.created"]
    assert story.client.delete(f"/v1/customers/{made}", params={"name": "acme 2"}).status_code == 204
    assert [entry.action for entry in story.entries(made)] == ["customer.created", "customer.deleted"]
    story.told |= {("post", "/v1/customers"), ("delete", "/v1/customers/{customer_id}")}


def tell_of_administrators(story: Story) -> None:
    """In a log of their own, for it is about no customer."""
    act, keys = "/v1/admin/api-keys", []
    story.client.headers["Authorization"] = f"Bearer {story.tokens['admin']}"
    keys.append(story.client.post(act, json={"name": "my key"}).json()["id"])
    keys.append(story.client.post(f"{act}/{keys[0]}/rotate").json()["id"])
    assert story.client.post(f"{act}/{keys[0]}/revoke").json()["revoked_at"] is not None
    log = story.client.get("/v1/admin/audit-log").json()["data"]
    assert [(entry["action"], entry["resource"], entry["customer"]) for entry in log] == [
        ("api_key.revoked", keys[0], None),
        ("api_key.rotated", keys[0], None),
        ("api_key.created", keys[0], None),
    ]
    assert log[1]["after"] == {"key": keys[1], "overlap_seconds": 86400}
    story.told |= {("post", act), ("post", act + "/{key_id}/rotate"), ("post", act + "/{key_id}/revoke")}


def tell_of_datasets(story: Story, dataset: str) -> None:
    story.do("post", "/v1/datasets", Action.DATASET_CREATED, params={"name": "birds"}, content=b"zip", headers=ZIP)
    upload = {"name": "birds", "media_type": "application/zip", "part_bytes": 5 << 20}
    first, second = (story.do("post", "/v1/uploads", Action.UPLOAD_CREATED, json=upload)["id"] for _ in range(2))
    digest = base64.b64encode(hashlib.sha256(b"zip").digest()).decode()
    part = {"upload_id": first, "number": 1, "content": b"zip", "headers": {"Content-Digest": f"sha-256=:{digest}:"}}
    story.do("put", "/v1/uploads/{upload_id}/parts/{number}", None, **part)
    story.do("post", "/v1/uploads/{upload_id}/complete", Action.UPLOAD_COMPLETED, upload_id=first)
    story.do("post", "/v1/uploads/{upload_id}/complete", None, upload_id=first)  # again changes nothing
    story.do("delete", "/v1/uploads/{upload_id}", Action.UPLOAD_DELETED, upload_id=second)
    one = {"dataset_id": dataset}
    story.do("patch", "/v1/datasets/{dataset_id}", Action.DATASET_CHANGED, **one, json={"name": "a new name"})
    story.do("delete", "/v1/datasets/{dataset_id}", Action.DATASET_DELETED, **one)


def tell_of_jobs(story: Story, dataset: str) -> dict[str, str]:
    """-> the tuning job."""
    act, recipe = "/v1/tuning-jobs", {"method": {"type": "linear-probe"}}
    asked = {"dataset": dataset, "prompt_set": "birds", **recipe}
    story.do("post", act, None, json={**asked, "dry_run": True})
    job = {"job_id": story.do("post", act, Action.JOB_CREATED, json=asked)["id"]}
    story.do("post", act + "/{job_id}/pause", Action.JOB_PAUSED, **job)
    story.do("post", act + "/{job_id}/resume", Action.JOB_RESUMED, **job)
    story.do("post", act + "/{job_id}/cancel", Action.JOB_CANCELLED, **job)
    story.do("post", act + "/{job_id}/retry", Action.JOB_RETRIED, **job)
    leave_checkpoints(story)
    publish = act + "/{job_id}/checkpoints/{epoch}/publish"
    for epoch in (1, 2):
        story.do("post", publish, Action.CHECKPOINT_PUBLISHED, **job, epoch=epoch)
    story.do("post", publish, None, **job, epoch=2)  # it is published already
    story.do("post", act + "/{job_id}/cancel", Action.JOB_CANCELLED, **job)
    alias, one = "/v1/prompt-sets/{name}/aliases/{alias}", {"name": "birds", "alias": "production"}
    for version in (1, 2):
        story.do("put", alias, Action.ALIAS_MOVED, **one, json={"version": version})
    story.do("put", alias, None, **one, json={"version": 2})
    story.do("post", alias + "/rollback", Action.ALIAS_MOVED, **one)
    story.do("delete", alias, Action.ALIAS_REMOVED, **one)
    tell_of_prompt_sets(story, dataset)
    act, asked = "/v1/batch-predictions", {"dataset": dataset, "prompt_sets": ["birds"]}
    batch = {"job_id": story.do("post", act, Action.BATCH_CREATED, json=asked)["id"]}
    story.do("post", act + "/{job_id}/cancel", Action.BATCH_CANCELLED, **batch)
    story.do("delete", act + "/{job_id}", Action.BATCH_DELETED, **batch)
    return job


def tell_of_prompt_sets(story: Story, dataset: str) -> None:
    act, one = "/v1/prompt-sets", {"name": "birds"}
    gate = {"dataset": dataset, "floor": 0.9}
    story.do("put", act + "/{name}/gate", Action.GATE_SET, **one, json=gate)
    story.do("delete", act + "/{name}/gate", Action.GATE_REMOVED, **one)
    story.do("patch", act + "/{name}", Action.SET_CHANGED, **one, json={"description": "a new name"})
    version: dict[str, Any] = {**one, "version": 2}
    act += "/{name}/versions/{version}"
    story.do("patch", act, Action.SET_VERSION_CHANGED, **version, json={"description": "a new name"})
    for verb, action in (("archive", Action.SET_VERSION_ARCHIVED), ("unarchive", Action.SET_VERSION_UNARCHIVED)):
        story.do("post", f"{act}/{verb}", action, **version)
    learned: dict[str, Any] = {**one, "version": publish_learned(story, dataset)}
    again = {"job_id": story.do("post", act + "/reproduce", Action.JOB_CREATED, **learned)["id"]}
    story.do("post", "/v1/tuning-jobs/{job_id}/cancel", Action.JOB_CANCELLED, **again)
    tell_of_quarantine(story, act, learned)
    story.do("post", act + "/archive", Action.SET_VERSION_ARCHIVED, **version)
    story.do("delete", act, Action.SET_VERSION_DELETED, **version)
    story.client.headers["Authorization"] = f"Bearer {story.tokens['customer']}"
    story.do("post", "/v1/prompt-sets", Action.SET_CREATED, json={"name": "production"})
    story.do("delete", "/v1/prompt-sets/{name}", Action.SET_DELETED, name="production")


def tell_of_quarantine(story: Story, act: str, learned: dict[str, Any]) -> None:
    headers, data = {"Content-Type": "application/vnd.safetensors"}, artifact.to_bytes(probe())
    story.do("put", act + "/artifact", None, **learned, content=data, headers=headers)  # that is what it has
    damage, repair = "artifact || 'x'", f"'\\x{data.hex()}'"
    sent: dict[str, Any] = {"content": data, "headers": headers}
    for verb, path, more in (("post", "/release", {}), ("put", "/artifact", sent)):
        store_artifact(story, learned["version"], damage)
        token = story.tokens["customer"]
        reply = story.client.get(
            act.format(**learned) + "/artifact",
            headers={"Authorization": f"Bearer {token}", "X-Request-Id": "req_" + "0" * 24},
        )
        assert reply.status_code == 503
        found = story.entries()[-1]
        assert (found.action, found.actor, found.after) == (
            Action.SET_VERSION_QUARANTINED,
            audit.SERVICE,
            {"version": learned["version"]},
        )
        assert found.request_id == reply.headers["X-Request-Id"]
        if verb == "post":
            store_artifact(story, learned["version"], repair)
        story.do(verb, act + path, Action.SET_VERSION_RELEASED, **learned, **more)
        if verb == "post":
            story.do(verb, act + path, None, **learned)  # it is out already


def store_artifact(story: Story, version: int, expression: str) -> None:
    with story.database.customer(story.customer_id) as session:
        session.execute(text(f"UPDATE prompt_set_versions SET artifact = {expression} WHERE version = {version}"))


def tell_of_webhooks(story: Story) -> None:
    act = "/v1/webhook-endpoints"
    body = {"url": "https://1.1.1.1/birds", "description": "my key"}
    one = {"endpoint_id": story.do("post", act, Action.WEBHOOK_CREATED, json=body)["id"]}
    act += "/{endpoint_id}"
    story.do("patch", act, Action.WEBHOOK_CHANGED, **one, json={"description": "a new name"})
    story.do("post", act + "/rotate-secret", Action.WEBHOOK_SECRET_ROTATED, **one, json={})
    story.do("post", act + "/enable", Action.WEBHOOK_ENABLED, **one)
    sent = {"delivery_id": story.do("post", act + "/test", Action.WEBHOOK_TESTED, **one)["id"]}
    story.do("post", act + "/deliveries/{delivery_id}/replay", Action.WEBHOOK_REPLAYED, **one, **sent)
    since = {"since": "2026-01-01T00:00:00Z"}
    story.do("post", act + "/deliveries/replay", Action.WEBHOOK_REPLAYED, **one, json=since)
    story.do("delete", act, Action.WEBHOOK_DELETED, **one)


def tell_of_imports(story: Story) -> None:
    headers = {"Content-Type": "application/vnd.safetensors"}
    act, data = "/v1/prompt-sets/{name}/versions", artifact.to_bytes(probe())
    story.do("post", act, Action.SET_VERSION_IMPORTED, name="birds", content=data, headers=headers)


def publish_learned(story: Story, dataset: str) -> int:
    """A version as a tuning job publishes it -> its number."""
    facts: dict[str, Any] = {
        "backbone": probe().backbone,
        "backbone_fingerprint": probe().backbone_fingerprint,
        "metrics": {},
    }
    recipe = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0).to_dict()
    made = Publication(artifact.to_bytes(probe()), class_names=["a", "b"], recipe=recipe, parameters=0, **facts)
    learned: dict[str, Any] = {"job_id": uuid4(), "dataset_id": ids.parse(ids.DATASET, dataset), "dataset_version": 1}
    with story.database.customer(story.customer_id) as session:
        birds = prompt_sets.get(session, "birds")
        return prompt_sets.publish(session, birds.id, made, **learned).version


def leave_checkpoints(story: Story) -> None:
    with story.database.system() as session:
        job = jobs.claim(session, JobKind.TUNE, "a worker", 0)
    assert job is not None
    recipe = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0).to_dict()
    facts = {"backbone_fingerprint": "f", "class_names": ["a", "b"], "recipe": recipe, "parameters": 7}
    with story.database.customer(story.customer_id) as session:
        for epoch in (1, 2):
            left = Left(epoch, b"artifact %d" % epoch, 0.5, {"images": 4, "loss": 1.0, "top1": 0.5}, facts)
            checkpoints.keep(session, jobs.fence_of(job), left, most=20)


def test_every_operation_that_changes_something_leaves_an_entry_in_the_same_request(story: Story, dataset: str) -> None:
    tell_of_customers(story)
    tell_of_administrators(story)
    job = tell_of_jobs(story, dataset)
    tell_of_imports(story)
    tell_of_webhooks(story)
    act, body = "/v1/datasets/{dataset_id}/versions", {"remove": [f"itm_{'0' * 24}"]}
    story.do("post", act, Action.VERSION_CREATED, dataset_id=dataset, json=body)
    with story.database.system() as session:
        assert jobs.claim(session, JobKind.INGEST, "a worker", 0) is not None
        assert jobs.requeue_expired(session, max_failures=1, backoff_seconds=0) == 2  # that one, and what was tuned
    story.do("delete", "/v1/tuning-jobs/{job_id}", Action.JOB_DELETED, **job)
    tell_of_datasets(story, dataset)
    paths = story.client.get("/openapi.json").json()["paths"]
    changing = {(verb, path) for path in paths for verb in paths[path] if verb in CHANGES and path.startswith("/v1/")}
    assert story.told | {*WITHOUT_ENTRY} == changing
    assert {entry.action for entry in story.entries()} | {"customer.created", "customer.deleted"} == {*Action}
    everything = str([(entry.resource, entry.before, entry.after, entry.request_id) for entry in story.entries()])
    assert not [name for name in NAMES if name in everything]


def test_a_customer_reads_what_was_done_by_him_and_to_him_and_nobody_elses(story: Story, dataset: str) -> None:
    story.do("delete", "/v1/datasets/{dataset_id}", Action.DATASET_DELETED, dataset_id=dataset)
    mine = ids.public(ids.CUSTOMER, story.customer_id)
    changed, him = {"weight": 2, "queued_jobs_limit": 5}, {"who": "admin", "customer_id": mine}
    story.do("patch", "/v1/customers/{customer_id}", Action.CUSTOMER_CHANGED, **him, json=changed)
    with story.database.system() as session:
        other = customers.create(session, "other").id
        story.tokens["other"] = customers.create_key(session, other, "k", CUSTOMER_SCOPES)[1]
    read = story.do("get", "/v1/audit-log", None)
    assert read == story.do("get", "/v1/customers/{customer_id}/audit-log", None, who="admin", customer_id=mine)
    first, second = read["data"]
    assert (first["action"], first["resource_type"], first["resource"]) == ("customer.changed", "customer", mine)
    assert (first["before"], first["after"]) == ({"weight": 1.0, "queued_jobs_limit": None}, changed)
    assert (second["action"], second["resource"], second["customer"]) == ("dataset.deleted", dataset, mine)
    assert story.do("get", "/v1/audit-log", None, who="other")["data"] == []
    page = story.do("get", "/v1/audit-log", None, params={"limit": 1})
    assert page["has_more"] is True
    assert story.do("get", "/v1/audit-log", None, params={"after": page["next_cursor"]})["data"] == [second]
    for params in ({"action": "dataset.deleted"}, {"resource": dataset}, {"until": first["at"]}):
        assert story.do("get", "/v1/audit-log", None, params=params)["data"] == [second], params
    for params in ({"actor": first["actor"]}, {"since": first["at"]}):
        assert story.do("get", "/v1/audit-log", None, params=params)["data"] == [first], params


@pytest.mark.parametrize(
    ("who", "path", "params", "status"),
    [
        ("reader", "/v1/audit-log", {}, 403),
        ("admin", "/v1/audit-log", {}, 403),
        ("customer", "/v1/customers/cus_" + "0" * 32 + "/audit-log", {}, 403),
        ("admin", "/v1/customers/cus_" + "0" * 32 + "/audit-log", {}, 200),  # whoever is gone has a log all the same
        ("customer", "/v1/audit-log", {"action": "party"}, 422),
        ("customer", "/v1/audit-log", {"since": "2026-01-01T00:00:00"}, 422),
        ("customer", "/v1/audit-log", {"resource": "birds\0"}, 422),
        ("customer", "/v1/audit-log", {"actor": "birds"}, 404),
        ("customer", "/v1/audit-log", {"after": "birds"}, 404),
    ],
)
def test_who_may_read_and_what_can_be_asked(
    story: Story, who: str, path: str, params: dict[str, str], status: int
) -> None:
    reply = story.client.get(path, params=params, headers={"Authorization": f"Bearer {story.tokens[who]}"})
    assert reply.status_code == status, reply.text
