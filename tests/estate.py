"""A customer who owns one of everything, and what to ask the interface for each of these things."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sqlalchemy import text

from bpt_core import artifact
from bpt_core.items import IndexedItem, write_items
from bpt_core.methods import Method
from bpt_core.pictures import Facts, Split
from bpt_core.recipe import Recipe
from bpt_store import aliases, audit, customers, idempotency, ids, jobs, prompt_sets, uploads, usage, webhooks
from bpt_store.audit import Actor
from bpt_store.customers import CUSTOMER_SCOPES
from bpt_store.db import Database
from bpt_store.idempotency import Reply, Sender
from bpt_store.models import (
    Base,
    Dataset,
    DatasetState,
    DatasetVersion,
    Evaluation,
    Gate,
    JobCheckpoint,
    JobKind,
)
from bpt_store.objects import Objects
from bpt_store.prompt_sets import Publication
from bpt_store.quotas import Limits
from bpt_store.uploads import Intent, Part
from tests.published import probe

ITEM = "itm_" + "1" * 24
DIGEST = "2" * 64
PART = b"a part"
ARTIFACT = artifact.to_bytes(probe())
PLENTY = Limits(datasets=9, images=99, stored_bytes=1 << 30)
_PARAMETER = re.compile(r"([a-z-]+)/\{(\w+)\}")


@dataclass(frozen=True)
class Estate:
    """`examples`: "tuning-jobs/{job_id}" -> what stands for it in a path."""

    customer_id: UUID
    token: str
    examples: Mapping[str, str]

    def path(self, pattern: str) -> str:
        """A path of the OpenAPI with all its parameters filled in; KeyError for one that has no example here."""
        return _PARAMETER.sub(lambda found: f"{found[1]}/{self.examples[found[0]]}", pattern)

    def request(self, operation_id: str) -> dict[str, Any]:
        """What an operation needs besides its path, so that nothing but the path can be wrong with it."""
        dataset, prompt_set = self.examples["datasets/{dataset_id}"], self.examples["prompt-sets/{name}"]
        customer, image = self.examples["customers/{customer_id}"], base64.b64encode(b"no image").decode()
        infer = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}]}
        digest = base64.b64encode(hashlib.sha256(PART).digest()).decode()
        seen = {"headers": {"If-None-Match": f'"{DIGEST}"'}}
        tuning = {"dataset": dataset, "prompt_set": prompt_set, "method": {"type": "linear-probe"}}
        requests: dict[str, dict[str, Any]] = {
            "createCustomer": {"json": {"name": "somebody new"}},
            "changeCustomer": {"json": {"weight": 2}},
            "deleteCustomer": {"params": {"name": "nobody"}},
            "createApiKey": {"json": {"customer": customer, "name": "k"}},
            "createAdminApiKey": {"json": {"name": "k"}},
            "listApiKeys": {"params": {"customer": customer}},
            "createDataset": {
                "params": {"name": "d"},
                "content": b"zip",
                "headers": {"Content-Type": "application/zip"},
            },
            "changeDataset": {"json": {"name": "mine now"}},
            "createDatasetVersion": {"json": {"remove": [ITEM]}},
            "createUpload": {"json": {"dataset": dataset, "media_type": "application/zip"}},
            "putUploadPart": {"content": PART, "headers": {"Content-Digest": f"sha-256=:{digest}:"}},
            "getDatasetItemThumbnail": seen,
            "getDatasetItemImage": seen,
            "createTuningJob": {"json": tuning},
            "createPromptSet": {"json": {"name": "anything"}},
            "changePromptSet": {"json": {"description": "mine now"}},
            "changePromptSetVersion": {"json": {"description": "mine now"}},
            "movePromptSetAlias": {"json": {"version": 1}},
            "setPromptSetGate": {"json": {"dataset": dataset, "floor": 0.1}},
            "importPromptSetVersion": {
                "content": b"no artifact",
                "headers": {"Content-Type": "application/vnd.safetensors"},
            },
            "restoreArtifact": {
                "content": ARTIFACT,
                "headers": {"Content-Type": "application/vnd.safetensors"},
            },
            "compareBatchPrediction": {"params": {"a": "birds:1", "b": "birds:2"}},
            "listFlippedImages": {"params": {"a": "birds:1", "b": "birds:2"}},
            "createBatchPrediction": {"json": {"dataset": dataset, "prompt_sets": [prompt_set]}},
            "createWebhookEndpoint": {"json": {"url": "https://93.184.216.34/hook"}},
            "updateWebhookEndpoint": {"json": {"description": "mine now"}},
            "rotateWebhookSecret": {"json": {}},
            "replayDeadWebhookDeliveries": {"json": {"since": "2026-01-01T00:00:00Z"}},
            "createPredictions": {"json": {"prompt_sets": [prompt_set], "images": [{"data": image}]}},
            "infer": {"json": infer},
            "inferWithVersion": {"json": infer},
        }
        return requests.get(operation_id, {})


def nobodys() -> Estate:
    """Names and ids of nothing."""

    def unknown(prefix: str) -> str:
        return ids.public(prefix, uuid4())

    return Estate(
        uuid4(),
        "",
        {
            "customers/{customer_id}": unknown(ids.CUSTOMER),
            "api-keys/{key_id}": unknown(ids.KEY),
            "datasets/{dataset_id}": unknown(ids.DATASET),
            "items/{item_id}": ITEM,
            "uploads/{upload_id}": unknown(ids.UPLOAD),
            "parts/{number}": "2",
            "tuning-jobs/{job_id}": unknown(ids.JOB),
            "checkpoints/{epoch}": "1",
            "batch-predictions/{job_id}": unknown(ids.JOB),
            "prompt-sets/{name}": "birds",
            "models/{name}": "birds",
            "versions/{number}": "1",
            "versions/{version}": "1",
            "aliases/{alias}": "production",
            "webhook-endpoints/{endpoint_id}": unknown(ids.WEBHOOK),
            "deliveries/{delivery_id}": unknown(ids.DELIVERY),
        },
    )


def settle(database: Database, objects: Objects, directory: Path, name: str) -> Estate:
    """A new customer with one of everything."""
    with database.system() as session:
        customer_id = customers.create(session, name).id
        key, token = customers.create_key(session, customer_id, "key", CUSTOMER_SCOPES)
    stored = _store_dataset(objects, directory / name, f"datasets/{uuid4().hex}")
    recipe = Recipe(method=Method.LINEAR_PROBE, prompts=0, rank=0).to_dict()
    facts = {"backbone_fingerprint": "f", "class_names": ["a", "b"], "recipe": recipe, "parameters": 7}
    with database.customer(customer_id) as session:
        audit.act_as(session, Actor(key.id, "req_1"))
        dataset = Dataset(customer_id=customer_id, name="d", state=DatasetState.READY, latest=1)
        session.add(dataset)
        session.flush()
        version = DatasetVersion(customer_id=customer_id, dataset_id=dataset.id, number=1, state=DatasetState.READY)
        version.task, version.class_names, version.images = "single-label", ["a", "b"], 30
        version.splits, version.objects = {"train": 20, "val": 5, "test": 5}, stored
        session.add(version)
        on: dict[str, Any] = {"dataset_id": dataset.id, "dataset_version": 1}
        intent = Intent(name="d")
        upload = uploads.begin(
            session, customer_id, intent, "application/zip", limits=PLENTY, seconds=600, part_bytes=5 << 20
        )
        uploads.keep_part(session, upload.id, Part(1, "key", "sha256", 1), PLENTY, most=9, seconds=600)
        prompt_set = prompt_sets.get_or_create(session, customer_id, "birds")
        payload: dict[str, Any] = {"backbone": "vit_tiny_patch8_64.mae", "prompt_set": "birds", "recipe": recipe}
        payload |= {"search": None, "budget": None, "continue_from": None, "estimated_seconds": 1.0, "parameters": 7}
        tuning = jobs.create(session, customer_id, JobKind.TUNE, payload=payload, prompt_set_id=prompt_set.id, **on)
        publication = Publication(ARTIFACT, "vit_tiny_patch8_64.mae", "f", ["a", "b"], recipe, 7, {})
        prompt_sets.publish(session, prompt_set.id, publication, job_id=tuning.id, dataset_id=dataset.id)
        of: dict[str, Any] = {"customer_id": customer_id, "prompt_set_id": prompt_set.id}
        aliases.move(session, prompt_set.id, "production", 1, actor="key")
        session.add(Gate(metric="top1", floor=0.5, **of, **on))
        session.add(Evaluation(version=1, metrics={}, job_id=tuning.id, **of, **on))
        left: dict[str, Any] = {
            "artifact": ARTIFACT,
            "sha256": artifact.sha256(ARTIFACT),
            "bytes": len(ARTIFACT),
            "score": 0.5,
            "val": {"top1": 0.5},
        }
        session.add(JobCheckpoint(customer_id=customer_id, job_id=tuning.id, epoch=1, attempt=1, facts=facts, **left))
        payload = {"prompt_sets": [], "split": None, "top_k": 3, "images": 30}
        batch = jobs.create(session, customer_id, JobKind.BATCH_PREDICT, payload=payload, **on)
        jobs.create(session, customer_id, JobKind.INGEST, payload={}, **on)
        endpoint = webhooks.create(session, customer_id, "https://example.com/hook")
        delivery = webhooks.test(session, endpoint.id)
        jobs.doom(session, customer_id, "key")
        usage.add(session, customer_id, online_images=1)
        idempotency.keep(session, Sender.customer(customer_id), "key", b"request", Reply(201, b"{}"), 24)
        examples = {
            "customers/{customer_id}": ids.public(ids.CUSTOMER, customer_id),
            "api-keys/{key_id}": ids.public(ids.KEY, key.id),
            "datasets/{dataset_id}": ids.public(ids.DATASET, dataset.id),
            "uploads/{upload_id}": ids.public(ids.UPLOAD, upload.id),
            "tuning-jobs/{job_id}": ids.public(ids.JOB, tuning.id),
            "batch-predictions/{job_id}": ids.public(ids.JOB, batch.id),
            "webhook-endpoints/{endpoint_id}": ids.public(ids.WEBHOOK, endpoint.id),
            "deliveries/{delivery_id}": ids.public(ids.DELIVERY, delivery.id),
        }
    return Estate(customer_id, token, {**nobodys().examples, **examples})


def _store_dataset(objects: Objects, directory: Path, prefix: str) -> dict[str, Any]:
    """One item, with its picture and its thumbnail -> what a version says of its objects."""
    directory.mkdir()
    facts = Facts(24, 18, 0.1, 0.2, 0.3, 4.0, 0)
    item = IndexedItem(ITEM, "a/1.png", DIGEST, "PNG", ("a",), Split.TRAIN, None, (24, 18), facts, (), 0, 0, 0, 10)
    write_items(directory / "items", [item])
    picture, thumbnail = io.BytesIO(), b"thumbnail."
    Image.new("RGB", (24, 18)).save(picture, "PNG")
    pq.write_table(pa.table({"image": [{"bytes": picture.getvalue(), "path": "a/1.png"}]}), directory / "shard")
    (directory / "thumbnails").write_bytes(thumbnail)
    for name in ("items", "shard", "thumbnails"):
        objects.put_file(f"{prefix}/{name}", directory / name)
    key = {name: {"key": f"{prefix}/{name}"} for name in ("items", "shard", "thumbnails")}
    return {"items": key["items"], "shards": [key["shard"]], "thumbnails": key["thumbnails"]}


def rows(database: Database, customer_id: UUID) -> dict[str, list[str]]:
    """Every row of a customer's by its table, as text."""
    found = {}
    with database.system() as session:
        for table in Base.metadata.sorted_tables:
            column = "id" if table.name == "customers" else "customer_id"
            query = text(f"SELECT each::text FROM {table.name} AS each WHERE {column} = :customer_id ORDER BY 1")
            found[table.name] = list(session.scalars(query, {"customer_id": customer_id}))
    return found
