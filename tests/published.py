"""Prompt sets that were never tuned, and how they are put where tuning puts its own."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import torch

from bpt_core import artifact, catalog
from bpt_core.artifact import PromptSet
from tests.service import Customer


def probe(**facts: Any) -> PromptSet:
    """A head for the bundled backbone; what is given takes the place of its facts."""
    spec = catalog.find(catalog.DEFAULT_BACKBONE)
    assert spec.fingerprint is not None
    return PromptSet(
        **{
            "prompts": None,
            "head_weight": torch.ones(2, spec.embed_dim),
            "head_bias": torch.zeros(2),
            "class_names": ("a", "b"),
            "method": {"type": "linear-probe", "depth": "shallow", "prompts": 0, "rank": 0},
            "backbone": spec.name,
            "backbone_fingerprint": spec.fingerprint,
            "pooling": "mean-all",
            "preprocessing": {"image_size": spec.image_size, "mean": [*spec.mean], "std": [*spec.std]},
            **facts,
        }
    )


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
