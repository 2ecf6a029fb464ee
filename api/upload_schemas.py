"""What goes over the wire to make datasets and versions: options, changes, imports, uploads in parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from api.receiving import ARCHIVE_TYPES
from api.schemas import Metadata, Name, PlainText, Request
from bpt_store import ids, models
from bpt_store.uploads import Intent

MOST_CHANGES = 10_000
MOST_LABELS = 100
SMALLEST_PART, DEFAULT_PART, LARGEST_PART = 5 << 20, 32 << 20, 64 << 20

Column = Annotated[PlainText, Field(min_length=1, max_length=100)]
ItemId = Annotated[str, Field(pattern="^itm_[0-9a-f]{24}$", examples=["itm_0123456789abcdef01234567"])]
Label = Annotated[PlainText, Field(min_length=1, max_length=200)]
VersionNumber = Annotated[int, Field(ge=1, lt=2**31)]


def _known(media_type: str) -> str:
    if media_type not in ARCHIVE_TYPES:
        raise ValueError(f"must be one of {', '.join(sorted(ARCHIVE_TYPES))}")
    return media_type


MediaType = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": sorted(ARCHIVE_TYPES)})]


class IngestOptions(Request):
    """How a dataset is read."""

    task: Literal["auto", "single-label", "multi-label", "unlabelled"] = Field(
        "auto",
        description="`auto` sees it from what is there; `unlabelled`: images in any folders, all in the split test, "
        "to predict and not to tune on",
    )
    first_frame: bool = Field(False, description="take the first picture of GIFs and other animations")
    short_side: int = Field(320, ge=32, le=1024, description="larger images are made so small, in pixels")
    bad_images: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="share of bad images that are left out; more fail it all"
    )
    file_column: Column | None = Field(None, description="of the table that names labels")
    label_column: Column | None = None
    split_column: Column | None = None
    group_column: Column | None = None

    def options(self) -> dict[str, Any]:
        """As they are kept with the dataset, also those that nobody named."""
        return self.model_dump(include=set(IngestOptions.model_fields), exclude_none=True)


class DatasetQuery(IngestOptions):
    """The query of a dataset that is sent as raw bytes."""

    name: Name | None = Field(None, description="what you call it; needed unless the body is JSON")


class DatasetImport(IngestOptions):
    """A dataset that lies in object storage already."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "birds", "url": "s3://our-bucket/birds/"}]}
    )

    name: Name
    url: PlainText = Field(min_length=1, max_length=1024, description="an archive, or all below a folder")
    metadata: Metadata = Field(default_factory=dict)


class Relabelled(Request):
    item: ItemId
    labels: list[Label] = Field(
        max_length=MOST_LABELS,
        description="all that it is to have from then on",
        json_schema_extra={"uniqueItems": True},
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label must not come twice")
        return self


class Changes(Request):
    """What is to become of items of the newest version."""

    base: VersionNumber | None = Field(None, description="the version that is meant, else 409; absent: the newest")
    relabel: list[Relabelled] = Field([], max_length=MOST_CHANGES)
    remove: list[ItemId] = Field([], max_length=MOST_CHANGES)

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        counted = Counter([*(each.item for each in self.relabel), *self.remove])
        twice = next((item for item, count in counted.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} comes more than once")
        return self

    def changes(self) -> dict[str, Any] | None:
        """As they are kept with the version; None where there are none."""
        if not self.relabel and not self.remove:
            return None
        return {"relabel": {each.item: each.labels for each in self.relabel}, "remove": self.remove}


class VersionChange(Changes):
    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.changes() is None:
            raise ValueError("nothing is to be changed: name items in relabel or remove")
        return self


class UploadCreate(IngestOptions, Changes):
    """An upload in parts: of a new dataset, by `name`, or of more images for a dataset that is there."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "birds", "media_type": "application/zip", "size_bytes": 8 << 30}]},
    )

    name: Name | None = Field(None, description="of a new dataset")
    dataset: str | None = Field(None, description="`ds_...`: it gets a new version")
    media_type: MediaType
    size_bytes: int | None = Field(None, ge=1, lt=2**53, description="of the whole; room is set aside for it")
    part_bytes: int = Field(
        DEFAULT_PART, ge=SMALLEST_PART, le=LARGEST_PART, description="of every part but the last, which may be shorter"
    )
    fingerprint: Annotated[PlainText, Field(min_length=1, max_length=200)] | None = Field(
        None, description="your own name for what is sent; an upload that was broken off is found again by it"
    )
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_purpose(self) -> Self:
        if (self.name is None) == (self.dataset is None):
            raise ValueError("give either name or dataset")
        foreign = _NOT_WITH_NAME if self.name is not None else _NOT_WITH_DATASET
        given = sorted(self.model_fields_set & foreign)
        if given:
            raise ValueError(f"{', '.join(given)}: not with {'name' if self.name is not None else 'dataset'}")
        return self

    def intent(self) -> Intent:
        """NotFound for a dataset's id that is none."""
        if self.dataset is None:
            return Intent(name=self.name, options=self.options(), custom=self.metadata)
        return Intent(dataset_id=ids.parse(ids.DATASET, self.dataset), base=self.base, changes=self.changes())


_NOT_WITH_NAME = set(Changes.model_fields)
_NOT_WITH_DATASET = {*IngestOptions.model_fields, "metadata"}


class UploadComplete(Request):
    sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of the whole; checked when the upload is read"
    )


class UploadPart(BaseModel):
    number: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, row: models.UploadPart) -> Self:
        return cls(number=row.number, bytes=row.bytes, sha256=row.sha256)


class Upload(BaseModel):
    id: str
    state: Literal["open", "complete"]
    name: str | None = Field(description="of the dataset that it is to become")
    dataset: str | None = Field(description="that gets a new version, or that it has become")
    version: int | None = Field(description="that it has become")
    media_type: str
    size_bytes: int | None
    part_bytes: int | None
    fingerprint: str | None
    received_bytes: int
    parts: list[UploadPart] | None = Field(description="those that are stored; null in lists")
    created_at: datetime
    expires_at: datetime = Field(description="when it is forgotten, unless another part comes")

    @classmethod
    def of(cls, row: models.Upload, received_bytes: int, parts: Sequence[models.UploadPart] | None) -> Self:
        intent = Intent.of(row)
        dataset_id = row.dataset_id or intent.dataset_id
        return cls(
            id=ids.public(ids.UPLOAD, row.id),
            state="open" if row.dataset_id is None else "complete",
            name=intent.name,
            dataset=None if dataset_id is None else ids.public(ids.DATASET, dataset_id),
            version=row.version,
            media_type=row.media_type,
            size_bytes=row.size_bytes,
            part_bytes=row.part_bytes,
            fingerprint=row.fingerprint,
            received_bytes=received_bytes,
            parts=None if parts is None else [UploadPart.of(part) for part in parts],
            created_at=row.created_at,
            expires_at=row.expires_at,
        )
