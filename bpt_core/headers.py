"""What an artifact says of itself, read without torch: the JSON in its safetensors header."""

from __future__ import annotations

import json
from typing import Any

from bpt_core.errors import ArtifactError

METADATA_KEY = "bpt"


def describe(artifact: bytes) -> dict[str, Any]:
    """Backbone, method, class names and so on, as `artifact.to_bytes` wrote them; nothing but the header is looked at.

    ArtifactError where there is no such header.
    """
    try:
        length = int.from_bytes(artifact[:8], "little")
        found = json.loads(json.loads(artifact[8 : 8 + length])["__metadata__"][METADATA_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"not a prompt-set artifact: {error}") from error
    if not isinstance(found, dict):
        raise ArtifactError("not a prompt-set artifact: its metadata is no object")
    return found
