"""Prompt sets, their versions and aliases; an artifact is checked before anybody gets it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from bpt_client.errors import InputError, TransferCorrupt
from bpt_client.files import written_whole
from bpt_client.models import (
    Alias,
    AliasMove,
    BatchPrediction,
    Gate,
    GateCheck,
    PromptSet,
    PromptSetVersion,
    TuningJob,
    parse,
)
from bpt_client.transport import Transport, decode, segment


class Expected(Enum):
    """What an alias may be expected to be, beside a version or None."""

    ANY = "any"


ANY: Final = Expected.ANY


class PromptSets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, name: str, *, description: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> PromptSet:
        """An empty one; a tuning job makes the one it names by itself. Conflict `name_taken`."""
        body = {"name": name, "description": description, "metadata": dict(metadata) if metadata else None}
        return self._transport.send(PromptSet, "/v1/prompt-sets", body)

    def list(self, *, metadata: Mapping[str, str] | None = None) -> Iterator[PromptSet]:
        """Newest first; with `metadata` only those that have it in theirs."""
        return self._transport.pages(PromptSet, "/v1/prompt-sets", {"metadata": _pairs(metadata)})

    def get(self, name: str) -> PromptSet:
        return self._transport.fetch(PromptSet, _path(name))

    def describe(
        self, name: str, *, description: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> PromptSet:
        """Label a prompt set. None leaves a part as it is, an empty description removes it, metadata are replaced."""
        return parse(PromptSet, self._change(_path(name), description, metadata))

    def describe_version(
        self, name: str, version: int, *, description: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> PromptSetVersion:
        return parse(PromptSetVersion, self._change(_path(name, version), description, metadata))

    def archive(self, name: str, version: int) -> PromptSetVersion:
        """From now on no name means it; its number still does. Conflict `version_in_use` while it has an alias."""
        return self._transport.send(PromptSetVersion, f"{_path(name, version)}/archive")

    def unarchive(self, name: str, version: int) -> PromptSetVersion:
        return self._transport.send(PromptSetVersion, f"{_path(name, version)}/unarchive")

    def delete(self, name: str, version: int | None = None) -> None:
        """An archived version, or a whole prompt set that has no alias. Conflict where it is still in use."""
        self._transport.once("DELETE", _path(name, version))

    def versions(
        self, name: str, *, archived: bool | None = None, metadata: Mapping[str, str] | None = None
    ) -> Iterator[PromptSetVersion]:
        """Newest first; only archived ones or only others, only those with this in their metadata."""
        wanted = {"archived": archived, "metadata": _pairs(metadata)}
        return self._transport.pages(PromptSetVersion, f"{_path(name)}/versions", wanted)

    def version(self, name: str, version: int | None = None) -> PromptSetVersion:
        """That version, by default the newest. InputError while there is none."""
        if version is None:
            version = self.get(name).latest_version
            if version is None:
                raise InputError(f"prompt set {name!r} has no version yet")
        return self._transport.fetch(PromptSetVersion, _path(name, version))

    def aliases(self, name: str) -> Iterator[Alias]:
        return self._transport.pages(Alias, f"{_path(name)}/aliases")

    def alias(self, name: str, alias: str, *, as_of: datetime | None = None) -> Alias:
        """Where it points, or pointed at a time (without a time zone: local time)."""
        params = None if as_of is None else {"as_of": as_of.astimezone().isoformat()}
        return self._transport.fetch(Alias, _alias_path(name, alias), params)

    def move_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        expected_version: int | Expected | None = ANY,
        override_reason: str | None = None,
    ) -> Alias:
        """Point an alias at a version, from the very next prediction on; it is made if absent.

        `expected_version` is where it points now, None for an alias that must not exist yet: Conflict
        `alias_moved` otherwise. Conflict `gate_not_passed` where the gate is against it, unless there is an
        `override_reason`, which the history keeps.
        """
        body: dict[str, Any] = {"version": version}
        if expected_version is not ANY:
            body["expected_version"] = expected_version
        if override_reason is not None:
            body["override"] = {"reason": override_reason}
        return parse(Alias, decode(self._transport.once("PUT", _alias_path(name, alias), json=body)))

    def rollback_alias(
        self, name: str, alias: str, *, to_version: int | None = None, expected_version: int | None = None
    ) -> Alias:
        """Back to the version before its last move, so that twice is where it began, or to any where it has been.

        No gate is asked. Conflict `alias_no_history`, and `alias_moved` unless it is at `expected_version`.
        """
        body = {"to_version": to_version, "expected_version": expected_version}
        return self._transport.send(Alias, f"{_alias_path(name, alias)}/rollback", body if any(body.values()) else None)

    def remove_alias(self, name: str, alias: str) -> None:
        """Its history stays."""
        self._transport.once("DELETE", _alias_path(name, alias))

    def alias_history(self, name: str, alias: str) -> Iterator[AliasMove]:
        """Its moves, newest first."""
        return self._transport.pages(AliasMove, f"{_alias_path(name, alias)}/history")

    def gate(self, name: str) -> Gate:
        """NotFound without one."""
        return self._transport.fetch(Gate, f"{_path(name)}/gate")

    def set_gate(
        self,
        name: str,
        dataset: str,
        *,
        floor: float,
        metric: str = "top1",
        split: str | None = None,
        aliases: Sequence[str] | None = None,
    ) -> Gate:
        """From now on an alias (one of `aliases`, by default any) moves only to versions that reach `floor` there.

        `dataset` is an id, with `:3` behind it for that version; by default the newest, as it is now.
        """
        body = {"dataset": dataset, "floor": floor, "metric": metric, "split": split}
        body |= {"aliases": None if aliases is None else [*aliases]}
        return parse(Gate, decode(self._transport.once("PUT", f"{_path(name)}/gate", json=body)))

    def remove_gate(self, name: str) -> None:
        self._transport.once("DELETE", f"{_path(name)}/gate")

    def check(self, name: str, version: int) -> BatchPrediction:
        """Have a version predict the gate's images: a batch prediction, to be waited for. Conflict `gate_mismatch`."""
        return self._transport.send(BatchPrediction, f"{_path(name, version)}/gate-checks")

    def checks(self, name: str, version: int) -> Iterator[GateCheck]:
        """How it did on labelled datasets, newest first."""
        return self._transport.pages(GateCheck, f"{_path(name, version)}/gate-checks")

    def reproduce(self, name: str, version: int) -> TuningJob:
        """Learn a version once more: a tuning job, to be waited for, that publishes nothing and has a `reproduction`.

        Conflict `not_reproducible` where something that it was learned from is gone, or unknown.
        """
        return self._transport.send(TuningJob, f"{_path(name, version)}/reproduce")

    def artifact(self, name: str, version: int | None = None) -> bytes:
        """The artifact (safetensors), by default the newest. TransferCorrupt unless its SHA-256 is as announced."""
        facts = self.version(name, version)
        content = self._transport.get(f"{_path(name, facts.version)}/artifact").content
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != facts.artifact_sha256:
            raise TransferCorrupt(
                f"the artifact of {name}:{facts.version} should have SHA-256 {facts.artifact_sha256}, not {sha256}"
            )
        return content

    def download(self, name: str, path: str | Path, version: int | None = None) -> None:
        """Write the artifact to `path`: completely or not at all. TransferCorrupt as above, InputError for the path."""
        content = self.artifact(name, version)
        with written_whole(Path(path)) as file:
            file.write(content)

    def import_version(self, name: str, path: str | Path) -> PromptSetVersion:
        """An artifact as `download` wrote it becomes the next version, also of another service on the same backbone.

        The prompt set is made if it is not there. InputError where the file cannot be read.
        """
        content, headers = _artifact(path)
        sent = self._transport.post(f"{_path(name)}/versions", headers=headers, content=lambda: iter([content]))
        return parse(PromptSetVersion, decode(sent))

    def restore_version(self, name: str, version: int, path: str | Path) -> PromptSetVersion:
        """Put an artifact back where the stored one is damaged: the file that `download` wrote. It leaves quarantine.

        Conflict `artifact_mismatch` where it is another one; InputError where the file cannot be read.
        """
        content, headers = _artifact(path)
        sent = self._transport.once("PUT", f"{_path(name, version)}/artifact", headers=headers, content=content)
        return parse(PromptSetVersion, decode(sent))

    def release_version(self, name: str, version: int) -> PromptSetVersion:
        """Out of quarantine, once the stored artifact has been repaired; Unavailable `artifact_integrity` before."""
        return self._transport.send(PromptSetVersion, f"{_path(name, version)}/release")

    def _change(self, path: str, description: str | None, metadata: Mapping[str, str] | None) -> Any:
        body = {"description": description, "metadata": None if metadata is None else dict(metadata)}
        return decode(self._transport.once("PATCH", path, json=body))


def _artifact(path: str | Path) -> tuple[bytes, dict[str, str]]:
    """A file and the headers it is sent with."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return content, {
        "Content-Type": "application/vnd.safetensors",
        "Content-Length": str(len(content)),
        "Content-Digest": f"sha-256=:{digest}:",
    }


def _path(name: str, version: int | None = None) -> str:
    return f"/v1/prompt-sets/{segment(name)}" + ("" if version is None else f"/versions/{version}")


def _alias_path(name: str, alias: str) -> str:
    return f"{_path(name)}/aliases/{segment(alias)}"


def _pairs(metadata: Mapping[str, str] | None) -> tuple[str, ...] | None:
    return tuple(f"{key}={value}" for key, value in metadata.items()) if metadata else None
