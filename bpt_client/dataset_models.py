"""What is inside a dataset, and what is on its way to become one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from bpt_client.models import Json


@dataclass(frozen=True)
class Item:
    """One picture of a dataset. `findings` are codes of the report.

    Width and height are pixels of the original and as stored, `sha256` is of size and pixels. `brightness` lies between
    0 and 1, `contrast` between 0 and 0.5, `entropy` is in bits per pixel; a blurred picture has little `sharpness`.
    """

    id: str
    path: str
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None
    width: int | None = None
    height: int | None = None
    stored_width: int | None = None
    stored_height: int | None = None
    format: str | None = None
    findings: tuple[str, ...] = ()
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    entropy: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Tally:
    """How many there are, and the first of them."""

    total: int = 0
    items: tuple[Json, ...] = ()


@dataclass(frozen=True)
class Finding:
    """`severity` is info, warning or serious; `explanation` says what it is, why it matters and what to do."""

    code: str
    severity: str = "info"
    explanation: str = ""
    items: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class DatasetReport:
    """The part of a report that people read. `images` has accepted, rejected and packed.

    `changes` has added, relabelled and removed where the version was made from another.
    """

    verdict: str | None = None
    images: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    ignored: Tally = field(default_factory=Tally)
    rejected: Tally = field(default_factory=Tally)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class UploadPart:
    number: int
    sha256: str
    bytes: int = 0


@dataclass(frozen=True)
class Upload:
    """An upload in parts of `part_bytes`, the last of them shorter; `parts` are those that have arrived."""

    id: str
    state: str
    part_bytes: int
    fingerprint: str | None = None
    received_bytes: int = 0
    parts: tuple[UploadPart, ...] = ()
    expires_at: datetime | None = None
