"""What has been run: one line of JSON for each run, so that a comparison goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bpt_core.recipe import Recipe

# What else decides a run's figures; raised when training is changed so that they differ.
CODE = 1


@dataclass(frozen=True)
class Record:
    """One run. `val` and `test` are top-1 shares, `test` None for trials of a search; `curve` holds the validation
    score after every epoch, `best_epoch` 0 is before the first. `parameters` leave the head out.

    `diverged` runs have a `val` of -1 and nothing else.
    """

    key: str
    task: str
    configuration: str
    recipe: dict[str, Any]
    parameters: int
    seconds: float
    machine: str
    val: float
    best_epoch: int = 0
    curve: list[float] = field(default_factory=list)
    test: float | None = None
    burstiness: dict[str, Any] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        return self.val < 0


def key_of(
    task: str, data: str, backbone: str, configuration: str, baseline: str | None, recipe: Recipe, tested: bool
) -> str:
    """A hash of what determines a run: `data` is a digest of the images, `backbone` a fingerprint."""
    facts = [CODE, task, data, backbone, configuration, baseline, recipe.to_dict(), tested]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


class Records:
    """The lines of a file. A line that was cut off when the power went is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_key: dict[str, Record] = {}
        if path.is_file():
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            for line in whole.splitlines():
                record = Record(**json.loads(line))
                self._by_key[record.key] = record
            os.truncate(path, len(whole) + bool(whole))

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str) -> Record | None:
        return self._by_key.get(key)

    def all(self) -> list[Record]:
        return list(self._by_key.values())

    def add(self, record: Record) -> None:
        """On the disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(record), sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._by_key[record.key] = record
