"""From where a dataset may be imported: below what the operator named, and nothing that could be read otherwise."""

from __future__ import annotations

import pytest

from bpt_store import imports
from bpt_store.errors import Invalid

CUSTOMER = "cus_0199c0de000070008000000000000000"
PREFIXES = "s3://ours/data  gs://shared file:///srv/{customer}/in/ abfss://box@account.dfs.core/x"


@pytest.mark.parametrize(
    "url",
    [
        "s3://ours/data",
        "s3://ours/data/",
        "s3://ours/data/birds/a.zip",
        "gs://shared",
        "gs://shared/any/thing/",
        "gs://shared/with(plain)signs+and=so,on",
        f"file:///srv/{CUSTOMER}/in",
        f"file:///srv/{CUSTOMER}/in/a.tar.gz",
        "abfss://box@account.dfs.core/x/y",
    ],
)
def test_what_lies_below_an_allowed_url_may_be_imported(url: str) -> None:
    assert imports.allowed(url, PREFIXES, CUSTOMER) == url


@pytest.mark.parametrize(
    "url",
    [
        "s3://ours/database",
        "s3://ours/dat",
        "s3://ours",
        "s3://ours/",
        "s3://theirs/data/a.zip",
        "s3://ours.evil/data/a",
        "s3://ours:80/data/a",
        "s3://user@ours/data/a",
        "gs://ours/data/a",
        "s3:///ours/data",
        "s3:ours/data/a",
        "S3://ours/data/a",
        "s3://ours/data/../secret",
        "s3://ours/data/..",
        "s3://ours/data/./a",
        "s3://ours/data//a",
        "s3://ours/data/%2e%2e/secret",
        "s3://ours/data/a%2fb",
        "s3://ours/data\\..\\secret",
        "s3://ours/data/a?versionId=1",
        "s3://ours/data/a#b",
        "s3://ours/data/a b",
        "s3://ours/data/a\nb",
        "s3://ours/data/a\u202eb",
        "s3://ours/data/" + "x" * 1_024,
        "file:///srv/cus_0199c0de000070008000000000000001/in/a.zip",
        "file:///srv/{customer}/in/a.zip",
        "file:///etc/passwd",
        "file://host/srv/a",
        "http://ours/data/a",
        "https://shared/a",
        "ftp://shared/a",
        "/srv/a",
        "s3://[/data",
        "",
    ],
)
def test_anything_else_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        imports.allowed(url, PREFIXES, CUSTOMER)
    assert caught.value.code == "import_url_forbidden"


@pytest.mark.parametrize("url", ["s3://ours/data", "file:///srv/a", ""])
def test_nothing_may_be_imported_unless_it_was_allowed(url: str) -> None:
    with pytest.raises(Invalid):
        imports.allowed(url, "", CUSTOMER)


def test_a_refusal_does_not_tell_what_is_allowed() -> None:
    with pytest.raises(Invalid) as caught:
        imports.allowed("s3://theirs/a", PREFIXES, CUSTOMER)
    assert "ours" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://ours/data", "https://ours/data", "ftp://ours/data", "file://host/srv", "s3:///data"),
        *("s3://ours:80/data", "s3://user:secret@ours/data", "s3://ours/../data", "s3://ours/data?x=1", "/srv"),
    ],
)
def test_what_is_no_plain_url_of_object_storage_cannot_even_be_allowed(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        imports.allowed(url, url, CUSTOMER)
    assert caught.value.code == "import_url_forbidden"
