"""Who of xdist's processes runs what: files as wholes, those that need the service as two wholes.

So two processes start the service once each, and wait for it half of their time; the others never start it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

_ARGUMENT = re.compile(r": (Service|Customer)\b")  # of a test; the process that shares out sees no fixtures


class Sharing(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return _whole(nodeid.split("::")[0])


@cache
def _whole(file: str) -> str:
    if not _ARGUMENT.search(Path(__file__).parents[1].joinpath(file).read_text()):
        return file
    return "the service and faults" if Path(file).parent.name == "faults" else "the service"
