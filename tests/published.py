"""Prompt sets that were never tuned, put where tuning puts its own."""

from __future__ import annotations

import json
from uuid import uuid4

from bpt_core import artifact
from bpt_core.artifact import PromptSet
from tests.service import Customer


def publish(customer: Customer, *versions: PromptSet, name: str | None = None) -> str:
    """A prompt set with these versions -> its name."""
    name = name or f"set-{uuid4().hex}"
    for number, prompt_set in enumerate(versions, start=1):
        data = artifact.to_bytes(prompt_set)
        customer.service.rows(
            "INSERT INTO prompt_sets (customer_id, name) VALUES (:customer, :name) ON CONFLICT DO NOTHING RETURNING 1",
            customer=customer.uuid,
            name=name,
        )
        customer.service.rows(
            "INSERT INTO prompt_set_versions (prompt_set_id, version, customer_id, artifact, artifact_sha256, "
            "artifact_bytes, backbone, backbone_fingerprint, class_names, recipe, parameters, metrics) "
            "SELECT id, :number, customer_id, :data, :sha256, :bytes, :backbone, :fingerprint, :classes, '{}', 0, '{}' "
            "FROM prompt_sets WHERE customer_id = :customer AND name = :name RETURNING 1",
            customer=customer.uuid,
            name=name,
            number=number,
            data=data,
            sha256=artifact.sha256(data),
            bytes=len(data),
            backbone=prompt_set.backbone,
            fingerprint=prompt_set.backbone_fingerprint,
            classes=json.dumps(prompt_set.class_names),
        )
    return name
