"""From where datasets may be imported: below which URLs of object storage, as the operator has allowed it."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from bpt_store.errors import Invalid

SCHEMES = ("s3", "gs", "az", "azure", "abfs", "abfss", "file")
CUSTOMER = "{customer}"
_LONGEST = 1_024
_PLACE = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9._-]*")


def allowed(url: str, prefixes: str, customer: str) -> str:
    """The URL as it is to be read, if it lies at or below one of `prefixes`, which are separated by blanks.

    `{customer}` in a prefix stands for the customer's public id. Invalid `import_url_forbidden`, which does not tell
    what else would be allowed.
    """
    wanted = _parts(url)
    for one in prefixes.split():
        scheme, place, path = _parts(one.replace(CUSTOMER, customer))
        if wanted[:2] == (scheme, place) and wanted[2][: len(path)] == path:
            return url
    raise _forbidden("it is not below what this service may import from")


def _parts(url: str) -> tuple[str, str, tuple[str, ...]]:
    """Scheme, bucket and folders. What a store, a proxy or a file system might read in another way is refused."""
    if len(url) > _LONGEST or unquote(url) != url or not url.isprintable() or any(c in url for c in "\\ ?#"):
        raise _forbidden("it must be plain: no escapes, blanks, backslashes, query or fragment")
    try:
        scheme, place, path, _, _ = urlsplit(url)
    except ValueError:
        raise _forbidden("it is no URL") from None
    if scheme not in SCHEMES or not url.startswith(f"{scheme}://"):
        raise _forbidden(f"its scheme must be one of {', '.join(SCHEMES)}")
    if not _PLACE.fullmatch(place) or bool(place) == (scheme == "file"):
        raise _forbidden("it names no bucket")
    folders = path.removeprefix("/").removesuffix("/").split("/") if path.strip("/") else []
    if any(folder in ("", ".", "..") for folder in folders):
        raise _forbidden("its path must not have empty parts, '.' or '..'")
    return scheme, place, tuple(folders)


def _forbidden(why: str) -> Invalid:
    return Invalid(f"the URL cannot be imported: {why}", code="import_url_forbidden")
