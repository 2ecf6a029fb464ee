"""Prompt sets, their versions and aliases, over the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import Query
from pydantic import AfterValidator, BaseModel, Field

from api.schemas import Metadata, PlainText, PromptSetName, Request
from api.tuning_schemas import ContinuedFrom, split_recipe
from bpt_store import ids, models
from bpt_store.prompt_sets import Label

_TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"
_PAIR = r"^[^\x00-\x1f\x7f]*=[^\x00-\x1f\x7f]*$"


def _text(text: str) -> str:
    if not re.fullmatch(_TEXT, text):
        raise ValueError("control characters but tabs and line breaks are not allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("lone surrogates are not allowed") from None
    return text


def _pair(text: str) -> str:
    if not re.fullmatch(_PAIR, text):
        raise ValueError("as in metadata=team=birds")
    return text


Description = Annotated[
    str,
    AfterValidator(_text),
    Field(max_length=2000, json_schema_extra={"pattern": _TEXT}, examples=["birds of Lake Constance"]),
]
MetadataFilter = Annotated[
    list[Annotated[str, AfterValidator(_pair), Field(max_length=600, json_schema_extra={"pattern": _PAIR})]] | None,
    Query(max_length=16, description="only what has this `key=value` in its metadata; several: all of them"),
]


class LabelChange(Request):
    """What is absent stays as it is; metadata are replaced as a whole."""

    description: Description | None = Field(None, description="an empty one removes it")
    metadata: Metadata | None = None

    def label(self) -> Label:
        return Label(self.description, self.metadata)


class PromptSetCreate(LabelChange):
    name: PromptSetName


def wanted(metadata: list[str] | None) -> dict[str, str]:
    """What a MetadataFilter asks for."""
    return dict(each.split("=", 1) for each in metadata or ())


class PromptSet(BaseModel):
    id: str
    name: str
    latest_version: int | None
    aliases: dict[str, int] = Field(description="the version each alias points at", examples=[{"production": 3}])
    description: str | None
    metadata: dict[str, str]
    created_at: datetime

    @classmethod
    def of(cls, row: models.PromptSet, latest_version: int | None, aliases: Mapping[str, int]) -> Self:
        return cls(
            id=ids.public(ids.PROMPT_SET, row.id),
            name=row.name,
            latest_version=latest_version,
            aliases=dict(aliases),
            description=row.description,
            metadata=row.custom,
            created_at=row.created_at,
        )


class PromptSetVersion(BaseModel):
    """Immutable but for description, metadata, the archive and quarantine."""

    prompt_set: str
    version: int
    artifact_sha256: str
    artifact_bytes: int
    backbone: str
    backbone_fingerprint: str
    class_names: list[str]
    method: dict[str, Any]
    hyperparameters: dict[str, Any]
    seed: int | None = Field(description="null: imported")
    parameters: int
    metrics: dict[str, Any]
    imported: bool = Field(description="the artifact came from outside: what it does not tell is not known")
    job: str | None
    job_epoch: int | None = Field(description="the epoch whose checkpoint was published; null: the end of the job")
    dataset: str | None
    dataset_version: int | None
    continued_from: ContinuedFrom | None
    code_version: str | None = Field(description="the release of this service that learned it")
    description: str | None
    metadata: dict[str, str]
    archived_at: datetime | None = Field(description="archived: no name means it, and no alias moves to it")
    quarantined_at: datetime | None = Field(description="since then the stored artifact is known to be damaged")
    quarantine_reason: str | None
    created_at: datetime

    @classmethod
    def of(cls, name: str, row: models.PromptSetVersion) -> Self:
        method, hyperparameters = split_recipe(row.recipe)
        return cls(
            prompt_set=name,
            version=row.version,
            artifact_sha256=row.artifact_sha256,
            artifact_bytes=row.artifact_bytes,
            backbone=row.backbone,
            backbone_fingerprint=row.backbone_fingerprint,
            class_names=row.class_names,
            method=method,
            hyperparameters=hyperparameters,
            seed=row.recipe.get("seed"),
            parameters=row.parameters,
            metrics=row.metrics,
            imported=row.job_id is None,
            job=ids.public(ids.JOB, row.job_id) if row.job_id else None,
            job_epoch=row.job_epoch,
            dataset=ids.public(ids.DATASET, row.dataset_id) if row.dataset_id else None,
            dataset_version=row.dataset_version,
            continued_from=row.continued_from,
            code_version=row.code_version,
            description=row.description,
            metadata=row.custom,
            archived_at=row.archived_at,
            quarantined_at=row.quarantined_at,
            quarantine_reason=row.quarantine_reason,
            created_at=row.created_at,
        )


class GateOverride(Request):
    reason: Annotated[PlainText, Field(min_length=1, max_length=500)] = Field(
        description="kept in the history of the alias", examples=["the golden images are from before the new camera"]
    )


class AliasTarget(Request):
    """Where an alias is to point."""

    version: int = Field(ge=1, lt=2**31, examples=[3])
    expected_version: int | None = Field(
        None,
        description="where it points now, else 409; null: it must not exist yet; absent: wherever it is",
        examples=[2],
    )
    override: GateOverride | None = Field(None, description="move it even where the gate is against it")


class AliasRollback(Request):
    """How far back; without a body to the version before the last move."""

    to_version: int | None = Field(
        None, ge=1, lt=2**31, description="where the alias has been before; absent: before its last move"
    )
    expected_version: int | None = Field(None, ge=1, lt=2**31, description="where it points now, else 409")


class Alias(BaseModel):
    prompt_set: str
    alias: str
    version: int
    moved_at: datetime = Field(description="since when it points at this version")

    @classmethod
    def of(cls, prompt_set: str, row: models.PromptSetAlias) -> Self:
        return cls(prompt_set=prompt_set, alias=row.name, version=row.version, moved_at=row.moved_at)


class AliasMove(BaseModel):
    number: int = Field(description="1, 2, 3, ... without a gap")
    from_version: int | None = Field(description="null: the alias was not there")
    to_version: int | None = Field(description="null: the alias was removed")
    actor: str = Field(description="the API key that asked for it", examples=["key_0199c0de000070008000000000000000"])
    moved_at: datetime
    request_id: str | None
    override_reason: str | None = Field(description="why it was moved although the gate was against it")

    @classmethod
    def of(cls, row: models.AliasMove) -> Self:
        return cls(
            number=row.number,
            from_version=row.from_version,
            to_version=row.to_version,
            actor=row.actor,
            moved_at=row.moved_at,
            request_id=row.request_id,
            override_reason=row.override_reason,
        )
