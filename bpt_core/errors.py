"""Every error bpt_core raises on purpose.

BptError                    has a stable `code` and says what is wrong in words
├── BackboneError           unknown name, unsupported architecture, weights that cannot be had or do not fit
├── InvalidSetting          a tuning setting that cannot work
├── TuningDiverged          the loss stopped being a number
├── BudgetExhausted         the time for tuning was up before anything was learned
├── DatasetError            the dataset as a whole is unusable; its `report` says which entries
│   └── ArchiveError        ... because of the archive it came in
├── ImageError              one image is unusable
├── ArtifactError           bytes that are no valid prompt-set artifact
├── Overloaded              more predictions wait than may; later there will be room
└── PredictionFailed        an image that nothing was wrong with could not be computed
"""

from __future__ import annotations

from typing import Any


class BptError(Exception):
    """Base of the tree. `code` is stable and machine-readable; `str(error)` is for people."""

    code = "bpt_error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        if code is not None:
            self.code = code


class BackboneError(BptError):
    code = "backbone_invalid"


class InvalidSetting(BptError):
    code = "invalid_setting"


class TuningDiverged(BptError):
    code = "diverged"


class BudgetExhausted(BptError):
    code = "budget_exhausted"


class DatasetError(BptError):
    """`report` is JSON-serialisable; where entries are to blame it names them (see packing.pack)."""

    code = "dataset_invalid"

    def __init__(self, detail: str, *, code: str | None = None, report: dict[str, Any] | None = None) -> None:
        super().__init__(detail, code=code)
        self.report = {} if report is None else report


class ArchiveError(DatasetError):
    code = "archive_invalid"


class ImageError(BptError):
    code = "image_corrupt"


class ArtifactError(BptError):
    code = "artifact_corrupt"


class Overloaded(BptError):
    code = "overloaded"


class PredictionFailed(BptError):
    code = "prediction_failed"
