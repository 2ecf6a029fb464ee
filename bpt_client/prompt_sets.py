"""Prompt sets and their versions; an artifact is checked before anybody gets it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bpt_client.errors import InputError, TransferCorrupt
from bpt_client.models import PromptSet, PromptSetVersion
from bpt_client.transport import Transport, segment


class PromptSets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[PromptSet]:
        return self._transport.pages(PromptSet, "/v1/prompt-sets")

    def get(self, name: str) -> PromptSet:
        return self._transport.fetch(PromptSet, f"/v1/prompt-sets/{segment(name)}")

    def versions(self, name: str) -> Iterator[PromptSetVersion]:
        return self._transport.pages(PromptSetVersion, f"/v1/prompt-sets/{segment(name)}/versions")

    def version(self, name: str, version: int | None = None) -> PromptSetVersion:
        """That version, by default the newest. InputError while there is none."""
        if version is None:
            version = self.get(name).latest_version
            if version is None:
                raise InputError(f"prompt set {name!r} has no version yet")
        return self._transport.fetch(PromptSetVersion, f"/v1/prompt-sets/{segment(name)}/versions/{version}")

    def artifact(self, name: str, version: int | None = None) -> bytes:
        """The artifact (safetensors), by default the newest. TransferCorrupt unless its SHA-256 is as announced."""
        facts = self.version(name, version)
        path = f"/v1/prompt-sets/{segment(name)}/versions/{facts.version}/artifact"
        content = self._transport.get(path).content
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != facts.artifact_sha256:
            raise TransferCorrupt(
                f"the artifact of {name}:{facts.version} should have SHA-256 {facts.artifact_sha256}, not {sha256}"
            )
        return content

    def download(self, name: str, path: str | Path, version: int | None = None) -> None:
        """Write the artifact to `path`: completely or not at all. TransferCorrupt as above, InputError for the path."""
        content = self.artifact(name, version)
        path = Path(path)
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
                unfinished = Path(part.name)
                try:
                    part.write(content)
                    part.flush()
                    os.fchmod(part.fileno(), 0o644)
                    unfinished.replace(path)
                except BaseException:
                    unfinished.unlink()
                    raise
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
