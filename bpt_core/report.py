"""What ingest tells the owner of a dataset: what came, what was left out and why, and what he should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

from bpt_core.archive import Tally, printable
from bpt_core.errors import DatasetError, ImageError
from bpt_core.findings import Finding, Severity, verdict
from bpt_core.pictures import Picture, Split


@dataclass
class Report:
    """Filled in while a dataset is packed. Lists are {"total", "items"} with the first REPORT_ITEMS items:

    verdict · images {accepted, rejected, packed} · splits {split: n} · counts {class: {split: n}} · formats
    {format: n} · sizes {width, height: {min, median, max}} in pixels of the originals · ignored [{entry, reason}] ·
    rejected [{entry, code, detail}] · findings (a plain list) [{code, severity, explanation, items}] · changes
    {added, relabelled, removed} where the version was made from another. Without labels `counts` is empty.
    """

    accepted: int = 0
    bad_images: int = 0
    fatal: DatasetError | None = None
    ignored: Tally = field(default_factory=Tally)
    rejected: Tally = field(default_factory=Tally)
    rejected_images: Tally = field(default_factory=Tally)
    left_out: Tally = field(default_factory=Tally)
    leaks: Tally = field(default_factory=Tally)
    leaked_conflicts: Tally = field(default_factory=Tally)
    known: Tally = field(default_factory=Tally)
    missing: Tally = field(default_factory=Tally)
    merged_names: Tally = field(default_factory=Tally)
    straddling_groups: Tally = field(default_factory=Tally)
    findings: list[Finding] = field(default_factory=list)
    changes: dict[str, int] | None = None
    described: dict[str, Any] = field(default_factory=dict)

    def reject_image(self, entry: str, error: ImageError) -> None:
        self.bad_images += 1
        for tally in (self.rejected, self.rejected_images):
            tally.add(entry=printable(entry), code=error.code, detail=str(error))

    def reject_source(self, error: DatasetError) -> None:
        """Something that ends the ingest; reading goes on where it can, so that all of it is named."""
        self.fatal = self.fatal or error
        self.rejected.merge(error.report.get("rejected", {"total": 0, "items": []}))

    def describe(self, pictures: Sequence[Picture], class_names: Sequence[str], findings: Sequence[Finding]) -> None:
        """What the finished dataset holds, and what its owner should know about it."""
        splits = Counter(picture.split for picture in pictures)
        counts = {name: dict.fromkeys(map(str, Split), 0) for name in class_names}
        for picture in pictures:
            for label in picture.labels:
                counts[label][picture.split] += 1
        sizes = {}
        for side in ("width", "height"):
            pixels = [getattr(picture.facts, side) for picture in pictures]
            sizes[side] = {"min": min(pixels), "median": median_low(pixels), "max": max(pixels)}
        self.findings = [*self._own_findings(), *findings]
        order = list(reversed(Severity))
        self.findings.sort(key=lambda finding: order.index(finding.severity))
        self.described = {
            "packed": len(pictures),
            "splits": {split.value: splits[split] for split in Split},
            "counts": counts,
            "formats": dict(sorted(Counter(picture.format for picture in pictures).items())),
            "sizes": sizes,
        }

    def _own_findings(self) -> list[Finding]:
        """What only reading could find; findings.examine looks at what was kept."""
        told = (
            (
                *("bad_images", Severity.WARNING, self.rejected_images),
                "Bad images: {n} could not be read and had to be left out. Each is named here with the reason.",
            ),
            (
                *("images_left_out", Severity.WARNING, self.left_out),
                "Images without a class, or outside the splits: {n} had to be left out. Give each a class folder or a "
                "row in the table.",
            ),
            (
                *("files_missing", Severity.WARNING, self.missing),
                "Rows of tables without an image: {n}. The files they name were not sent, or cannot be told apart.",
            ),
            (
                *("duplicates_across_splits", Severity.WARNING, self.leaks),
                "Copies across splits: {n} of the images lay in an earlier split as well, and had to be left out of "
                "the later one. A score must not rest on pictures that were seen in training.",
            ),
            (
                *("label_conflict_across_splits", Severity.WARNING, self.leaked_conflicts),
                "Copies across splits under other labels: {n}, pixel for pixel the same. The label of the earlier "
                "split was kept; see which of them is right.",
            ),
            (
                *("already_there", Severity.INFO, self.known),
                "In the dataset already, with the same labels: {n} of the images sent. They were not added again.",
            ),
            (
                *("merged_class_names", Severity.WARNING, self.merged_names),
                "Class names that differ only by upper and lower case, blanks around them or how their letters are "
                "encoded: {n}. They were taken for the same class.",
            ),
            (
                *("groups_across_splits", Severity.WARNING, self.straddling_groups),
                "Groups with images in more than one of the splits you gave: {n}. What belongs together should lie in "
                "one split, or scores flatter.",
            ),
        )
        return [
            Finding(code, severity, text.format(n=f"{tally.total:,}"), tally)
            for code, severity, tally, text in told
            if tally.total
        ]

    def to_json(self) -> dict[str, Any]:
        nothing: dict[str, Any] = {"packed": 0, "splits": {}, "counts": {}, "formats": {}, "sizes": {}}
        described = {**nothing, **self.described}
        packed = described.pop("packed")
        findings = self.findings if packed else self._own_findings()
        return {
            "verdict": str(verdict(findings)) if packed else None,
            "images": {"accepted": self.accepted, "rejected": self.bad_images, "packed": packed},
            **described,
            "ignored": self.ignored.report(),
            "rejected": self.rejected.report(),
            "findings": [finding.to_json() for finding in findings],
            **({"changes": self.changes} if self.changes is not None else {}),
        }
