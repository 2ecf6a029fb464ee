"""Which release of this software runs."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGE = "bpt-service"


@cache
def code_version() -> str | None:
    """None where the package is not installed but run from its folder."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None
