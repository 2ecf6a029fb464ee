"""What a tuning job found out, for people."""

from __future__ import annotations

from bpt_client.models import Reproduction, TensorDifference
from bpt_client.report_models import TuningReport
from bpt_client.terminal import errors, percent, plain, show_facts, show_table


def show(report: TuningReport, limit: int) -> None:
    """At most `limit` rows of each table; how to put a label right goes to standard error."""
    found = report.label_errors
    shown, sampled = found.items[:limit], report.sampled
    left_out = ", ".join(f"{each.class_name} ({each.reason})" for each in report.left_out)
    version = f":{report.dataset_version}" if report.dataset_version else ""
    show_facts(
        [
            ("dataset", f"{report.dataset}{version}"),
            ("probable label errors", found.total),
            ("training images judged", f"{sampled.images} of {sampled.of}" if sampled else None),
            ("not judged in training", left_out or None),
        ]
    )
    if shown:
        show_table(
            ("item", "path", "given", "suggested", "confidence"),
            [
                (each.item, each.path, _joined(each.given), _joined(each.suggested), f"{each.confidence:.2f}")
                for each in shown
            ],
            title=_title("Probable label errors", len(shown), found.total),
        )
    if report.hardest:
        show_table(
            ("item", "path", "given", "predicted", "loss"),
            [
                (each.item, each.path, _joined(each.given), _joined(each.predicted), f"{each.loss:.2f}")
                for each in report.hardest[:limit]
            ],
            title="Hardest images",
        )
    if report.confused_pairs:
        show_table(
            ("true", "predicted", "images", "rate"),
            [(each.true, each.predicted, each.images, percent(each.rate)) for each in report.confused_pairs[:limit]],
            title=f"Confused classes ({report.confused_pairs[0].split})",
        )
    if any(each.item for each in shown):
        command = f"bpt datasets relabel {plain(report.dataset)} ITEM LABEL"
        errors().print(f"Look at an image before you change its label: {command}", soft_wrap=True)


def reproduction(found: Reproduction) -> list[tuple[str, object]]:
    """Rows for show_facts."""
    tests = [learned.metrics.test or learned.metrics.val for learned in (found.then, found.now)]
    return [
        ("verdict", found.verdict),
        *((name, _apart(each)) for name, each in found.tensors.items()),
        ("same answers", f"{percent(found.agreement)} of {found.images} images ({found.split})"),
        ("score then, now", ", ".join(percent(each.score) or "?" for each in tests if each) or None),
        ("release then, now", f"{found.then.code_version or '?'}, {found.now.code_version or '?'}"),
    ]


def _apart(tensor: TensorDifference) -> str:
    if tensor.is_equal:
        return "equal"
    if tensor.relative is None:
        return "of another shape"
    return f"differs by {tensor.relative:.2e} of its norm, by {tensor.largest:.2e} at most"


def _joined(labels: tuple[str, ...]) -> str | None:
    return ", ".join(labels) or None


def _title(title: str, shown: int, total: int) -> str:
    return title if shown == total else f"{title}, the worst {shown} of {total}"
