"""What `bpt datasets` writes for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.text import Text

from bpt_client.dataset_models import DatasetReport, Item
from bpt_client.models import DatasetContents
from bpt_client.terminal import output, plain, show_facts, show_table, size

_SPLITS = ("train", "val", "test")
_SEVERITY_STYLES = {"info": "dim", "warning": "yellow", "serious": "bold red"}
_VERDICT_STYLES = {"good to tune": "green", "tune with care": "yellow", "fix first": "bold red"}
_REJECTED_SHOWN = 20


def show_contents(names: Iterable[tuple[str, object]], found: DatasetContents) -> None:
    """Below `names`, what a dataset and a version have in common."""
    source, error = found.source, found.error
    show_facts(
        [
            *names,
            ("state", found.state),
            ("task", found.task),
            ("error", f"{error.detail} ({error.code})" if error else None),
            ("sent", size(source.bytes) if source and source.bytes else None),
            ("sha256", source.sha256 if source else None),
            ("classes", len(found.class_names) or None),
            ("images", found.images() or None),
            ("verdict", _coloured(found.verdict, _VERDICT_STYLES) if found.verdict else None),
            ("created", found.created_at),
        ]
    )


def show_counts(counts: Mapping[str, Mapping[str, int]], splits: Mapping[str, int]) -> None:
    """Images per class and split; nothing where there are no classes."""
    used = [split for split in _SPLITS if splits.get(split)]
    if counts:
        show_table(
            ("class", *used), [(name, *(each.get(split, 0) for split in used)) for name, each in sorted(counts.items())]
        )


def show_items(items: Iterable[Item]) -> None:
    rows = [
        (
            *(each.id, each.path, ", ".join(each.labels) or None, each.split, each.group),
            f"{each.width} x {each.height}" if each.width and each.height else None,
            ", ".join(each.findings) or None,
        )
        for each in items
    ]
    show_table(("item", "path", "labels", "split", "group", "size", "findings"), rows)


def show_report(report: DatasetReport) -> None:
    """The verdict, what became of the images, the findings, and the first of what was left out."""
    images = report.images
    show_facts(
        [
            ("verdict", _coloured(report.verdict, _VERDICT_STYLES) if report.verdict else None),
            ("accepted", images.get("accepted")),
            ("rejected", images.get("rejected")),
            ("packed", images.get("packed")),
            ("ignored", report.ignored.total or None),
            *report.changes.items(),
        ]
    )
    if report.counts:
        _paragraph()
        show_counts(report.counts, report.splits)
    if report.findings:
        _paragraph()
        rows = [
            (_coloured(each.severity, _SEVERITY_STYLES), each.code, each.items.total, each.explanation)
            for each in report.findings
        ]
        show_table(("severity", "finding", "images", "what it means"), rows)
    if report.rejected.total:
        _paragraph()
        shown = report.rejected.items[:_REJECTED_SHOWN]
        rejected = [(each.get("entry"), each.get("code"), each.get("detail")) for each in shown]
        show_table(("left out", "code", "why"), rejected)
        if report.rejected.total > len(shown):
            output().print(Text(f"and {report.rejected.total - len(shown)} more", style="dim"))


def _coloured(word: str, styles: Mapping[str, str]) -> Text:
    return Text(plain(word), style=styles.get(word, ""))


def _paragraph() -> None:
    output().print()
